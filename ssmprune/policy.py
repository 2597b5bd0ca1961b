"""A pruning policy: which tokens leave after which layer, and how the scan crosses the gaps.

The file format is `ssmprune.policy/1`; `Policy.load` reads it, `Policy.save` writes it. This is
the only place where ratios become token counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ssmprune.errors import PolicyError, unknown_name
from ssmprune.models.configs import ModelConfig
from ssmprune.models.zoo import find_config, model_names
from ssmprune.yamlfile import FilePart, YamlFile, parse, write_atomically

SCHEMA: Literal["ssmprune.policy/1"] = "ssmprune.policy/1"

# Filled by `ssmprune.pruning.scorers.register_scorer`.
scorer_names: set[str] = set()


def _known_scorer(name: str) -> str:
    if name not in scorer_names:
        raise ValueError(unknown_name("scorer", name, scorer_names).rstrip(".?"))
    return name


def _known_model(name: str) -> str:
    if name not in model_names():
        raise ValueError(unknown_name("model", name, model_names()).rstrip(".?"))
    return name


ScorerName = Annotated[str, AfterValidator(_known_scorer)]
ModelName = Annotated[str, AfterValidator(_known_model)]


class Scorer(FilePart):
    """The rule that gives each token its importance."""

    name: ScorerName = Field(
        default="clipped_sum",
        description="the name of a scorer, such as clipped_sum or l1",
        json_schema_extra=lambda schema: schema.update(enum=[*sorted(scorer_names)]),
    )
    seed: int = Field(default=0, ge=0, description="seed of the random scorer, 0 or more")


class Stage(FilePart):
    """One pruning step: tokens leave after block `layer`."""

    layer: int = Field(ge=0, description="the block after which tokens leave, counted from 0")
    keep_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the patch tokens entering the stage that stay; 1.0 keeps every token",
    )
    keep_count: int | None = Field(
        default=None, ge=1, description="the exact number of patch tokens that stay, 1 or more"
    )
    scorer: Scorer | None = Field(
        default=None, description="the scorer of this stage; without it, the policy's"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Stage:
        if (self.keep_ratio is None) == (self.keep_count is None):
            raise ValueError(
                "a stage must have either keep_ratio or keep_count, "
                f"got {'neither' if self.keep_ratio is None else 'both'}"
            )
        return self

    def keep(self, entering: int) -> int:
        """Patch tokens that stay of `entering`: the exact count, or ceil(ratio * entering)."""
        if self.keep_count is not None:
            return self.keep_count
        return math.ceil(Fraction(repr(float(self.keep_ratio or 1))) * entering)


class Alignment(FilePart):
    """How the scan and the convolution treat the places of pruned tokens."""

    decay: Literal["none", "zero_input", "neighbor"] = Field(
        default="none", description="the state's decay over a gap: none, zero_input or neighbor"
    )
    strength: float = Field(
        default=1.0, ge=0, le=1, description="share of the gap's decay, in [0, 1]"
    )
    conv: Literal["compact", "position"] = Field(
        default="compact",
        description="what the convolution reads: compact neighbours, or true positions",
    )


class Policy(FilePart):
    """A complete pruning decision for one model."""

    schema_: Literal["ssmprune.policy/1"] = Field(
        default=SCHEMA, alias="schema", description=f"write {SCHEMA}"
    )
    model: ModelName = Field(
        description="the name of a model of `ssmprune models`",
        json_schema_extra=lambda schema: schema.update(enum=[*model_names()]),
    )
    stages: tuple[Stage, ...] = Field(
        strict=False, description="a list of stages, such as - {layer: 4, keep_ratio: 0.8}"
    )
    scorer: Scorer = Field(default=Scorer(), description="the scorer of every stage")
    alignment: Alignment = Field(
        default=Alignment(), description="alignment across the gaps of pruned tokens"
    )
    measured: dict[str, Any] | None = Field(default=None, description="written by export")
    provenance: dict[str, Any] | None = Field(default=None, description="written by export")

    @model_validator(mode="after")
    def _fits_model(self, info: ValidationInfo) -> Policy:
        if isinstance(info.context, YamlFile):  # `_parse` tells these with their lines
            return self
        stages = [stage.model_dump() for stage in self.stages]
        faults = [fault for _, fault in _stage_faults(stages, find_config(self.model))]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def stage_scorer(self, stage: Stage) -> Scorer:
        """The scorer that decides at `stage`."""
        return stage.scorer or self.scorer

    def keep_counts(self, num_patches: int) -> tuple[int, ...]:
        """Patch tokens left after each stage, for a model that starts with `num_patches`."""
        counts = []
        for stage in self.stages:
            num_patches = stage.keep(num_patches)
            counts.append(num_patches)
        return tuple(counts)

    def entering_tokens(self, config: ModelConfig) -> tuple[int, ...]:
        """Tokens that enter each block, prefix tokens included; last, those that leave the model.

        Returns:
            `depth + 1` counts.
        """
        left = dict(
            zip((s.layer for s in self.stages), self.keep_counts(config.num_patches), strict=True)
        )
        tokens = [config.num_tokens]
        for layer in range(config.depth):
            kept = left.get(layer)
            tokens.append(tokens[-1] if kept is None else kept + len(config.prefix_positions))
        return tuple(tokens)

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy file.

        Raises:
            PolicyError: The file is missing, is no plain YAML or breaks a rule of the format; the
                message names every fault.
        """
        return cls._parse(YamlFile.read(Path(path), PolicyError))

    @classmethod
    def from_yaml(cls, text: str, place: str = "policy") -> Policy:
        """Read a policy from text; `place` is what messages call it.

        Raises:
            PolicyError: As `load`.
        """
        return cls._parse(YamlFile(text, place, PolicyError))

    @classmethod
    def _parse(cls, file: YamlFile) -> Policy:
        stages, name = file.data.get("stages"), file.data.get("model")
        misplaced: list[str] = []
        if isinstance(stages, list) and isinstance(name, str) and name in model_names():
            for index, fault in _stage_faults(stages, find_config(name)):
                rule, _, remedy = fault.partition("; ")
                misplaced.append(f"{rule} at {file.at(('stages', index))}; {remedy}.")
        return parse(file, cls, PolicyError, misplaced)

    def to_yaml(self) -> str:
        """The policy as a file of the format, with defaults written out."""
        data = self.model_dump(by_alias=True, exclude_none=True, mode="json")
        for part in [data["scorer"], *(s["scorer"] for s in data["stages"] if "scorer" in s)]:
            if part["name"] != "random":
                del part["seed"]
        return yaml.safe_dump(data, sort_keys=False, width=100, allow_unicode=True)

    def save(self, path: str | Path) -> None:
        """Write the policy file; the file appears whole or not at all."""
        write_atomically(Path(path), self.to_yaml())


