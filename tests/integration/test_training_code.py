"""A policy file in other people's training code."""

import json
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import ssmprune
from ssmprune.data import open_stream
from ssmprune.models.checkpoints import shipped_checkpoint


def test_timm_model_learns_under_a_policy_in_a_plain_loop(policy, batch):
    images, labels = batch
    model = timm.create_model("vim_nano", policy=str(policy))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.forward_features(images).hidden.shape[1] == 17


def test_state_dicts_of_dense_and_pruned_models_are_interchangeable(policy, batch):
    images, _ = batch
    pruned = timm.create_model("vim_nano", policy=str(policy))
    dense = timm.create_model("vim_nano")
    assert not torch.equal(pruned(images), dense(images))
    dense.load_state_dict(pruned.state_dict())
    ssmprune.remove_policy(pruned)
    assert torch.equal(pruned(images), dense(images))
    other = timm.create_model("vim_nano", policy=str(policy))
    other.load_state_dict(dense.state_dict())
    ssmprune.apply_policy(dense, other.plan.policy)
    assert torch.equal(other(images), dense(images))


def test_timm_loads_a_checkpoint_into_a_pruned_model(policy, batch):
    path = str(shipped_checkpoint("vim_nano"))
    loaded = timm.create_model("vim_nano", policy=str(policy), checkpoint_path=path).eval()
    ours = ssmprune.create_model("vim_nano", path, policy).eval()
    assert torch.equal(loaded(batch[0]), ours(batch[0]))


@pytest.mark.slow
def test_compiled_model_computes_and_learns_the_same(policy, batch):
    images, labels = batch
    model = timm.create_model("vim_nano", policy=str(policy))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    F.cross_entropy(model(images), labels).backward()
    expected = model.head.weight.grad.clone()
    model.zero_grad()
    loss = F.cross_entropy(compiled(images), labels)
    loss.backward()
    assert torch.allclose(model.head.weight.grad, expected, rtol=1e-5, atol=1e-7)
    assert compiled.state_dict().keys() == {f"_orig_mod.{name}" for name in model.state_dict()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_inductor_computes_the_same(policy, batch):
    model = timm.create_model("vim_nano", policy=str(policy)).eval()
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True)
        assert torch.allclose(compiled(batch[0]), model(batch[0]), rtol=1e-4, atol=1e-5)


REPLICA = """
import json, sys
import timm, torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
import ssmprune
from ssmprune.data import open_stream
rank, store, policy = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank)
model = DistributedDataParallel(timm.create_model("vim_nano", policy=policy))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
stream = open_stream("digits", image_size=(48, 48), channels=1, batch_size=4)
for _, (images, labels) in zip(range(2), stream.batches(0, rank, 2)):
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
print(json.dumps(model.module.head.weight.flatten().tolist()[:50]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ddp_makes_the_steps_of_one_process(policy, tmp_path):
    call = [str(tmp_path / "store"), str(policy)]
    processes = [
        subprocess.Popen([sys.executable, "-c", REPLICA, str(rank), *call], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    weights = [json.loads(process.communicate()[0]) for process in processes]
    model = timm.create_model("vim_nano", policy=str(policy))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    stream = open_stream("digits", image_size=(48, 48), channels=1, batch_size=4)
    for _, (images, labels) in zip(range(2), stream.batches(), strict=False):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    expected = model.head.weight.flatten().tolist()[:50]
    assert weights[0] == weights[1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, on a machine of its users' choice
def test_lightning_fits_a_pruned_model(policy, batch, tmp_path):
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = timm.create_model("vim_nano", policy=str(policy))
            self.losses = []

        def training_step(self, part, index):
            loss = F.cross_entropy(self.model(part[0]), part[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=2e-3)

    classifier = Classifier()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(classifier, DataLoader([batch] * 10, batch_size=None))
    assert len(classifier.losses) == 10
    assert classifier.losses[-1] < 0.7 * classifier.losses[0]
    path = next(tmp_path.rglob("*.ckpt"))
    weights = torch.load(path, weights_only=True)["state_dict"]
    dense = timm.create_model("vim_nano")
    dense.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
