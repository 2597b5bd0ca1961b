"""Several processes through Ray Train."""

import csv

import pytest

from ssmprune import Policy
from ssmprune.errors import UsageError
from ssmprune.training import TrainSettings, train

SHORT = TrainSettings(steps=4, batch_size=8, lr=1e-4, checkpoint_every=2)
POLICY = Policy.from_yaml("""
schema: ssmprune.policy/1
model: vim_nano
stages: [{layer: 1, keep_ratio: 0.5}]
""")

# of Ray's about itself
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_on_ray_train_as_one_process_does(tmp_path):
    rows = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        result = train("vim_nano", "digits", out, SHORT, policy=POLICY, workers=workers)
        assert result.accuracy.images == 1456
        with (out / "log.csv").open(newline="") as file:
            rows.append([float(row["loss"]) for row in csv.DictReader(file)])
        assert not (out / ".ray").exists()
    assert len(rows[0]) == 2 and rows[1] == pytest.approx(rows[0], abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_are_not_to_be_had_are_a_wrong_call(tmp_path):
    with pytest.raises(UsageError, match="must find 2 GPUs, but Ray has 0"):
        train("vim_nano", "digits", tmp_path, SHORT, workers=2, gpus_per_worker=1)
    with pytest.raises(UsageError, match=r"running Ray cluster, got '127\.0\.0\.1:1'"):
        train("vim_nano", "digits", tmp_path, SHORT, workers=2, address="127.0.0.1:1")


def test_batch_norms_need_one_process_on_the_cpu(tmp_path):
    with pytest.raises(UsageError, match="batch norms need the whole batch, got 2 workers"):
        train("plainmamba_l1", "digits", tmp_path / "out", SHORT, workers=2)
    assert not (tmp_path / "out").exists()
