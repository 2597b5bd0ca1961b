"""What every way to merge tokens has to hold, in every family whose tokens can leave."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ssmprune
from ssmprune.errors import PolicyError
from ssmprune.measure.flops import count_flops
from ssmprune.measure.trace import trace_flops
from ssmprune.policy import Alignment, Merge, Policy, Scorer, Stage
from ssmprune.pruning.kept import kept_patches
from ssmprune.pruning.matching import MATCHES
from ssmprune.pruning.metrics import METRICS
from tests.contracts.conftest import FAMILIES

every_match = pytest.mark.parametrize("match", MATCHES)


def policy(family, *stages: Stage, merge: Merge | None = None, **alignment) -> Policy:
    settings = Alignment(**{"conv": family.conv[-1], **alignment})
    return Policy(
        model=family.config.name,
        stages=stages,
        scorer=Scorer(name="l1"),
        merge=merge or Merge(),
        alignment=settings,
    )


def merging(layer: int, ratio: float, match: str | None = None) -> Stage:
    return Stage(layer=layer, keep_ratio=ratio, reduce="merge", match=match)


def left(model, images):
    """The stream behind the last stage."""
    with torch.no_grad():
        return model.encode(images, restore=False)


@st.composite
def mixtures(draw, family):
    """Policies with merging and dropping stages, and all settings."""
    layers = draw(st.sets(st.integers(0, family.config.depth - 1), min_size=1))
    stages = []
    for layer in sorted(layers):
        ratio = draw(st.sampled_from([0.6, 0.7, 0.85, 1.0]))
        if draw(st.booleans()):
            stages.append(merging(layer, ratio, draw(st.sampled_from([None, *MATCHES]))))
        else:
            stages.append(Stage(layer=layer, keep_ratio=ratio))
    assume(any(stage.reduce == "merge" for stage in stages))
    scored = any(stage.match == "score" for stage in stages)
    settings = Merge(
        metric=draw(st.sampled_from([*METRICS])),
        weight=draw(st.sampled_from(["size", "equal"])),
        protect=draw(st.integers(0, 2)) if family.config.prefix_positions else 0,
        untouched=draw(st.sampled_from([0.0, 0.3])) if scored else 0.0,
        fate=draw(st.sampled_from(["merge", "half"])) if scored else "merge",
    )
    alignment = {
        "decay": draw(st.sampled_from(["none", "zero_input", "neighbor"])),
        "conv": draw(st.sampled_from([*family.conv, "runs"])),
        "sizes": draw(st.sampled_from(["own", "scaled", "exact"])),
    }
    try:
        found = policy(family, *stages, merge=settings, **alignment)
    except ValueError:
        assume(False)
    assume(not found.faults(family.config))
    return found


def drawn(built, data):
    """A mixture, and the stream behind its last stage."""
    family, model, images = built
    found = data.draw(mixtures(family))
    ssmprune.apply_policy(model, found)
    return found, left(model, images)


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def built(request):
    return request.param, request.param.build(), request.param.images()


@given(st.data())
@settings(max_examples=6, deadline=None)
def test_closed_form_of_the_flops_equals_the_trace_for_every_mixture(built, data):
    family, model, _ = built
    found = data.draw(mixtures(family))
    ssmprune.apply_policy(model, found)
    assert trace_flops(model).by_operator() == count_flops(family.config, found).by_operator()


@given(st.data())
@settings(max_examples=6, deadline=None)
def test_each_position_is_in_one_token_or_has_left(built, data):
    family, *_ = built
    found, stream = drawn(built, data)
    effective = found.effective_stages(family.config)
    assert len(stream.trail) == len(effective)
    prefix = len(family.config.prefix_positions)
    dropped = found.merge.fate == "half" or any(stage.reduce == "drop" for stage, _ in effective)
    for reduced, (_, kept) in zip(stream.trail, effective, strict=True):
        assert reduced.positions.shape[1] == kept + prefix
        assert (reduced.positions.diff(dim=1) > 0).all()
        if reduced.members is None:
            continue
        own = reduced.members.gather(1, reduced.positions)
        assert torch.equal(own, torch.arange(kept + prefix).expand(own.shape))
        assert dropped or (reduced.members >= 0).all()
    if stream.members is not None:
        sizes = stream.sizes(torch.float64)
        assert torch.equal(sizes.sum(1), (stream.members >= 0).sum(1).double())
        for position in family.config.prefix_positions:
            alone = stream.positions == position
            assert (sizes[alone] == 1).all() and (alone.sum(1) == 1).all()


@given(st.data())
@settings(max_examples=6, deadline=None)
def test_whole_grid_has_the_value_of_the_token_that_each_patch_is_in(built, data):
    family, model, images = built
    _, stream = drawn(built, data)
    with torch.no_grad():
        grid = model.forward_features(images, restore=True).flatten(1, 2)
    assume(stream.members is not None)
    prefix = family.config.prefix_positions
    patches = [p for p in range(family.config.num_tokens) if p not in prefix]
    members = stream.members[:, patches]
    values = ssmprune.tokens.take(stream.hidden, members.clamp(min=0))
    assert torch.allclose(grid[members >= 0], values[members >= 0], rtol=0, atol=1e-12)
    assert grid.isfinite().all()


@every_match
def test_neighbours_stay_in_rows_that_do_not_meet(built, match):
    family, model, images = built
    ssmprune.apply_policy(model, policy(family, merging(0, 0.6, match), merging(1, 0.7, match)))
    members = left(model, images).members
    falls = (members.diff(dim=1) < 0).any()
    assert falls == (match != "neighbors")


@every_match
@pytest.mark.parametrize("protect", [1, 3])
def test_protected_places_beside_the_class_token_are_never_merged(match, protect):
    family = FAMILIES["vim"]
    model, images = family.build(), family.images()
    found = policy(family, merging(0, 0.7, match), merge=Merge(protect=protect))
    ssmprune.apply_policy(model, found)
    stream = left(model, images)
    middle = family.config.prefix_positions[0]
    near = (stream.positions - middle).abs() <= protect
    assert (near.sum(1) == 2 * protect + 1).all()
    assert (stream.sizes(torch.float64)[near] == 1).all()


@every_match
@torch.no_grad()
def test_merged_token_is_the_mean_of_its_patches(built, match):
    """Behind one stage, so that the tokens behind the block are known from the dense model."""
    family, model, images = built
    last = family.config.depth - 1
    ssmprune.remove_policy(model)
    seen = {}
    hook = (model.norm_f if hasattr(model, "norm_f") else model.ln1).register_forward_pre_hook(
        lambda module, args: seen.update(hidden=args[0])
    )
    model(images)
    dense = seen["hidden"]
    ssmprune.apply_policy(model, policy(family, merging(last, 0.6, match)))
    stream = model.encode(images, restore=False)
    hook.remove()
    for image in range(len(images)):
        for token in range(stream.members.max() + 1):
            mean = dense[image][stream.members[image] == token].mean(0)
            assert torch.allclose(seen["hidden"][image, token], mean, rtol=0, atol=1e-12)


@every_match
@torch.no_grad()
def test_weight_of_a_token_is_what_it_stands_for(built, match):
    """Merging twice by size is the mean over all patches, by equal weights it is another one."""
    family, model, images = built
    stages = merging(0, 0.6, match), merging(1, 0.6, match)
    by_size, equal = (
        left_by(model, policy(family, *stages, merge=Merge(weight=weight)), images)
        for weight in ("size", "equal")
    )
    assert not torch.equal(by_size, equal)


def left_by(model, found, images):
    ssmprune.apply_policy(model, found)
    return left(model, images).hidden


@torch.no_grad()
def test_equal_tokens_are_merged_in_the_same_order_in_every_batch(built):
    family, model, images = built
    ssmprune.apply_policy(model, policy(family, merging(0, 0.6), merging(1, 0.7, "neighbors")))
    flat = torch.ones_like(images)
    together = model.encode(flat, restore=False).positions
    assert torch.equal(model.encode(flat[:1], restore=False).positions, together[:1])


@every_match
def test_gradients_reach_every_parameter(built, match):
    family, model, images = built
    stages = merging(0, 0.7, match), Stage(layer=1, keep_ratio=0.8)
    ssmprune.apply_policy(model.train(), policy(family, *stages))
    model.zero_grad()
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    model.eval()


@every_match
def test_stages_that_keep_everything_are_bit_equal_to_dense(built, match):
    family, model, images = built
    with torch.no_grad():
        ssmprune.remove_policy(model)
        dense = model(images)
        ssmprune.apply_policy(model, policy(family, merging(0, 1.0, match)))
        assert torch.equal(model(images), dense)


@torch.no_grad()
def test_sizes_and_runs_change_nothing_before_anything_is_merged(built):
    """A policy that drops first: up to its merging stage all sizes are 1."""
    family, model, images = built
    last = family.config.depth - 1
    stages = Stage(layer=0, keep_ratio=0.7), merging(last, 0.7)
    found = [
        left_by(model, policy(family, *stages, sizes=sizes, conv=conv), images)
        for sizes, conv in (("own", family.conv[0]), ("exact", family.conv[0]))
    ]
    assert torch.equal(*found)


def test_groups_of_a_picture_are_the_tokens(built):
    family, model, images = built
    ssmprune.apply_policy(model, policy(family, merging(0, 0.6), Stage(layer=1, keep_ratio=0.5)))
    _, (merged, dropped) = kept_patches(model, images)
    assert merged.mask.all() and not dropped.mask.all()
    counts = [kept for _, kept in model.plan.policy.effective_stages(family.config)]
    assert [merged.count, dropped.count] == counts
    assert merged.similarity.shape == (len(images), family.config.num_patches - counts[0])
    assert (merged.similarity.abs() <= 1 + 1e-9).all() and dropped.similarity is None


MODEL = "model: vim_nano\nstages:\n"
FAULTS = {
    "more than half": (
        "schema: ssmprune.policy/2\n" + MODEL + "- {layer: 0, keep_ratio: 0.4, reduce: merge}\n",
        "`match: alternate` can merge at most 32 of the 64 patch tokens",
    ),
    "one token": (
        "schema: ssmprune.policy/2\n"
        + MODEL
        + "- {layer: 0, keep_count: 1}\n"
        + "- {layer: 1, keep_ratio: 0.5, reduce: merge, match: neighbors}\n"
        + "- {layer: 2, keep_count: 2, reduce: merge}\n",
        "keep_count must not exceed the 1 patch tokens",
    ),
    "no pair is left": (
        "schema: ssmprune.policy/2\nmerge: {protect: 40}\n"
        + MODEL
        + "- {layer: 0, keep_ratio: 0.9, reduce: merge, match: neighbors}\n",
        "`match: neighbors` with protect 40 can merge at most 0 of the 64",
    ),
    "grid": (
        "schema: ssmprune.policy/2\nmodel: vmamba_tiny_s1l8\nreduction: grid\nstages:\n"
        "- {layer: 0, keep_ratio: 0.5, reduce: merge}\n",
        "reduce must not be given with `reduction: grid`, got merge",
    ),
    "older schema": (
        "schema: ssmprune.policy/1\n" + MODEL + "- {layer: 0, keep_ratio: 0.7, reduce: merge}\n",
        "reduce must stand in a policy of ssmprune.policy/2, got 'merge' in one of",
    ),
    "newer schema": (
        "schema: ssmprune.policy/3\n" + MODEL + "- {layer: 0, keep_ratio: 0.7}\n",
        "a higher one is of a newer ssmprune",
    ),
    "match without merging": (
        "schema: ssmprune.policy/2\n" + MODEL + "- {layer: 0, keep_ratio: 0.7, match: score}\n",
        "match must stand beside `reduce: merge`",
    ),
    "sizes without merging": (
        "schema: ssmprune.policy/2\nalignment: {sizes: exact}\n"
        + MODEL
        + "- {layer: 0, keep_ratio: 0.7}\n",
        "sizes must not be exact where no stage merges tokens",
    ),
    "fate without scores": (
        "schema: ssmprune.policy/2\nmerge: {fate: half}\n"
        + MODEL
        + "- {layer: 0, keep_ratio: 0.7, reduce: merge}\n",
        "fate must not be given where no stage has `match: score`",
    ),
    "no class token": (
        "schema: ssmprune.policy/2\nmodel: plainmamba_l1\nmerge: {protect: 1}\n"
        "alignment: {conv: position}\nstages:\n- {layer: 0, keep_ratio: 0.7, reduce: merge}\n",
        "protect must be 0 on plainmamba_l1, which has no class token",
    ),
}


@pytest.mark.parametrize(("text", "told"), FAULTS.values(), ids=FAULTS)
def test_policies_that_cannot_be_are_refused_in_one_message(text, told):
    with pytest.raises(PolicyError) as refused:
        Policy.from_yaml(text)
    assert told in str(refused.value)


@pytest.mark.parametrize("match", MATCHES)
def test_policy_file_gives_the_policy_back(match):
    family = FAMILIES["vim"]
    found = policy(family, merging(0, 0.7, match), Stage(layer=2, keep_ratio=0.8), sizes="exact")
    text = found.to_yaml()
    assert text.startswith("schema: ssmprune.policy/2")
    assert Policy.from_yaml(text) == found


@given(st.integers(2, 40), st.integers(0, 3), st.booleans(), st.sampled_from([*MATCHES]), st.data())
@settings(max_examples=100, deadline=None)
def test_as_many_pairs_are_found_as_a_match_promises(patches, protect, has_prefix, match, data):
    """Wherever the class token stands."""
    from ssmprune.pruning.matching import Choice
    from ssmprune.pruning.scorers import Features
    from ssmprune.tokens import TokenStream

    most = MATCHES[match].most(patches, protect, has_prefix)
    assume(most > 0)
    middle = (data.draw(st.integers(0, patches)),) if has_prefix else ()
    length = patches + len(middle)
    hidden = torch.randn(2, length, 3, generator=torch.Generator().manual_seed(patches))
    stream = TokenStream.begin(hidden, (1, patches), middle)
    features = Features(hidden, (), stream.positions, stream.prefix_mask(), 0)
    unit = hidden / hidden.norm(dim=2, keepdim=True)
    choice = Choice(stream, features, unit, Merge(protect=protect), Scorer(name="l1"))
    pairs = MATCHES[match].pairs(choice, most)
    assert (pairs.similarity.abs() <= 1 + 1e-6).all() and (pairs.targets >= 0).all()
    for image in range(2):
        sources, targets = pairs.sources[image].tolist(), pairs.targets[image].tolist()
        if match == "neighbors":
            assert all(abs(a - b) == 1 for a, b in zip(sources, targets, strict=True))
        assert len(set(sources)) == most and not {*sources} & {*targets}
        for one in (*sources, *targets):
            assert all(abs(one - place) > protect for place in middle)
