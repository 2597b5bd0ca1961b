"""The reference of the policy file, `docs/policy.md`, from its JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ssmprune.policy import Policy

_HEAD = """\
# The policy file

Written by `make schemas` from the format's JSON Schema, which editors read as
[`ssmprune/schemas/policy.json`](../ssmprune/schemas/policy.json). A file is YAML of plain data;
unknown keys, unknown names and values that break a rule are refused, all of them in one message.

    schema: ssmprune.policy/1
    model: vim_small_patch16_224
    stages:
      - {layer: 4, keep_ratio: 0.8}
      - {layer: 9, keep_count: 124}
    scorer: {name: clipped_sum}
    alignment: {decay: zero_input, strength: 1.0, conv: position}
"""


def reference_text() -> str:
    """The reference as Markdown."""
    schema = Policy.model_json_schema(by_alias=True)
    parts = [_HEAD, _table("The file", schema)]
    parts += [_table(name, part) for name, part in schema["$defs"].items()]
    return "\n".join(parts)


def _table(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    lines = [f"## {name}\n", f"{schema['description']}\n"]
    lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, rule in schema["properties"].items():
        default = "required" if key in required else f"`{_default(rule)}`"
        if default == "`null`":
            default = ""
        cells = (f"`{key}`", ", ".join(_values(rule)), default, rule["description"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _default(rule: Mapping[str, Any]) -> str:
    return json.dumps(rule.get("default")).replace('"', "")


def _values(rule: Mapping[str, Any]) -> Iterator[str]:
    """What a value may be, in words."""
    if "anyOf" in rule:
        for choice in rule["anyOf"]:
            if choice.get("type") != "null":
                yield from _values(choice)
    elif "$ref" in rule:
        name = rule["$ref"].rpartition("/")[2]
        yield f"a mapping, see [{name}](#{name.lower()})"
    elif "enum" in rule:
        yield " ".join(f"`{value}`" for value in rule["enum"])
    elif "const" in rule:
        yield f"`{rule['const']}`"
    elif rule["type"] == "array":
        yield f"a list, each {', '.join(_values(rule['items']))}"
    else:
        yield {"object": "a mapping"}.get(rule["type"], rule["type"])
        yield from (f"{sign} {rule[key]}" for key, sign in _LIMITS.items() if key in rule)


_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
