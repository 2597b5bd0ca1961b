"""The policy file: what it means, and what is refused."""

import math
from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ssmprune.errors import PolicyError
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Policy, Scorer, Stage, load_for
from ssmprune.pruning.scorers import scorers

PUBLISHED = """
schema: ssmprune.policy/1
model: vim_small_patch16_224
stages:
  - {layer: 4, keep_ratio: 0.8}
  - {layer: 9, keep_count: 124}
scorer: {name: clipped_sum}
alignment: {decay: zero_input, strength: 1.0, conv: position}
"""

stages = st.dictionaries(
    st.integers(0, 7), st.one_of(st.integers(1, 1000).map(lambda n: n / 1000)), max_size=5
).map(lambda found: tuple(Stage(layer=k, keep_ratio=found[k]) for k in sorted(found)))
policies = st.builds(
    Policy,
    model=st.just("vim_nano"),
    stages=stages,
    scorer=st.builds(Scorer, name=st.sampled_from(sorted(scorers.names()))),
    alignment=st.builds(
        Alignment,
        decay=st.sampled_from(["none", "zero_input", "neighbor"]),
        strength=st.floats(0, 1),
        conv=st.sampled_from(["compact", "position"]),
    ),
)


def test_example_of_the_format_counts_its_tokens():
    policy = Policy.from_yaml(PUBLISHED)
    config = find_config("vim_small_patch16_224")
    assert policy.keep_counts(config) == (157, 124)
    assert policy.entering_tokens(config) == (197,) * 5 + (158,) * 5 + (125,) * 15
    assert policy.alignment == Alignment(decay="zero_input", strength=1.0, conv="position")


@given(policy=policies)
def test_policy_survives_its_file(policy):
    assert Policy.from_yaml(policy.to_yaml()) == policy


@given(ratio=st.integers(1, 1000), tokens=st.integers(1, 5000))
def test_count_is_the_ceiling_of_the_ratio_as_written(ratio, tokens):
    kept = Stage(layer=0, keep_ratio=ratio / 1000).keep(tokens)
    assert kept == math.ceil(Fraction(ratio, 1000) * tokens)
    assert 1 <= kept <= tokens


def test_count_is_not_raised_by_binary_fractions():
    assert math.ceil(0.07 * 100) == 8
    assert Stage(layer=0, keep_ratio=0.07).keep(100) == 7


def test_policy_file_is_written_whole(tmp_path):
    policy = Policy.from_yaml(PUBLISHED)
    policy.save(tmp_path / "deep" / "policy.yaml")
    assert Policy.load(tmp_path / "deep" / "policy.yaml") == policy
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["policy.yaml"]


