"""JSON Schemas of the YAML files, and the policy file's reference.

`python -m tools.schemas` writes them again, the reference where the repository's `docs` are.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

import ssmprune
from ssmprune.files import write_atomically
from ssmprune.policy import Policy
from ssmprune_search.space.space import SearchSpace
from tools.reference import reference_text

FOLDER = Path(ssmprune.__file__).parent / "schemas"
REFERENCE = Path(ssmprune.__file__).parents[1] / "docs" / "policy.md"
FORMATS: dict[str, type[BaseModel]] = {"policy.json": Policy, "space.json": SearchSpace}


def schema_text(model: type[BaseModel]) -> str:
    """The JSON Schema of a file format, as it stands in its file."""
    return json.dumps(model.model_json_schema(by_alias=True), indent=2) + "\n"


if __name__ == "__main__":
    for name, model in FORMATS.items():
        write_atomically(FOLDER / name, schema_text(model))
    if REFERENCE.parent.is_dir():
        write_atomically(REFERENCE, reference_text())
