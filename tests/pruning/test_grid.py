"""Grid policies: which rows and columns are scanned, with what result, and what is refused."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmprune import Policy, apply_policy, remove_policy
from ssmprune.errors import PolicyError
from ssmprune.measure.flops import count_flops
from ssmprune.measure.trace import trace_flops
from ssmprune.models.vmamba import VMamba
from ssmprune.models.vmamba_config import VMambaConfig
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Scorer, Stage
from ssmprune.pruning.grid import GridStep
from ssmprune.pruning.subset import line_groups

NAMES = ("vmamba_tiny_s1l8", "vanilla_vmamba_tiny")
RATIOS = st.integers(1, 1000).map(lambda n: n / 1000)


def small(name: str) -> VMambaConfig:
    """The model in small: grids of 10 x 14, 5 x 7, 3 x 4 and 2 x 2, with 2, 2, 8 or 9, 2 blocks."""
    return replace(find_config(name), widths=(8, 12, 16, 24), image_size=(40, 56), num_classes=5)


def grid_policy(model: str, ratios: dict[int, float]) -> Policy:
    stages = tuple(Stage(layer=n, keep_ratio=ratios[n]) for n in sorted(ratios))
    return Policy(model=model, reduction="grid", stages=stages)


@pytest.fixture(scope="module", params=NAMES)
def model(request) -> VMamba:
    torch.manual_seed(0)
    return VMamba(small(request.param)).double().eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 40, 56, dtype=torch.float64, generator=torch.manual_seed(1))


@given(ratio=RATIOS, height=st.integers(1, 70), width=st.integers(1, 70))
def test_rows_and_columns_are_the_fewest_whose_share_reaches_the_root_of_the_ratio(
    ratio, height, width
):
    exact = Fraction(str(ratio))
    for kept, lines in zip(
        Stage(layer=0, keep_ratio=ratio).keep_grid(height, width), (height, width), strict=True
    ):
        assert 1 <= kept <= lines
        assert Fraction(kept, lines) ** 2 >= exact > Fraction(kept - 1, lines) ** 2


@given(st.integers(1, 70).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_every_line_takes_the_result_of_the_nearest_kept_one(sizes):
    count, kept = sizes
    lines, group = line_groups(count, kept)
    assert len(lines) == len(set(lines)) == kept
    for line in range(count):
        assert abs(lines[group[line]] - line) == min(abs(other - line) for other in lines)
    sizes_of_groups = {group.count(index) for index in range(kept)}
    assert max(sizes_of_groups) - min(sizes_of_groups) <= 1


@torch.no_grad()
def test_reduced_block_scans_the_subset_and_spreads_its_result(model):
    """Against the plain order of steps: subset, scan, spread, and only then norm and projection."""
    op = model.layers[0].blocks[0].op
    normed = torch.randn(2, 10, 14, 8, dtype=torch.float64, generator=torch.manual_seed(2))
    rows, row_group = line_groups(10, 6)
    columns, column_group = line_groups(14, 8)
    x, z = op.project(normed)
    y = op.scan_grid(x[:, rows][:, :, columns])[:, row_group][:, :, column_group]
    gate = 1 if z is None else torch.nn.functional.silu(z)
    expected = op.out_proj(op.out_norm(y) * gate)
    torch.testing.assert_close(op(normed, GridStep(Stage(layer=0, keep_ratio=0.3))), expected)


@torch.no_grad()
def test_pooled_block_scans_the_mean_of_each_group(model):
    op = model.layers[0].blocks[0].op
    normed = torch.randn(2, 10, 14, 8, dtype=torch.float64, generator=torch.manual_seed(2))
    row_group, column_group = line_groups(10, 6)[1], line_groups(14, 8)[1]
    x, z = op.project(normed)
    means = torch.zeros(2, 6, 8, x.shape[3], dtype=torch.float64)
    for row in range(6):
        for column in range(8):
            rows = [n for n in range(10) if row_group[n] == row]
            columns = [n for n in range(14) if column_group[n] == column]
            means[:, row, column] = x[:, rows][:, :, columns].mean((1, 2))
    y = op.scan_grid(means)[:, row_group][:, :, column_group]
    gate = 1 if z is None else torch.nn.functional.silu(z)
    expected = op.out_proj(op.out_norm(y) * gate)
    step = GridStep(Stage(layer=0, keep_ratio=0.3), "mean")
    torch.testing.assert_close(op(normed, step), expected)


@given(ratio=RATIOS, height=st.integers(1, 70), width=st.integers(1, 70))
def test_one_axis_keeps_every_line_of_the_other(ratio, height, width):
    for axes, expected in (
        ("rows", (math.ceil(Fraction(str(ratio)) * height), width)),
        ("columns", (height, math.ceil(Fraction(str(ratio)) * width))),
    ):
        assert Stage(layer=0, keep_ratio=ratio, axes=axes).keep_grid(height, width) == expected


@pytest.mark.parametrize("pool", ["middle", "mean"])
@given(data=st.data())
@settings(max_examples=3, deadline=None)
def test_closed_form_of_the_flops_equals_the_trace_for_every_pool_and_axis(model, pool, data):
    ratios = data.draw(st.dictionaries(st.integers(0, 11), RATIOS, min_size=1, max_size=3))
    stages = tuple(
        Stage(
            layer=layer,
            keep_ratio=ratios[layer],
            axes=data.draw(st.sampled_from(["both", "rows", "columns"])),
        )
        for layer in sorted(ratios)
    )
    policy = Policy(model=model.config.name, reduction="grid", stages=stages, pool=pool)
    apply_policy(model, policy)
    assert trace_flops(model).by_operator() == count_flops(model.config, policy).by_operator()
    assert Policy.from_yaml(policy.to_yaml()) == policy
    remove_policy(model)


def test_pool_and_axes_are_refused_where_tokens_leave():
    text = "schema: ssmprune.policy/2\nmodel: vim_nano\npool: mean\nstages:\n"
    with pytest.raises(PolicyError) as refused:
        Policy.from_yaml(f"{text}- {{layer: 0, keep_ratio: 0.5, axes: rows}}\n")
    assert "pool must not be given without `reduction: grid`, got mean" in str(refused.value)
    assert "axes must not be given without `reduction: grid`, got rows" in str(refused.value)


@torch.no_grad()
def test_policy_that_scans_everything_is_the_dense_model_bit_for_bit(model, images):
    dense = model(images)
    apply_policy(model, grid_policy(model.config.name, {0: 1.0, 5: 1.0, 13: 0.9}))
    assert torch.equal(model(images), dense)  # the last blocks have 2 x 2 tokens
    apply_policy(model, grid_policy(model.config.name, {0: 0.5}))
    assert not torch.allclose(model(images), dense)
    remove_policy(model)
    assert torch.equal(model(images), dense)


def test_gradients_reach_every_weight_of_a_reduced_model(model, images):
    apply_policy(model, grid_policy(model.config.name, dict.fromkeys(range(12), 0.4)))
    model(images).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.any(), name
    model.zero_grad()
    remove_policy(model)


def test_tokens_of_a_grid_policy_are_those_that_each_block_scans():
    policy = grid_policy("vmamba_tiny_s1l8", {1: 0.25, 4: 0.5})
    config = find_config("vmamba_tiny_s1l8")
    assert policy.keep_counts(config) == (28 * 28, 10 * 10)
    assert policy.entering_tokens(config) == (
        56 * 56, 28 * 28, 28 * 28, 28 * 28, 10 * 10, *[14 * 14] * 7, *[7 * 7] * 3
    )  # fmt: skip


@given(ratios=st.dictionaries(st.integers(0, 13), RATIOS, max_size=5))
@settings(max_examples=30)
def test_grid_policy_survives_its_file_without_scorer_and_alignment(ratios):
    policy = grid_policy("vmamba_tiny_s1l8", ratios)
    text = policy.to_yaml()
    assert Policy.from_yaml(text) == policy
    assert yaml.safe_load(text).keys() == {"schema", "model", "reduction", "stages"}


def faulty(model: str = "vmamba_tiny_s1l8", **changes) -> str:
    stages = [{"layer": 2, "keep_ratio": 0.5}]
    return yaml.safe_dump({"model": model, "reduction": "grid", "stages": stages, **changes})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (faulty(reduction="tokens"), "reduction must be grid for vmamba_tiny_s1l8"),
        (faulty(reduction="tokens"), "got tokens at reduction (policy, line 2); write"),
        (faulty("vim_nano"), "reduction must be tokens for vim_nano"),
        (faulty(reduction="rows"), "reduction must be 'tokens' or 'grid', got 'rows'"),
        (faulty(stages=[{"layer": 2, "keep_count": 9}]), "keep_count must not be given with"),
        (
            faulty(stages=[{"layer": 2, "keep_ratio": 0.5, "scorer": {"name": "l1"}}]),
            "scorer must not be given with `reduction: grid`",
        ),
        (faulty(scorer={"name": "l1"}), "scorer must not be given with `reduction: grid`"),
        (faulty(alignment={"conv": "position"}), "alignment must not be given with"),
        (faulty(stages=[{"layer": 14, "keep_ratio": 0.5}]), "layer must be below 14"),
    ],
)
def test_fault_of_a_grid_policy_is_told_with_its_place_and_remedy(text, told):
    with pytest.raises(PolicyError) as caught:
        Policy.from_yaml(text)
    assert told in str(caught.value)
    assert "(policy, line" in str(caught.value) and ";" in str(caught.value)


def test_defaults_of_what_a_grid_policy_has_no_use_for_may_stand_in_its_file():
    text = faulty(scorer={"name": "clipped_sum"}, alignment={"decay": "none"})
    assert Policy.from_yaml(text) == grid_policy("vmamba_tiny_s1l8", {2: 0.5})


def test_policy_built_in_python_is_checked_alike():
    stages = (Stage(layer=0, keep_ratio=0.5),)
    with pytest.raises(ValueError, match="write `reduction: grid`"):
        Policy(model="vmamba_tiny_s1l8", stages=stages)
    with pytest.raises(ValueError, match="scorer must not be given"):
        Policy(
            model="vmamba_tiny_s1l8", reduction="grid", stages=stages, scorer=Scorer(name="delta")
        )
    with pytest.raises(ValueError, match="alignment must not be given"):
        Policy(
            model="vmamba_tiny_s1l8",
            reduction="grid",
            stages=stages,
            alignment=Alignment(decay="neighbor"),
        )