def nano(**changes) -> str:
    data = {"model": "vim_nano", "stages": [{"layer": 1, "keep_ratio": 0.5}], **changes}
    return yaml.safe_dump(data)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (nano(modle=1), "unknown key 'modle' at modle (policy, line 2); did you mean 'model'?"),
        (nano(stagess=1), "did you mean 'stages'?"),
        (nano(model="vim_nan"), "unknown model 'vim_nan' at model (policy, line 1); did you mean"),
        (nano(scorer={"name": "l3"}), "unknown scorer 'l3' at scorer.name"),
        (nano(scorer={"name": "random", "seed": 2**64}), "seed must be less than or equal to 4294"),
        (nano(schema="ssmprune.policy/3"), "a higher one is of a newer ssmprune"),
        ("model: vim_nano", "key 'stages' is required"),
        (nano(stages=3), "stages must be"),
        (nano(stages=["x"]), "entry 0 must be"),
        (nano(stages=[{"layer": 1}]), "either keep_ratio or keep_count, got neither at stages[0]"),
        (nano(stages=[{"layer": 1, "keep_ratio": 0.5, "keep_count": 3}]), "got both"),
        (nano(stages=[{"layer": 1, "keep_ratio": 0}]), "keep_ratio must be greater than 0, got 0"),
        (nano(stages=[{"layer": 1, "keep_ratio": 1.2}]), "less than or equal to 1, got 1.2"),
        (nano(stages=[{"layer": 1, "keep_ratio": "half"}]), "must be a valid number, got 'half'"),
        (nano(stages=[{"layer": 1, "keep_ratio": True}]), "must be a valid number, got True"),
        (nano(stages=[{"layer": 1.5, "keep_ratio": 0.5}]), "must be a valid integer, got 1.5"),
        (nano(stages=[{"layer": -1, "keep_ratio": 0.5}]), "layer must be greater than or equal"),
        (nano(stages=[{"layer": 8, "keep_ratio": 0.5}]), "layer must be below 8, the depth of"),
        (nano(stages=[{"layer": 1, "keep_count": 65}]), "must not exceed the 64 patch tokens"),
        (nano(stages=[{"layer": 1, "keep_count": 0}]), "keep_count must be greater than or equal"),
        (
            nano(stages=[{"layer": 3, "keep_count": 9}, {"layer": 3, "keep_count": 8}]),
            "must not stand twice, got 3 after 3 at stages[1]",
        ),
        (
            nano(stages=[{"layer": 3, "keep_count": 9}, {"layer": 1, "keep_count": 8}]),
            "must ascend, got 1 after 3",
        ),
        (
            nano(model="plainmamba_l1"),
            "conv must be position or runs on plainmamba_l1, whose convolution reads the grid, got "
            "'compact' at alignment.conv (policy, line 1); set alignment.conv to position.",
        ),
        (
            nano(
                model="plainmamba_l1",
                scorer={"name": "cls_similarity"},
                alignment={"conv": "position"},
            ),
            "scorer must do without a class token on plainmamba_l1, got 'cls_similarity' at "
            "scorer.name (policy, line 5); use clipped_sum, delta, ",
        ),
        (nano(alignment={"decay": "zero"}), "unknown decay 'zero'"),
        (nano(alignment={"strength": 1.5}), "strength must be less than or equal to 1, got 1.5"),
        ("model: [", "must be plain YAML"),
        ("a: !!python/object/apply:os.system ['true']", "must be plain YAML"),
        ("", "must hold keys and values, got nothing"),
        ("- 1", "must hold keys and values, got a list"),
        (nano() + "model: vim_nano", "a key must stand once, got 'model' again"),
        ("model: vim_nano\nstages: 2026-99-99 25:00", "stages must be"),
    ],
)
def test_fault_is_told_with_its_place(text, told):
    with pytest.raises(PolicyError) as caught:
        Policy.from_yaml(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value).strip() or text.count("stages") != 1


def test_all_faults_come_in_one_message():
    text = nano(
        stages=[{"layer": 9, "keep_ratio": 2.0}, {"layer": 2, "keep_count": 99}],
        scorer={"name": "l9"},
        colour="red",
    )
    with pytest.raises(PolicyError) as caught:
        Policy.from_yaml(text)
    faults = str(caught.value).splitlines()
    for told in ("below 8", "got 2.0", "must ascend", "must not exceed", "'l9'", "'colour'"):
        assert sum(told in fault for fault in faults) == 1, told


def test_policy_built_in_python_is_checked_alike():
    with pytest.raises(ValueError, match="below 8"):
        Policy(model="vim_nano", stages=(Stage(layer=8, keep_ratio=0.5),))


def test_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="check the path"):
        Policy.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(PolicyError, match="readable text file"):
        Policy.load(tmp_path / "binary.yaml")


def test_policy_for_another_model_is_refused_with_both_names(tmp_path):
    Policy.from_yaml(PUBLISHED).save(tmp_path / "p.yaml")
    with pytest.raises(PolicyError, match=r"vim_small_patch16_224.*vim_nano"):
        load_for(tmp_path / "p.yaml", "vim_nano")


@pytest.mark.parametrize(
    ("written", "number"), [("7e-1", 0.7), ("0.7", 0.7), ("7E-1", 0.7), (".7e0", 0.7), ("1e0", 1.0)]
)
def test_number_is_read_as_people_write_it(written, number):
    text = f"model: vim_nano\nstages: [{{layer: 1, keep_ratio: {written}}}]\n"
    assert Policy.from_yaml(text).stages == (Stage(layer=1, keep_ratio=number),)


@pytest.mark.parametrize("written", ["'7e-1'", '"0.7"'])
def test_number_in_quotes_is_text(written):
    with pytest.raises(PolicyError, match="keep_ratio must be a valid number, got '"):
        Policy.from_yaml(f"model: vim_nano\nstages: [{{layer: 1, keep_ratio: {written}}}]\n")


@given(text=st.from_regex(r"[-+]?\.?[0-9]{0,3}\.?[0-9]{0,3}([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_text_that_looks_like_a_number_survives_the_file(text):
    policy = Policy(model="vim_nano", stages=(), provenance={"run": text, "seed": 1e-4})
    assert Policy.from_yaml(policy.to_yaml()) == policy
