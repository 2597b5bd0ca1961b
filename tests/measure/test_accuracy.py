import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssmprune.errors import DataError, SsmpruneError, UsageError
from ssmprune.measure.accuracy import correct, evaluate, wilson_interval


class Replay(nn.Module):
    """Returns its input as logits and remembers how it was called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, torch.is_inference_mode_enabled(), x.device.type))
        return x


def batches(logits, labels, batch_size):
    return list(zip(logits.split(batch_size), labels.split(batch_size), strict=True))


@given(
    images=st.integers(1, 40),
    classes=st.integers(1, 12),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_evaluate_counts_what_topk_counts(images, classes, batch_size, seed):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=rng)
    labels = torch.randint(classes, (images,), generator=rng)
    loader = batches(logits, labels, batch_size)
    top5 = (logits.topk(min(5, classes)).indices == labels[:, None]).any(1)
    accuracy = evaluate(Replay(), loader)
    assert torch.equal(correct(Replay(), loader), logits.argmax(1) == labels)
    assert accuracy.top1 == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert accuracy.top5 == pytest.approx(100 * top5.double().mean().item())
    assert accuracy.images == images
    assert 0 <= accuracy.low <= accuracy.top1 <= accuracy.high <= 100


def test_ties_go_to_the_lower_class_as_in_argmax():
    labels = torch.arange(10)
    accuracy = evaluate(Replay(), [(torch.zeros(10, 10), labels)])
    assert (accuracy.top1, accuracy.top5) == (10.0, 50.0)


def test_wilson_interval_solves_its_defining_equation():
    z = 1.959963984540054
    for hits, images in ((0, 10), (7, 20), (96, 100), (50, 50)):
        share = hits / images
        for end in wilson_interval(hits, images):
            p = end / 100
            assert abs(share - p) == pytest.approx(z * math.sqrt(p * (1 - p) / images), abs=1e-7)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_runs_in_eval_and_inference_mode_and_restores_the_mode(training):
    model = Replay().train(training)
    evaluate(model, [(torch.eye(3), torch.arange(3))])
    assert model.seen == [(False, True, "cpu")]
    assert model.training is training


def test_evaluate_restores_the_mode_when_the_model_fails():
    model = nn.Linear(2, 2).train()
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))])
    assert model.training


def test_evaluate_refuses_nan_logits_even_beside_good_ones():
    logits = torch.eye(3)
    logits[1, 2] = math.nan
    with pytest.raises(SsmpruneError, match="NaN"):
        evaluate(Replay(), [(torch.eye(3), torch.arange(3)), (logits, torch.arange(3))])


def test_evaluate_takes_infinite_logits():
    logits = torch.tensor([[-math.inf, 0.0], [math.inf, 0.0]])
    assert evaluate(Replay(), [(logits, torch.tensor([1, 0]))]).top1 == 100


@pytest.mark.parametrize("label", [3, -1])
def test_evaluate_refuses_labels_without_a_class(label):
    with pytest.raises(UsageError, match="3 classes"):
        evaluate(Replay(), [(torch.eye(3)[:1], torch.tensor([label]))])


def test_evaluate_refuses_an_empty_loader():
    with pytest.raises(DataError, match="at least 1 image"):
        evaluate(Replay(), [])


def test_amp_runs_matrix_products_in_bfloat16():
    seen = []
    model = nn.Sequential(nn.Linear(4, 4), Replay())
    model.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    evaluate(model, [(torch.randn(2, 4), torch.tensor([0, 1]))], amp=True)
    evaluate(model, [(torch.randn(2, 4), torch.tensor([0, 1]))])
    assert seen == [torch.bfloat16, torch.float32]


def test_progress_is_shown_on_stderr_alone(capsys):
    evaluate(Replay(), [(torch.eye(3), torch.arange(3))], progress=True)
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_evaluate_follows_the_model_to_the_gpu():
    model = nn.Sequential(nn.Linear(3, 3), Replay()).cuda()
    result = correct(model, [(torch.eye(3), torch.arange(3))])
    assert model[1].seen[0][2] == "cuda"
    assert result.device.type == "cpu"
