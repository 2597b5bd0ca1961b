"""What the model of a space rules out, told of the file's data before it is a search space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ssmprune.faults import Fault, Location
from ssmprune.models.configs import ModelConfig
from ssmprune.models.zoo import configs, find_config
from ssmprune.stage import conv_fault, scorer_fault


def unfit(data: Mapping[str, Any]) -> Iterator[Fault]:
    """What the model of a space rules out, wherever it stands in the file."""
    name = data.get("model")
    if isinstance(name, str) and name in configs:
        yield from _misplaced_layers(data, find_config(name))
        yield from _unfit_choices(data, find_config(name))


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
    """Scorers and convolutions that the model cannot be pruned with."""
    scorers, alignment = data.get("scorer"), data.get("alignment")
    convs = alignment.get("conv", ["compact"]) if isinstance(alignment, dict) else ["compact"]
    faults: list[tuple[Location, Fault | None]] = []
    for index, scorer in enumerate(scorers if isinstance(scorers, list) else ()):
        if isinstance(scorer, str):
            faults.append((("scorer", index), scorer_fault(scorer, config)))
    for index, conv in enumerate(convs if isinstance(convs, list) else ()):
        faults.append((("alignment", "conv", index), conv_fault(conv, config)))
    yield from (replace(fault, location=location) for location, fault in faults if fault)


def _layers(data: Mapping[str, Any]) -> Iterator[tuple[Location, Any]]:
    """Every layer that a space file names, with its location."""
    ratios, schedules = data.get("ratios"), data.get("schedules")
    if isinstance(ratios, dict) and isinstance(ratios.get("layers"), list):
        for index, layer in enumerate(ratios["layers"]):
            yield ("ratios", "layers", index), layer
    for number, schedule in enumerate(schedules if isinstance(schedules, list) else ()):
        if not isinstance(schedule, dict):
            continue
        place = ("schedules", number)
        for key in ("layers", "stages"):
            values = schedule.get(key)
            for index, value in enumerate(values if isinstance(values, list) else ()):
                layer = value.get("layer") if isinstance(value, dict) else value
                yield (*place, key, index), layer
