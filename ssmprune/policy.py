"""A pruning policy: which tokens leave after which layer, and how the scan crosses the gaps.

For hierarchical models, which need whole grids between their blocks: which blocks scan a share of
the grid only.

The file format is `ssmprune.policy/1`; `Policy.load` reads it, `Policy.save` writes it. This is
the only place where ratios become token counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ssmprune.bounds import MOST_SEED
from ssmprune.errors import PolicyError, unknown_name
from ssmprune.extensions import recorded
from ssmprune.faults import Fault, Location, listed
from ssmprune.files import write_atomically
from ssmprune.models.configs import ModelConfig
from ssmprune.models.zoo import configs, find_config
from ssmprune.pruning.alignment import decays
from ssmprune.pruning.scorers import scorers
from ssmprune.registry import Registry
from ssmprune.yamlfile import FilePart, YamlFile, parse, to_yaml

SCHEMA: Literal["ssmprune.policy/1"] = "ssmprune.policy/1"

_SHIPPED = Path(__file__).parent / "policies"


def _known(registry: Registry[Any]) -> AfterValidator:
    """Holds a name against a registry."""

    def check(name: str, info: ValidationInfo) -> str:
        if name not in registry:
            imports = info.context.imports if isinstance(info.context, YamlFile) else ()
            raise ValueError(registry.unknown(name, imports))
        return name

    return AfterValidator(check)


ScorerName = Annotated[str, _known(scorers)]
DecayName = Annotated[
    str,
    _known(decays),
    Field(json_schema_extra=lambda schema: schema.update(enum=[*decays.filed()])),
]
ModelName = Annotated[str, _known(configs)]


class Scorer(FilePart):
    """The rule that gives each token its importance."""

    name: ScorerName = Field(
        default="clipped_sum",
        description="the name of a scorer, such as clipped_sum or l1",
        json_schema_extra=lambda schema: schema.update(enum=[*sorted(scorers.filed())]),
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=MOST_SEED,
        description="seed of the random scorer, 0 or more",
    )


class Stage(FilePart):
    """One pruning step: tokens leave after block `layer`, or block `layer` scans fewer of them."""

    layer: int = Field(
        ge=0,
        description="the block after which tokens leave, counted from 0; "
        "with `reduction: grid` the block that scans a share of its tokens",
    )
    keep_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the patch tokens entering the stage that stay; "
        "with `reduction: grid` share of the block's tokens that are scanned: "
        "ceil(sqrt(keep_ratio) * n) of its n rows and of its n columns, evenly spaced; "
        "1.0 keeps every token",
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
            got = "neither" if self.keep_ratio is None else "both"
            raise ValueError(Fault(f"a stage must have either keep_ratio or keep_count, got {got}"))
        return self

    def keep(self, entering: int) -> int:
        """Patch tokens that stay of `entering`: the exact count, or ceil(ratio * entering)."""
        if self.keep_count is not None:
            return self.keep_count
        return _share(self.keep_ratio or 1, entering)

    def keep_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that are scanned: ceil(sqrt(ratio) * n) of n."""
        rows, columns = (
            math.isqrt(_share(self.keep_ratio or 1, n * n) - 1) + 1 for n in (height, width)
        )
        return rows, columns


@lru_cache(maxsize=65536)
def _share(ratio: float, count: int) -> int:
    """ceil(ratio * count) for the ratio as it is written: 0.7 is 7/10."""
    return math.ceil(Fraction(repr(float(ratio))) * count)


