"""Which patches a policy keeps, as it is shown to people."""

import pytest
import torch

from ssmprune import Policy, create_model
from ssmprune.models.zoo import find_config
from ssmprune.pruning.kept import kept_patches

STAGES = [{"layer": 1, "keep_ratio": 0.7}, {"layer": 3, "keep_count": 20}]


def pruned(stages=STAGES):
    torch.manual_seed(0)
    return create_model("vim_nano", policy=Policy(model="vim_nano", stages=stages))


def test_kept_patches_are_as_many_as_the_policy_says_and_never_come_back():
    model, images = pruned(), torch.randn(3, 1, 48, 48)
    _, (first, second) = kept_patches(model, images)
    assert [(first.layer, first.count), (second.layer, second.count)] == [(1, 45), (3, 20)]
    assert first.mask.shape == second.mask.shape == (3, 8, 8)
    assert (first.mask.sum((1, 2)) == 45).all() and (second.mask.sum((1, 2)) == 20).all()
    assert not (second.mask & ~first.mask).any()


def test_kept_patches_are_those_that_leave_the_model():
    model, images = pruned(), torch.randn(2, 1, 48, 48)
    _, stages = kept_patches(model, images)
    stream = model.forward_features(images)
    cls = model.config.prefix_positions[0]
    for mask, positions in zip(stages[-1].mask, stream.positions.tolist(), strict=True):
        patches = [p - (p > cls) for p in positions if p != cls]
        assert mask.flatten().nonzero().flatten().tolist() == patches


def test_watching_changes_no_logit_and_ends():
    model, images = pruned(), torch.randn(2, 1, 48, 48)
    logits, _ = kept_patches(model, images)
    with torch.inference_mode():
        assert torch.equal(model(images), logits)


@pytest.mark.parametrize("stages", [[], [{"layer": 2, "keep_ratio": 1.0}]])
def test_stages_that_remove_nothing_are_not_shown(stages):
    assert kept_patches(pruned(stages), torch.randn(1, 1, 48, 48))[1] == ()


def test_kept_patches_of_a_grid_policy_are_the_cells_that_its_blocks_scan():
    policy = Policy(
        model="vmamba_tiny_s1l8", reduction="grid", stages=[{"layer": 9, "keep_ratio": 0.5}]
    )
    model = create_model("vmamba_tiny_s1l8", policy=policy, image_size=64)
    _, [stage] = kept_patches(model, torch.randn(2, 3, 64, 64))
    rows, columns = policy.stages[0].keep_grid(*model.config.block_grids[9])
    assert (stage.layer, stage.count) == (9, rows * columns)
    assert stage.mask.shape == (2, *model.config.block_grids[9])
    assert (stage.mask[0].any(1).sum(), stage.mask[0].any(0).sum()) == (rows, columns)
    assert find_config("vmamba_tiny_s1l8").block_grids[9] != model.config.block_grids[9]


MERGING = [
    {"layer": 0, "keep_ratio": 0.6, "reduce": "merge"},
    {"layer": 2, "keep_count": 28, "reduce": "merge", "match": "score"},
    {"layer": 3, "keep_count": 20},
]


def test_patches_of_a_merged_token_are_told_together_and_leave_together():
    _, (first, second, last) = kept_patches(pruned(MERGING), torch.randn(3, 1, 48, 48))
    assert [stage.count for stage in (first, second, last)] == [39, 28, 20]
    assert [stage.merged for stage in (first, second, last)] == [25, 11, 0]
    assert first.shares and last.shares and first.mask.all() and second.mask.all()
    for image in range(3):
        once, twice = first.shared(image), second.shared(image)
        assert sum(len(group) - 1 for group in once) == 25
        assert sum(len(group) - 1 for group in twice) == 25 + 11
        assert all(any({*group} <= {*whole} for whole in twice) for group in once)
        assert all(group in twice for group in last.shared(image))


def test_similarity_is_told_of_stages_that_merge():
    _, (first, second, last) = kept_patches(pruned(MERGING), torch.randn(3, 1, 48, 48))
    assert first.similarity.shape == (3, 25) and second.similarity.shape == (3, 11)
    assert first.mean_similarity == pytest.approx(first.similarity.mean().item())
    assert last.similarity is None and last.mean_similarity is None


def test_no_token_of_a_dropping_policy_stands_for_several_patches():
    _, stages = kept_patches(pruned(), torch.randn(2, 1, 48, 48))
    for stage in stages:
        assert not stage.shares and stage.merged == 0 and stage.shared(0) == stage.shared(1) == []


def test_tokens_that_leave_for_good_in_a_merge_are_not_counted_as_merged():
    stages = [{"layer": 1, "keep_count": 40, "reduce": "merge", "match": "score"}]
    policy = Policy(model="vim_nano", stages=stages, merge={"fate": "half"})
    torch.manual_seed(0)
    _, [stage] = kept_patches(create_model("vim_nano", policy=policy), torch.randn(2, 1, 48, 48))
    assert (stage.count, stage.merged) == (40, 12)
    assert (stage.mask.sum((1, 2)) == 52).all()
