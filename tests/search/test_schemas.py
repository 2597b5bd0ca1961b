"""The JSON Schemas that ship with the package."""

import json

import pytest

from search.schemas import FOLDER, FORMATS, schema_text


@pytest.mark.parametrize("name", FORMATS)
def test_schema_is_that_of_the_format(name):
    assert (FOLDER / name).read_text() == schema_text(FORMATS[name]), "run `make schemas`"


def test_policy_schema_completes_names():
    definitions = json.loads((FOLDER / "policy.json").read_text())
    assert "vim_nano" in definitions["properties"]["model"]["enum"]
    assert "clipped_sum" in definitions["$defs"]["Scorer"]["properties"]["name"]["enum"]