class Alignment(FilePart):
    """How the scan and the convolution treat the places of pruned tokens."""

    decay: DecayName = Field(
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
        json_schema_extra=lambda schema: schema.update(enum=[*sorted(configs.filed())]),
    )
    reduction: Literal["tokens", "grid"] = Field(
        default="tokens",
        description="tokens: tokens leave for good; grid: for hierarchical models, a block scans "
        "a regular subset of its rows and columns and spreads the result over the whole grid",
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
        faults = self.faults(find_config(self.model))
        if faults:
            raise ValueError("; ".join(map(str, faults)))
        return self

    def faults(self, config: ModelConfig) -> list[Fault]:
        """What keeps the policy from serving the model."""
        return list(_faults(self.model_dump(), config))

    def stage_scorer(self, stage: Stage) -> Scorer:
        """The scorer that decides at `stage`."""
        return stage.scorer or self.scorer

    def keep_counts(self, config: ModelConfig) -> tuple[int, ...]:
        """Patch tokens that are left after each stage; with `reduction: grid`, scanned at each."""
        return tuple(kept for _, kept in self._steps(config))

    def effective_stages(self, config: ModelConfig) -> tuple[tuple[Stage, int], ...]:
        """The stages that remove anything, each with the patch tokens that it keeps."""
        pairs = zip(self.stages, self._steps(config), strict=True)
        return tuple((stage, kept) for stage, (entering, kept) in pairs if kept < entering)

    def _steps(self, config: ModelConfig) -> Iterator[tuple[int, int]]:
        """Patch tokens before and after each stage."""
        tokens = config.num_patches
        for stage in self.stages:
            if self.reduction == "grid":
                grid = config.block_grids[stage.layer]
                yield math.prod(grid), math.prod(stage.keep_grid(*grid))
            else:
                entering, tokens = tokens, stage.keep(tokens)
                yield entering, tokens

    def entering_tokens(self, config: ModelConfig) -> tuple[int, ...]:
        """Tokens that each block scans, prefix tokens included; last, those that leave the model.

        Returns:
            `depth + 1` counts.
        """
        scanned = list(config.block_tokens)
        for stage, kept in self.effective_stages(config):
            if self.reduction == "grid":
                scanned[stage.layer] = kept
            else:
                left = kept + len(config.prefix_positions)
                scanned[stage.layer + 1 :] = [left] * (config.depth - stage.layer)
        return tuple(scanned)

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy file, or the policy of this name that ships with the package.

        Raises:
            PolicyError: The file is missing, is no plain YAML or breaks a rule of the format; the
                message names every fault.
        """
        return cls._parse(YamlFile.read(_find_file(Path(path)), PolicyError))

    @classmethod
    def from_yaml(cls, text: str, place: str = "policy") -> Policy:
        """Read a policy from text; `place` is what messages call it.

        Raises:
            PolicyError: As `load`.
        """
        return cls._parse(YamlFile(text, place, PolicyError))

    @classmethod
    def _parse(cls, file: YamlFile) -> Policy:
        name, provenance = file.data.get("model"), file.data.get("provenance")
        if isinstance(provenance, dict):
            file.imports = recorded(provenance.get("imports"))
        is_known = isinstance(name, str) and name in configs
        misplaced = _faults(file.data, find_config(name)) if is_known else ()
        return parse(file, cls, PolicyError, misplaced)

    def to_yaml(self) -> str:
        """The policy as a file of the format, with defaults written out."""
        idle = {"scorer", "alignment"} if self.reduction == "grid" else set()
        data = self.model_dump(by_alias=True, exclude_none=True, exclude=idle, mode="json")
        for part in (data, *data["stages"]):
            if "scorer" in part and part["scorer"]["name"] != "random":
                del part["scorer"]["seed"]
        return to_yaml(data)

    def save(self, path: str | Path) -> None:
        """Write the policy file; the file appears whole or not at all."""
        write_atomically(Path(path), self.to_yaml())


def scorer_fault(name: str, config: ModelConfig) -> Fault | None:
    """Why a scorer cannot serve the model; None where it can, and where it is unknown."""
    if config.prefix_positions or name not in scorers or not scorers[name].class_token:
        return None
    others = listed(sorted(n for n in scorers.names() if not scorers[n].class_token))
    return Fault(
        f"scorer must do without a class token on {config.name}, got {name!r}", f"use {others}"
    )


def conv_fault(conv: str, config: ModelConfig) -> Fault | None:
    """Why a convolution cannot serve the model; None where it can."""
    if conv != "compact" or not config.convolves_grid:
        return None
    return Fault(
        f"conv must be position on {config.name}, whose convolution reads the grid, got {conv!r}",
        "set alignment.conv to position",
    )


def _faults(data: Mapping[str, Any], config: ModelConfig) -> Iterator[Fault]:
    """What does not fit together or the model in a policy.

    Values that break a rule of their own are passed over; pydantic tells those.
    """
    stages = data.get("stages")
    stages = stages if isinstance(stages, Sequence) and not isinstance(stages, str) else ()
    yield from _layer_faults(stages, config)
    if data.get("reduction") == "grid":
        yield from _grid_faults(data, stages, config)
        return
    if stages and not config.prunable:
        yield Fault(
            f"reduction must be grid for {config.name}, which needs whole grids between its "
            "blocks, got tokens",
            "write `reduction: grid`",
            ("reduction",),
        )
        return
    yield from _count_faults(stages, config.num_patches)
    if stages:
        yield from _choice_faults(data, stages, config)


def _choice_faults(
    data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
) -> Iterator[Fault]:
    parts: list[tuple[Location, Any]] = [((), data)]
    parts += [(("stages", index), stage) for index, stage in enumerate(stages)]
    for place, part in parts:
        scorer = part.get("scorer") if isinstance(part, Mapping) else None
        name = scorer.get("name") if isinstance(scorer, Mapping) else None
        fault = scorer_fault(name, config) if isinstance(name, str) else None
        if fault:
            yield replace(fault, location=(*place, "scorer", "name"))
    alignment = data.get("alignment", {})
    if isinstance(alignment, Mapping):
        fault = conv_fault(alignment.get("conv", "compact"), config)
        if fault:
            yield replace(fault, location=("alignment", "conv"))


def _layer_faults(stages: Sequence[Any], config: ModelConfig) -> Iterator[Fault]:
    previous = -1
    for index, stage in enumerate(stages):
        layer = stage.get("layer") if isinstance(stage, dict) else None
        if type(layer) is not int or layer < 0:
            continue
        if layer >= config.depth:
            yield Fault(
                f"layer must be below {config.depth}, the depth of {config.name}, got {layer}",
                f"the last block is {config.depth - 1}",
                ("stages", index),
            )
        if layer <= previous:
            rule = "must not stand twice" if layer == previous else "must ascend"
            yield Fault(
                f"the stages' layers {rule}, got {layer} after {previous}",
                "sort them",
                ("stages", index),
            )
        previous = max(layer, previous)


def _count_faults(stages: Sequence[Any], tokens: int) -> Iterator[Fault]:
    for index, stage in enumerate(stages):
        try:
            kept = Stage.model_validate(stage).keep(tokens)
        except ValidationError:
            continue
        if kept > tokens:
            yield Fault(
                f"keep_count must not exceed the {tokens} patch tokens that enter the stage, "
                f"got {kept}",
                "lower it",
                ("stages", index),
            )
        tokens = min(tokens, kept)


def _grid_faults(
    data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
) -> Iterator[Fault]:
    if config.prunable:
        yield Fault(
            f"reduction must be tokens for {config.name}, which has no resolution stages, got grid",
            "remove `reduction`",
            ("reduction",),
        )
    for key, part in (("scorer", Scorer), ("alignment", Alignment)):
        if data.get(key) is not None and _differs(data[key], part()):
            yield Fault(
                f"{key} must not be given with `reduction: grid`, where no token is scored or "
                f"leaves a gap, got {data[key]}",
                "remove it",
                (key,),
            )
    for index, stage in enumerate(stages):
        for key in ("keep_count", "scorer"):
            if isinstance(stage, dict) and stage.get(key) is not None:
                yield Fault(
                    f"{key} must not be given with `reduction: grid`, got {stage[key]}",
                    "give keep_ratio alone",
                    ("stages", index),
                )


def _differs(value: Any, default: FilePart) -> bool:
    try:
        return type(default).model_validate(value) != default
    except ValidationError:
        return False


def shipped_policies() -> list[str]:
    """Names of the policies that come with the package, sorted."""
    return sorted(file.stem for file in _SHIPPED.glob("*.yaml"))


def _find_file(path: Path) -> Path:
    """The file at `path`; where there is none and `path` is a bare name, the shipped policy's."""
    if path.is_file() or path.suffix or path.name != str(path):
        return path
    if path.name not in shipped_policies():
        told = unknown_name("policy", path.name, shipped_policies())
        raise PolicyError(f"a policy must be a file or the name of a shipped one: {told}")
    return _SHIPPED / f"{path.name}.yaml"


def load_for(path: str | Path, model: str) -> Policy:
    """Read a policy file, or a shipped policy, that has to be for the model called `model`.

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
