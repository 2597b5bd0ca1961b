"""The JSON Schemas that ship with the package."""

import json

import pytest

from ssmprune.policy import Policy, Stage
from tools.reference import reference_text
from tools.schemas import FOLDER, FORMATS, REFERENCE, schema_text


@pytest.mark.parametrize("name", FORMATS)
def test_schema_is_that_of_the_format(name):
    assert (FOLDER / name).read_text() == schema_text(FORMATS[name]), "run `make schemas`"


def test_policy_schema_completes_names():
    definitions = json.loads((FOLDER / "policy.json").read_text())
    assert "vim_nano" in definitions["properties"]["model"]["enum"]
    assert "clipped_sum" in definitions["$defs"]["Scorer"]["properties"]["name"]["enum"]


def test_reference_is_that_of_the_format():
    assert REFERENCE.read_text() == reference_text(), "run `make schemas`"


def test_reference_names_every_key_with_its_limits():
    text = reference_text()
    for key in (*Policy.model_fields, *Stage.model_fields):
        assert f"| `{key.rstrip('_')}` |" in text
    assert "| `keep_ratio` | number, above 0, at most 1 |" in text
    assert "`clipped_sum`" in text and "`vim_nano`" in text
