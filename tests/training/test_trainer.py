import json
import math
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ssmprune import Policy, create_model
from ssmprune.data import open_stream
from ssmprune.models.zoo import find_config
from ssmprune.training import TrainSettings
from ssmprune.training.anneal import annealed
from ssmprune.training.loss import Mixing, TrainingLoss
from ssmprune.training.trainer import Trainer, dense_copy, parameter_groups, shard_limit

POLICY = Policy.from_yaml("""
schema: ssmprune.policy/1
model: vim_nano
stages: [{layer: 1, keep_ratio: 0.5}, {layer: 4, keep_count: 8}]
""")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits(batch_size):
    return open_stream("digits", image_size=(48, 48), channels=1, batch_size=batch_size)


def losses(settings, steps, **more):
    torch.manual_seed(0)
    trainer = Trainer(create_model("vim_nano"), settings, steps, **more)
    batches = enumerate(islice(digits(settings.batch_size).batches(), steps))
    return [trainer.step(step, *batch).item() for step, batch in batches]


def test_trainer_learns_a_batch_by_heart():
    torch.manual_seed(0)
    images, labels = next(
        open_stream("digits", image_size=(48, 48), channels=1, batch_size=4).batches()
    )
    settings = TrainSettings(steps=20, lr=2e-3, warmup=0.1, aux_weight=0.5)
    trainer = Trainer(create_model("vim_nano"), settings, 20)
    losses = [trainer.step(step, images, labels).item() for step in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_shards_of_a_batch_compute_what_the_whole_does():
    stream = open_stream("digits", image_size=(48, 48), channels=1, batch_size=5)
    losses = []
    for shards in (1, 2):
        torch.manual_seed(0)
        settings = TrainSettings(steps=3, lr=1e-3, aux_weight=0.5)
        trainer = Trainer(create_model("vim_nano"), settings, 3, shards)
        batches = enumerate(islice(stream.batches(), 3))
        losses.append([trainer.step(step, *batch).item() for step, batch in batches])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    settings = TrainSettings(steps=100, lr=1.0, warmup=0.1, clip=1e-9)
    trainer = Trainer(create_model("vim_nano"), settings, 100)
    images, labels = torch.zeros(1, 1, 48, 48), torch.zeros(1, dtype=torch.int64)
    seen = {}
    for step in (0, 5, 10, 50, 99):
        trainer.step(step, images, labels)
        seen[step] = trainer.lr
    cosine = [0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / 100)) for s in (10, 50, 99)]
    assert seen[0] == pytest.approx(0.1) and seen[5] == pytest.approx(0.55)
    assert [seen[s] for s in (10, 50, 99)] == pytest.approx(cosine)


def test_a_batch_is_not_divided_where_a_batch_norm_needs_all_of_it():
    with torch.device("meta"):
        assert shard_limit(create_model("vim_nano")) > 1
        assert shard_limit(create_model("plainmamba_l1")) == 1


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("vim_nano", {"A_b_log", "D_b", "cls_token"}),
        ("plainmamba_l1", {"direction_Bs"}),
    ],
)
def test_decay_spares_vectors_embeddings_and_the_logarithm_of_A(name, own):
    with torch.device("meta"):
        model = create_model(name)
    decayed, undecayed = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(p)].split(".")[-1] for p in undecayed["params"]}
    assert {"bias", "A_log", "D", "pos_embed"} | own <= spared
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    assert all(names[id(p)].endswith("weight") and p.ndim > 1 for p in decayed["params"])
    assert len(decayed["params"]) + len(undecayed["params"]) == len(names)


def test_parts_of_a_batch_add_up_to_the_whole():
    settings = TrainSettings(steps=3, batch_size=6, lr=1e-4)
    whole = losses(settings, 3)
    assert losses(settings.changed(accumulate=3), 3) == pytest.approx(whole, abs=1e-5)


