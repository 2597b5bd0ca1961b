"""PlainMamba against the official implementation, activation by activation."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import ssmprune
from ssmprune.errors import UsageError
from ssmprune.models.plain_mamba import GridTokens, PlainMamba
from ssmprune.models.plain_mamba_config import PlainMambaConfig
from tests.conftest import relative_error


@pytest.fixture(scope="module")
def golden(load_golden):
    return load_golden("plainmamba_tiny_config.npz")


def build(golden, dtype: torch.dtype) -> PlainMamba:
    config = PlainMambaConfig(
        name="golden",
        image_size=(40, 32),
        patch_size=8,
        num_convs=1,
        dw_layers=(0,),
        embed_dim=32,
        depth=4,
        d_state=8,
        num_classes=10,
    )
    model = PlainMamba(config).to(dtype).eval()
    weights = golden.under("param/")
    model.load_state_dict({k.removeprefix("backbone."): v for k, v in weights.items()})
    return model


def directions(tokens: GridTokens):
    """Each direction's walk and sense, in the official order."""
    return [(walk, reverse) for walk in tokens.walks for reverse in (False, True)]


@torch.no_grad()
def activations(model: PlainMamba, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every activation that the goldens hold, walked layer by layer as `encode` does."""
    found = {"patch_embed.stem": model.patch_embed.stem(images)}
    found["patch_embed"] = model.patch_embed(images).flatten(2).transpose(1, 2)
    hidden, grid = model.embed_grid(images)
    found["tokens_in"] = hidden
    tokens = GridTokens(grid, hidden.device)
    for index, layer in enumerate(model.layers):
        name, mixer = f"layers.{index}", layer.mamba
        normed = layer.norm(hidden)
        mixed = mixer(normed, tokens)
        x, _ = mixer.in_proj(normed).chunk(2, dim=-1)
        u = F.silu(tokens.collect(mixer.conv2d(tokens.lay_out(x))))
        for number, (walk, reverse) in enumerate(directions(tokens)):
            inputs = mixed.inputs.backwards() if reverse else mixed.inputs
            visited = u[:, walk.order]
            y = mixer.scan(visited, inputs, walk, reverse)
            B = inputs.B + mixer.direction_Bs[walk.moves[reverse]]
            arrays = {"": y, "_u": visited, "_B": B}
            for suffix, array in arrays.items():
                along = array.flip(1) if reverse else array
                found[f"{name}.scan{number}{suffix}"] = along.transpose(1, 2)
        if index == 0:
            found[f"{name}.delta_raw"] = mixed.inputs.delta.transpose(1, 2)
            found[f"{name}.C"] = mixed.inputs.C.transpose(1, 2)
        mixer_out = mixer.out_proj(mixed.gated)
        found[f"{name}.normed"], found[f"{name}.gated_sum"] = normed, mixed.gated
        found[f"{name}.mixer_out"] = mixer_out
        found[f"{name}.before_dwconv"] = hidden + mixer_out
        hidden = layer.smooth(hidden + mixer_out, tokens)
        found[f"{name}.out"] = hidden
    stream = model.forward_features(images)
    found["final_norm"], found["pooled"] = stream.hidden, stream.hidden.mean(1)
    found["logits"] = model(images)
    return found


@pytest.mark.parametrize("input_", ["", "_alt"])
@pytest.mark.parametrize(
    ("dtype", "limit", "logits"), [("float64", 1e-10, 1e-10), ("float32", 2e-5, 1e-5)]
)
def test_every_activation_equals_the_official_model(golden, input_, dtype, limit, logits):
    model = build(golden, getattr(torch, dtype))
    found = activations(model, golden.arrays[f"x{input_}"].to(getattr(torch, dtype)))
    expected = golden.under(f"f64{input_}/")
    assert len(expected) > 1 and set(expected) <= set(found)
    for name, value in expected.items():
        error = relative_error(found[name], value)
        assert error <= (logits if name == "logits" else limit), name


@pytest.mark.parametrize(("suffix", "grid"), [("", (5, 4)), ("_alt", (3, 6))])
def test_orders_and_moves_are_the_official_ones(golden, suffix, grid):
    walks = directions(GridTokens(grid, torch.device("cpu")))
    orders = [walk.order.flip(0) if reverse else walk.order for walk, reverse in walks]
    moves = [walk.moves[r].flip(0) if r else walk.moves[r] for walk, r in walks]
    assert torch.equal(torch.stack(orders), golden.arrays[f"scan_orders{suffix}"])
    assert torch.equal(torch.stack(moves), golden.arrays[f"scan_directions{suffix}"])
    for walk, _ in walks:
        assert torch.equal(walk.order[walk.place], torch.arange(len(walk.order)))


def test_features_that_patches_do_not_divide_are_padded_below_and_on_the_right(golden):
    model = build(golden, torch.float64)
    embed, images = model.patch_embed, torch.randn(2, 3, 35, 26, dtype=torch.float64)
    features = embed.convs(embed.stem(images))  # 18 x 13, where a patch is 4 x 4
    padded = torch.zeros(2, 64, 20, 16, dtype=torch.float64)
    padded[:, :, :18, :13] = features
    assert torch.allclose(embed(images), embed.projection(padded), rtol=0, atol=1e-12)
    assert model(images).shape == (2, 10)


def test_pruned_model_refuses_images_of_another_size():
    model = ssmprune.create_model("plainmamba_l1", policy="uniform_plainmamba_l1", image_size=32)
    with pytest.raises(UsageError, match=r"\(2, 2\) patches under a policy, got \(2, 1\)"):
        model(torch.zeros(1, 3, 32, 16))


def test_position_embedding_of_another_grid_gives_the_official_model_at_its_size(golden):
    """Resized once at loading, or by the official model in every forward: the same."""
    square = golden.under("param/")["backbone.pos_embed"][:, :16]  # 4 x 4
    config = replace(build(golden, torch.float32).config, image_size=(32, 32))
    official = PlainMamba(config).double().eval()
    weights = official.state_dict() | {"pos_embed": square.double()}
    official.load_state_dict(weights)
    wide = PlainMamba(replace(config, image_size=(24, 48))).double().eval()
    wide.load_state_dict(wide.adapt_weights(weights))
    images = golden.arrays["x_alt"].double()
    assert relative_error(wide(images), official(images)) <= 1e-12
