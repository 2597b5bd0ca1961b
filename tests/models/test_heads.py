"""Classifiers of other sizes than the model's own, and none."""

from dataclasses import replace

import pytest
import timm
import torch

import ssmprune
from ssmprune.errors import CheckpointError, UsageError
from ssmprune.measure.flops import count_flops
from ssmprune.models.checkpoint_file import read_weights
from ssmprune.models.checkpoints import load_checkpoint, load_weights
from ssmprune.models.configs import with_classes
from ssmprune.models.families import build_model
from ssmprune.models.zoo import find_config
from tests.contracts.conftest import FAMILIES

CLASSES = 37
SMALL = {"widths": (8, 12, 16, 24), "image_size": (40, 56), "num_classes": 5}
CONFIGS = [family.config for family in FAMILIES.values()] + [
    replace(find_config(name), **SMALL) for name in ("vmamba_tiny_s1l8", "vanilla_vmamba_tiny")
]


@pytest.fixture(params=CONFIGS, ids=lambda config: config.name)
def config(request):
    return request.param


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return ssmprune.create_model("vim_nano", num_classes=CLASSES).state_dict()


def save(content, path):
    torch.save(content, path)
    return path


@pytest.fixture
def pets(tmp_path, weights):
    """A checkpoint of `vim_nano` with 37 classes."""
    return save(weights, tmp_path / "pets.pth")


@torch.no_grad()
def test_timm_gets_pooled_features_of_a_model_without_classes():
    model = timm.create_model("vim_nano", num_classes=0).eval()
    images = torch.randn(2, 1, 48, 48)
    features = model(images)
    assert features.shape == (2, 64)
    assert torch.equal(features, model.forward_features(images).prefix_tokens()[:, 0])


@torch.no_grad()
def test_logits_are_the_classifier_on_the_features(config):
    model, bare = (build_model(c).eval() for c in (config, with_classes(config, 0)))
    weights = {k: v for k, v in model.state_dict().items() if k in bare.state_dict()}
    bare.load_state_dict(weights)
    images = torch.randn(4, config.channels, *config.image_size)
    features = bare(images)
    assert features.shape == (4, config.embed_dim)
    assert torch.equal(model.get_submodule(model.head_name)(features), model(images))


def test_flops_of_a_model_without_classes_have_no_head(config):
    bare = build_model(with_classes(config, 0))
    costs = ssmprune.profile(bare, latency=False)  # checks the closed form against a trace
    assert "head" not in costs.flops.by_operator()
    head = config.embed_dim * config.num_classes
    assert count_flops(config).flops - costs.flops.flops == head


def test_a_model_without_classes_is_profiled_under_a_policy():
    model = ssmprune.create_model("vim_nano", policy="uniform_vim_nano", num_classes=0)
    costs = ssmprune.profile(model, batch_size=1, repeats=6)
    assert costs.flops_ratio < 1 and costs.latency is not None


def test_the_checkpoint_tells_the_number_of_classes(pets, weights, caplog):
    caplog.set_level("INFO")
    model = ssmprune.create_model("vim_nano", pets)
    assert model.config.num_classes == CLASSES
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)
    assert f"{pets} has a 37-class head" in caplog.text
    head = 64 * (CLASSES - 10)
    costs = ssmprune.profile(model, latency=False)
    dense = count_flops(ssmprune.create_model("vim_nano").config)
    assert costs.flops.flops == dense.flops + head


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_every_family_takes_its_classes_from_the_checkpoint(tmp_path, prefix):
    for name in ("vim_nano", "plainmamba_l1", "vmamba_tiny_s1l8", "vanilla_vmamba_tiny"):
        state = ssmprune.create_model(name, num_classes=3).state_dict()
        path = save({prefix + key: value for key, value in state.items()}, tmp_path / "w.pth")
        assert ssmprune.create_model(name, path).config.num_classes == 3


def test_a_classifier_of_another_size_is_refused_with_both_numbers(pets):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(ssmprune.create_model("vim_nano"), pets)
    message = str(caught.value)
    for part in ("37-class head", "with 10 classes", "only the classifier differs", str(pets)):
        assert part in message
    assert "use that model" not in message and "no model of the zoo" not in message
    with pytest.raises(CheckpointError, match="with 12 classes; only the classifier differs"):
        ssmprune.create_model("vim_nano", pets, num_classes=12)


def test_a_new_classifier_stands_on_the_loaded_backbone(pets, weights, caplog):
    caplog.set_level("INFO")
    model = ssmprune.create_model("vim_nano", pets, num_classes=12, new_head=True)
    assert model.has_new_head and model.head.weight.shape == (12, 64)
    assert torch.equal(model.norm_f.weight, weights["norm_f.weight"])
    assert f"a new, random one for 12 classes; {pets} has one for 37" in caplog.text
    kept = ssmprune.create_model("vim_nano", pets, num_classes=CLASSES, new_head=True)
    assert not kept.has_new_head and torch.equal(kept.head.weight, weights["head.weight"])


def test_a_classifier_of_several_layers_stays_where_it_fits(tmp_path):
    class Deep(type(ssmprune.create_model("vim_nano"))):
        def __init__(self, config):
            super().__init__(config)
            self.head = torch.nn.Sequential(torch.nn.LayerNorm(config.embed_dim), self.head)

    config = find_config("vim_nano")
    weights = Deep(config).state_dict()
    path = save(weights, tmp_path / "deep.pth")
    model = Deep(config)
    load_weights(model, read_weights(path), new_head=True)
    assert not model.has_new_head
    assert torch.equal(model.head[1].weight, weights["head.1.weight"])
    other = Deep(with_classes(config, 3))
    load_weights(other, read_weights(path), new_head=True)
    assert other.has_new_head


def test_features_need_no_classifier_from_the_checkpoint(pets, tmp_path, weights):
    backbone = {name: value for name, value in weights.items() if not name.startswith("head.")}
    bare = save(backbone, tmp_path / "bare.pth")
    for path in (pets, bare):
        model = ssmprune.create_model("vim_nano", path, num_classes=0)
        assert torch.equal(model.cls_token, weights["cls_token"])
        assert model(torch.zeros(1, 1, 48, 48)).shape == (1, 64)
    with pytest.raises(CheckpointError, match=r"must hold a classifier, .* only that is missing"):
        ssmprune.create_model("vim_nano", bare)
    assert ssmprune.create_model("vim_nano", bare, num_classes=5, new_head=True).has_new_head


def test_a_backbone_of_another_model_is_named_whatever_its_classes(tmp_path, pets):
    with pytest.raises(
        CheckpointError, match=r"for vim_tiny_patch16_224; its weights are those of vim_nano, use"
    ):
        ssmprune.create_model("vim_tiny_patch16_224", pets)
    torch.manual_seed(0)
    other = ssmprune.create_model("vim_tiny_patch16_224", num_classes=5).state_dict()
    wrapped = save({f"model.{k}": v for k, v in other.items()}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"those of vim_tiny_patch16_224, use that model"):
        ssmprune.create_model("vim_nano", wrapped, num_classes=5, new_head=True)


def test_a_backbone_with_a_fault_is_listed_even_where_the_classifier_may_differ(pets, weights):
    torch.save({k: v for k, v in weights.items() if k != "cls_token"}, pets)
    with pytest.raises(CheckpointError, match="missing: cls_token"):
        ssmprune.create_model("vim_nano", pets, num_classes=12, new_head=True)


def test_negative_classes_are_refused():
    with pytest.raises(UsageError, match="num_classes must be at least 0, got -1"):
        timm.create_model("vim_nano", num_classes=-1)
