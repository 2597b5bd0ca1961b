"""What its schema and its model rule out in a space file, told before it is a search space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from ssmprune.faults import Fault, Location, newer
from ssmprune.models.configs import ModelConfig
from ssmprune.models.zoo import configs, find_config
from ssmprune.stage import conv_fault, protect_fault, scorer_fault

Schema = Literal["ssmprune.space/1", "ssmprune.space/2"]
SCHEMAS: tuple[Schema, Schema] = get_args(Schema)
"""The second knows merging."""


def unfit(data: Mapping[str, Any]) -> Iterator[Fault]:
    """What the schema and the model of a space rule out, wherever it stands in the file."""
    yield from newer("space", data.get("schema"), SCHEMAS, _merging(data))
    name = data.get("model")
    if isinstance(name, str) and name in configs:
        yield from _misplaced_layers(data, find_config(name))
        yield from _unfit_choices(data, find_config(name))


def _merging(data: Mapping[str, Any]) -> Iterator[tuple[Location, Any]]:
    """What a file says about merging."""
    places: list[tuple[Location, Any, tuple[str, ...]]] = [
        ((), data, ("reduce", "match", "reduce_per", "merge")),
        (("alignment",), data.get("alignment"), ("sizes",)),
    ]
    for number, schedule in enumerate(_entries(data, "schedules")):
        place: Location = ("schedules", number)
        places.append((place, schedule, ("reduce", "match")))
        for index, stage in enumerate(_entries(schedule, "stages")):
            places.append(((*place, "stages", index), stage, ("reduce", "match")))
    for place, part, keys in places:
        for key in keys:
            if isinstance(part, dict) and part.get(key) is not None:
                yield (*place, key), part[key]
    for index, conv in enumerate(_entries(data.get("alignment"), "conv")):
        if conv == "runs":
            yield ("alignment", "conv", index), conv


def _misplaced_layers(data: Mapping[str, Any], config: ModelConfig) -> Iterator[Fault]:
    """Layers that the model does not have."""
    for location, layer in _layers(data):
        if type(layer) is int and layer >= config.depth:
            yield Fault(
                f"layer must be below {config.depth}, the depth of {config.name}, got {layer}",
                f"the last block is {config.depth - 1}",
                location,
            )


def _unfit_choices(data: Mapping[str, Any], config: ModelConfig) -> Iterator[Fault]:
    """Scorers, convolutions and settings of merging that do not fit the model."""
    alignment = data.get("alignment")
    convs = alignment.get("conv", ["compact"]) if isinstance(alignment, dict) else ["compact"]
    faults: list[tuple[Location, Fault | None]] = []
    for index, scorer in enumerate(_entries(data, "scorer")):
        if isinstance(scorer, str):
            faults.append((("scorer", index), scorer_fault(scorer, config)))
    for index, conv in enumerate(convs if isinstance(convs, list) else ()):
        faults.append((("alignment", "conv", index), conv_fault(conv, config)))
    for index, places in enumerate(_entries(data.get("merge"), "protect")):
        faults.append((("merge", "protect", index), protect_fault(places, config)))
    yield from (replace(fault, location=location) for location, fault in faults if fault)


def _layers(data: Mapping[str, Any]) -> Iterator[tuple[Location, Any]]:
    """Every layer that a space file names, with its location."""
    for index, layer in enumerate(_entries(data.get("ratios"), "layers")):
        yield ("ratios", "layers", index), layer
    for number, schedule in enumerate(_entries(data, "schedules")):
        for key in ("layers", "stages"):
            for index, value in enumerate(_entries(schedule, key)):
                layer = value.get("layer") if isinstance(value, dict) else value
                yield ("schedules", number, key, index), layer


def _entries(part: Any, key: str) -> list[Any]:
    """The list at a key of a mapping; none where it is something else."""
    found = part.get(key) if isinstance(part, dict) else None
    return found if isinstance(found, list) else []
