import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmprune.errors import UsageError
from ssmprune.measure import latency
from ssmprune.measure.latency import compare_latency, median_interval


class Clock:
    """A clock that only the models move."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def model(self, name, seconds):
        durations = iter(seconds)

        def forward(images):
            assert torch.is_inference_mode_enabled()
            self.calls.append(name)
            self.now += next(durations)

        return forward


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", clock)
    return clock


def test_compare_latency_takes_the_median_of_paired_ratios(clock):
    dense = [9.0, 9.0, *[0.010 * (1 + i) for i in range(8)]]
    pruned = [9.0, 9.0, *[0.010 * (1 + i) * r for i, r in enumerate([0.5, 0.6] * 4)]]
    result = compare_latency(
        clock.model("dense", dense),
        clock.model("pruned", pruned),
        torch.zeros(3, 1, 2, 2),
        repeats=8,
        warmup=2,
        backend="reference",
    )
    assert result.ratio == pytest.approx(0.55)
    assert (result.ratio_low, result.ratio_high) == (pytest.approx(0.5), pytest.approx(0.6))
    assert result.dense_ms == pytest.approx(1000 * statistics.median(dense[2:]))
    assert result.latency_ms == pytest.approx(1000 * statistics.median(pruned[2:]))
    assert (result.batch_size, result.repeats, result.backend) == (3, 8, "reference")
    assert (result.device, result.precision) == ("cpu", "float32")
    assert result.threads == torch.get_num_threads()
    assert result.device_name


def test_pairs_alternate_their_order(clock):
    models = [clock.model(name, [1.0] * 7) for name in ("dense", "pruned")]
    compare_latency(*models, torch.zeros(1, 1), repeats=6, warmup=1)
    assert clock.calls[2:] == ["dense", "pruned", "pruned", "dense"] * 3


def test_compare_latency_runs_bfloat16_under_amp():
    seen = []
    model = torch.nn.Linear(4, 4)

    def forward(images):
        seen.append(model(images).dtype)

    result = compare_latency(forward, forward, torch.zeros(2, 4), repeats=6, warmup=0, amp=True)
    assert set(seen) == {torch.bfloat16} and result.precision == "bfloat16"


def test_median_interval_has_the_known_ranks():
    """From the binomial table: ranks 1..6 of 6, 2..9 of 10, 6..15 of 20, 40..61 of 100."""
    for n, low, high in ((6, 1, 6), (10, 2, 9), (20, 6, 15), (100, 40, 61)):
        assert median_interval([float(i) for i in range(n, 0, -1)]) == (low, high)


@given(st.integers(6, 80))
def test_median_interval_covers_the_median_with_95_percent_and_no_wider(n):
    low, high = median_interval([float(i) for i in range(1, n + 1)])
    chances = [2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(n)]
    assert low + high == n + 1
    assert chances[int(low)] <= 0.05 < chances[int(low) + 1]


def test_median_interval_needs_six_values():
    with pytest.raises(ValueError, match="at least 6 values, got 5"):
        median_interval([1.0] * 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 5}, "repeats must be at least 6, got 5"),
        ({"warmup": -1}, "warmup must not be negative, got -1"),
    ],
)
def test_compare_latency_refuses_impossible_protocols(options, message):
    with pytest.raises(UsageError, match=message):
        compare_latency(lambda x: x, lambda x: x, torch.zeros(1, 1), **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compare_latency_times_the_device_not_the_launch():
    small, large = (torch.randn(n, n, device="cuda") for n in (64, 4096))
    result = compare_latency(
        lambda _: large @ large, lambda _: small @ small, torch.zeros(1, 1, device="cuda")
    )
    assert result.ratio < 0.5 and result.device.startswith("cuda")