SHARE = """
import json, sys
import torch
import torch.distributed as dist
from ssmprune import create_model
from ssmprune.data import open_stream
from ssmprune.training import TrainSettings
from ssmprune.training.trainer import Trainer
rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
settings = TrainSettings(**json.loads(sys.argv[3]))
torch.manual_seed(0)
trainer = Trainer(create_model("vim_nano"), settings, settings.steps)
stream = open_stream("digits", image_size=(48, 48), channels=1, batch_size=settings.batch_size)
losses = []
for step, batch in zip(range(settings.steps), stream.batches(0, rank, 2)):
    loss = trainer.step(step, *batch)
    dist.all_reduce(loss)
    losses.append(loss.item() / 2)
print(json.dumps(losses))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_compute_the_losses_of_one_with_the_same_batches(tmp_path):
    settings = TrainSettings(steps=4, batch_size=8, accumulate=2, lr=1e-3, aux_weight=0.5)
    call = [str(tmp_path / "store"), json.dumps(settings.model_dump())]
    processes = [
        subprocess.Popen([sys.executable, "-c", SHARE, str(rank), *call], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    shares = [json.loads(process.communicate()[0]) for process in processes]
    assert shares[0] == shares[1] == pytest.approx(losses(settings, 4), abs=1e-5)


def test_a_model_equal_to_its_teacher_has_nothing_to_learn():
    torch.manual_seed(0)
    model = create_model("vim_nano")
    settings = TrainSettings(steps=1, lr=1e-3, distill=1.0, temperature=3.0)
    trainer = Trainer(model, settings, 1, teacher=dense_copy(model))
    assert trainer.step(0, *next(digits(4).batches())).item() == pytest.approx(0, abs=1e-5)


def test_teacher_stays_dense_and_still():
    torch.manual_seed(0)
    model = create_model("vim_nano", policy=POLICY)
    teacher = dense_copy(model)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    settings = TrainSettings(steps=1, lr=1e-2, distill=0.5)
    Trainer(model, settings, 1, teacher=teacher).step(0, *next(digits(2).batches()))
    assert teacher.plan is None and model.plan is not None
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(model.head.weight, before["head.weight"])


class Fixed(nn.Module):
    """A backbone that always answers with the same logits."""

    config = SimpleNamespace(embed_dim=2, num_classes=3, task="classification")
    restores = False

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def encode(self, images, restore):
        return SimpleNamespace(hidden=images)

    def forward_head(self, stream):
        return self.logits


def test_objective_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    ours, dense = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    labels, weight, T, smoothing = torch.tensor([0, 2, 1, 1, 0]), 0.3, 2.0, 0.1
    settings = TrainSettings(
        steps=1, lr=1.0, distill=weight, temperature=T, label_smoothing=smoothing
    )
    _, found = TrainingLoss(Fixed(ours), settings)(torch.zeros(5, 1, 2), labels, dense, 0.0)
    expected = 0.0
    for x, t, label in zip(ours.tolist(), dense.tolist(), labels.tolist(), strict=True):
        p, q = ([math.exp(v / T) for v in row] for row in (t, x))
        p, q = ([v / sum(row) for v in row] for row in (p, q))
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        norm = math.log(sum(map(math.exp, x)))
        targets = [smoothing / 3 + (1 - smoothing) * (k == label) for k in range(3)]
        cross = sum(a * (norm - v) for a, v in zip(targets, x, strict=True))
        expected += (1 - weight) * cross + weight * T * T * divergence
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_mixing_depends_on_seed_step_and_worker_alone():
    settings = TrainSettings(steps=1, lr=1.0, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    mixing = Mixing(settings, 10)
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    given = images.clone()
    first = mixing(images, labels, 7, 0)
    mixing(images, labels, 8, 0)
    again, other = mixing(images, labels, 7, 0), mixing(images, labels, 7, 1)
    assert torch.equal(images, given) and not torch.equal(first[0], given)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[1].sum(1) == pytest.approx(torch.ones(4))


def test_kept_weights_are_the_running_mean():
    torch.manual_seed(0)
    model = create_model("vim_nano")
    trainer = Trainer(model, TrainSettings(steps=3, lr=1e-2, ema=0.5), 3)
    seen = []
    for step, batch in enumerate(islice(digits(2).batches(), 3)):
        trainer.step(step, *batch)
        seen.append(model.head.weight.detach().clone())
    mean = seen[0]  # the decay grows to its value: 0 at the first step
    for n, weight in enumerate(seen[1:], start=1):
        decay = min(0.5, 1 - (1 + n) ** (-2 / 3))
        mean = decay * mean + (1 - decay) * weight
    assert torch.allclose(trainer.result.head.weight, mean, atol=1e-7)


def test_annealing_goes_from_every_token_to_the_policy():
    config = find_config("vim_nano")
    kept = [annealed(POLICY, p / 10, config).keep_counts(config) for p in range(11)]
    assert kept[0] == (64, 64) and kept[5] == (48, 30) and kept[10] == (32, 8)
    assert kept == sorted(kept, reverse=True)
    assert annealed(POLICY, 1.0, config) is POLICY


def test_a_step_prunes_as_far_as_the_policy_is_annealed():
    model = create_model("vim_nano", policy=POLICY)
    seen = []
    model.norm_f.register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
    trainer = Trainer(model, TrainSettings(steps=4, lr=1e-3, anneal=0.5), 4)
    for step, batch in enumerate(islice(digits(2).batches(), 4)):
        trainer.step(step, *batch)
    assert seen == [65, 31, 9, 9]
    assert model.plan.policy is POLICY


@pytest.mark.parametrize("optimizer", ["sgd", "lamb", "lion"])
@pytest.mark.parametrize("schedule", ["tanh", "poly"])
def test_timms_optimisers_and_schedules_make_steps(optimizer, schedule):
    betas = None if optimizer == "sgd" else (0.9, 0.99)
    settings = TrainSettings(
        steps=4, batch_size=2, lr=1e-3, optimizer=optimizer, betas=betas, schedule=schedule
    )
    assert all(math.isfinite(loss) for loss in losses(settings, 4))


def test_bfloat16_computes_nearly_the_same():
    settings = TrainSettings(steps=2, batch_size=2, lr=1e-4)
    half = losses(settings.changed(amp=True), 2)
    assert half == pytest.approx(losses(settings, 2), rel=0.05)
    assert half != losses(settings, 2)