def _stage_faults(stages: Sequence[Any], config: ModelConfig) -> Iterator[tuple[int, str]]:
    """Stages that do not fit each other or the model: index and sentence.

    Values that break a rule of their own are passed over; pydantic tells those.
    """
    previous, tokens = -1, config.num_patches
    for index, stage in enumerate(stages):
        layer = stage.get("layer") if isinstance(stage, dict) else None
        if type(layer) is int and layer >= 0:
            if layer >= config.depth:
                yield (
                    index,
                    f"layer must be below {config.depth}, the depth of {config.name}, got {layer}; "
                    f"the last block is {config.depth - 1}",
                )
            if layer <= previous:
                rule = "must not stand twice" if layer == previous else "must ascend"
                yield index, f"the stages' layers {rule}, got {layer} after {previous}; sort them"
            previous = max(layer, previous)
        try:
            kept = Stage.model_validate(stage).keep(tokens)
        except ValidationError:
            continue
        if kept > tokens:
            yield (
                index,
                f"keep_count must not exceed the {tokens} patch tokens that enter the stage, "
                f"got {kept}; lower it",
            )
        tokens = min(tokens, kept)


def load_for(path: str | Path, model: str) -> Policy:
    """Read a policy file that has to be for the model called `model`.

    Raises:
        PolicyError: The file has faults, or is for another model.
    """
    policy = Policy.load(path)
    if policy.model != model:
        raise PolicyError(
            f"a policy must be for the model it is used with, got model {policy.model!r} in {path} "
            f"with {model!r}; search a policy for {model}, or use the model {policy.model}."
        )
    return policy
