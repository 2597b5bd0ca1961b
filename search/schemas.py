"""JSON Schemas of the YAML files, for editors: `python -m search.schemas` writes them again."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

import ssmprune
from search.space import SearchSpace
from ssmprune.policy import Policy
from ssmprune.yamlfile import write_atomically

FOLDER = Path(ssmprune.__file__).parent / "schemas"
FORMATS: dict[str, type[BaseModel]] = {"policy.json": Policy, "space.json": SearchSpace}


def schema_text(model: type[BaseModel]) -> str:
    """The JSON Schema of a file format, as it stands in its file."""
    return json.dumps(model.model_json_schema(by_alias=True), indent=2) + "\n"


if __name__ == "__main__":
    for name, model in FORMATS.items():
        write_atomically(FOLDER / name, schema_text(model))
