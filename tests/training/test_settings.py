import pytest

from ssmprune.errors import UsageError
from ssmprune.training import FINE_TUNING, FROM_SCRATCH, TrainSettings


def test_settings_tell_every_fault_at_once():
    with pytest.raises(UsageError) as caught:
        TrainSettings(steps=0, lr=-1.0, curriculum=2.0, warmup_steps=0)
    assert str(caught.value).splitlines() == [
        "steps must be at least 1, got 0.",
        "lr must be a number above 0, got -1.0.",
        "curriculum must be in [0, 1], got 2.0.",
    ]


def test_settings_refuse_nan_and_a_warmup_longer_than_the_run():
    for fault in ({"lr": float("nan")}, {"clip": float("nan")}, {"steps": 100}):
        with pytest.raises(UsageError):
            TrainSettings(**fault)


def test_fine_tuning_takes_a_tenth_of_the_steps():
    assert FINE_TUNING.steps * 10 == FROM_SCRATCH.steps
