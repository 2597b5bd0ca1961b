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

_MERGING = """\
## Merging

A stage may merge tokens in place of dropping them: each that leaves joins one that stays, which
becomes the mean of both and stands for the patches of both. Files that say so have the second
schema; ratios and counts are of the tokens that are left, as always. `ssmprune tokens` draws what
becomes of an image.

    schema: ssmprune.policy/2
    model: vim_nano
    stages:
      - {layer: 0, keep_ratio: 0.6, reduce: merge, match: neighbors}
      - {layer: 2, keep_ratio: 0.7, reduce: merge}
      - {layer: 3, keep_ratio: 0.7}
    scorer: {name: l1}
    merge: {metric: output, weight: size}
    alignment: {decay: none, conv: compact, sizes: own}

| key | when it helps |
| --- | --- |
"""

_HELPS = {
    "reduce: merge": "in the first blocks, where patches beside each other are alike and a scorer "
    "knows little yet; later, and where few tokens are left, dropping those of low scores loses "
    "less",
    "match: neighbors": "early: it compares each token that may leave with two others, which costs "
    "next to nothing, and a merged token is a run of the scan",
    "match: alternate": "where like patches lie apart, such as sky on both sides of an object; its "
    "price grows with the square of the tokens",
    "match: score": "where a scorer knows what must stay as it is, or where more than half of the "
    "tokens are to leave at once",
    "merge.metric": "`output`, R-MeeTo's, is a good start; `B` and `C` are the narrowest, so the "
    "cheapest to compare",
    "merge.weight": "`size` keeps every patch's share of the mean over several stages; `equal` "
    "has what is rare in a token count for more",
    "merge.protect": "where the class token reads what lies beside it in the scan",
    "merge.untouched": "with `match: score`, so that the tokens of the highest scores are not "
    "blurred by those that join",
    "merge.fate": "`half`, with `match: score`, where the tokens of the lowest scores are like "
    "nothing that stays",
    "alignment.sizes": "`own` for weights that were trained on single tokens; `scaled` and `exact` "
    "lost accuracy with those, and are for models that are fine-tuned under the policy",
    "alignment.conv: runs": "with `match: neighbors` and `sizes: exact`: a token of like patches "
    "in a row is then read as all of them",
}


def reference_text() -> str:
    """The reference as Markdown."""
    schema = Policy.model_json_schema(by_alias=True)
    helps = "\n".join(f"| `{key}` | {when} |" for key, when in _HELPS.items())
    parts = [_HEAD, f"{_MERGING}{helps}\n", _table("The file", schema)]
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
