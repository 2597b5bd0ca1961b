"""The parts of a policy: a stage, the scorer that decides at it, the alignment after it.

This is the only place where ratios become token counts.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from ssmprune.bounds import MOST_SEED
from ssmprune.faults import Fault, listed
from ssmprune.models.configs import ModelConfig
from ssmprune.models.zoo import configs
from ssmprune.pruning.alignment import decays
from ssmprune.pruning.matching import MATCHES
from ssmprune.pruning.metrics import METRICS
from ssmprune.pruning.scorers import scorers
from ssmprune.registry import Registry
from ssmprune.yamlfile import FilePart, YamlFile


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

if TYPE_CHECKING:
    MatchName = str
    MetricName = str
else:
    MatchName = Literal[tuple(MATCHES)]
    MetricName = Literal[tuple(METRICS)]

PoolName = Literal["middle", "mean"]
SizesName = Literal["own", "scaled", "exact"]
ConvName = Literal["compact", "position", "runs"]


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
        "with `reduction: grid` share of the block's tokens that are scanned, evenly spaced by "
        "rows and columns, see axes; 1.0 keeps every token",
    )
    keep_count: int | None = Field(
        default=None, ge=1, description="the exact number of patch tokens that stay, 1 or more"
    )
    reduce: Literal["drop", "merge"] = Field(
        default="drop",
        description="drop: the tokens leave for good; merge: they join others that are like them",
    )
    match: MatchName | None = Field(
        default=None,
        description="with `reduce: merge`, who joins whom; "
        + "; ".join(f"{name}: {match.summary}" for name, match in MATCHES.items())
        + f"; without it, {next(iter(MATCHES))}",
    )
    axes: Literal["both", "rows", "columns"] = Field(
        default="both",
        description="with `reduction: grid`, which lines are fewer; both: ceil(sqrt(keep_ratio) * "
        "n) of n rows and columns; rows, columns: ceil(keep_ratio * n) of those, all of the others",
    )
    scorer: Scorer | None = Field(
        default=None, description="the scorer of this stage; without it, the policy's"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Stage:
        if (self.keep_ratio is None) == (self.keep_count is None):
            got = "neither" if self.keep_ratio is None else "both"
            raise ValueError(Fault(f"a stage must have either keep_ratio or keep_count, got {got}"))
        if self.match is not None and self.reduce != "merge":
            rule = f"match must stand beside `reduce: merge`, got {self.match} with {self.reduce}"
            raise ValueError(Fault(rule, "write `reduce: merge`, or remove it"))
        return self

    def keep(self, entering: int) -> int:
        """Patch tokens that stay of `entering`: the exact count, or ceil(ratio * entering)."""
        if self.keep_count is not None:
            return self.keep_count
        return _share(self.keep_ratio or 1, entering)

    def keep_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that are scanned of a grid."""
        ratio = self.keep_ratio or 1
        if self.axes == "rows":
            return _share(ratio, height), width
        if self.axes == "columns":
            return height, _share(ratio, width)
        rows, columns = (math.isqrt(_share(ratio, n * n) - 1) + 1 for n in (height, width))
        return rows, columns


@lru_cache(maxsize=65536)
def _share(ratio: float, count: int) -> int:
    """ceil(ratio * count) for the ratio as it is written: 0.7 is 7/10."""
    return math.ceil(Fraction(repr(float(ratio))) * count)


class Merge(FilePart):
    """How the stages with `reduce: merge` compare tokens and join them."""

    metric: MetricName = Field(
        default=next(iter(METRICS)),
        description="what tokens are compared by; "
        + "; ".join(f"{name}: {metric.summary}" for name, metric in METRICS.items()),
    )
    weight: Literal["size", "equal"] = Field(
        default="size",
        description="of a token in the mean; size: the patches that it stands for; equal: 1",
    )
    protect: int = Field(
        default=0,
        ge=0,
        description="places on either side of the class token where no token is merged",
    )
    untouched: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="with `match: score`, share of the tokens that stay, those of the highest "
        "scores, that none joins, in [0, 1)",
    )
    fate: Literal["merge", "half"] = Field(
        default="merge",
        description="with `match: score`, of the tokens that leave; merge: all join others; "
        "half: the half that is least like others leaves for good",
    )


class Alignment(FilePart):
    """How the scan and the convolution treat the places of tokens that have left."""

    decay: DecayName = Field(
        default="none", description="the state's decay over a gap: none, zero_input or neighbor"
    )
    strength: float = Field(
        default=1.0, ge=0, le=1, description="share of the gap's decay, in [0, 1]"
    )
    conv: ConvName = Field(
        default="compact",
        description="what the convolution reads: compact neighbours, true positions, or runs, "
        "where a merged token is read once for each patch that it stands for",
    )
    sizes: SizesName = Field(
        default="own",
        description="the scan's step of a merged token: own, as if it stood for one; scaled, by "
        "the patches that it stands for; exact, as so many of it in a row",
    )


def scorer_fault(name: str, config: ModelConfig) -> Fault | None:
    """Why a scorer cannot serve the model; None where it can, and where it is unknown."""
    if config.prefix_positions or name not in scorers or not scorers[name].class_token:
        return None
    others = listed(sorted(n for n in scorers.names() if not scorers[n].class_token))
    return Fault(
        f"scorer must do without a class token on {config.name}, got {name!r}", f"use {others}"
    )


def protect_fault(protect: object, config: ModelConfig) -> Fault | None:
    """Why no places beside the class token can be protected; None where they can."""
    if not protect or config.prefix_positions:
        return None
    return Fault(
        f"protect must be 0 on {config.name}, which has no class token, got {protect!r}",
        "remove it",
    )


def conv_fault(conv: str, config: ModelConfig) -> Fault | None:
    """Why a convolution cannot serve the model; None where it can."""
    if conv != "compact" or not config.convolves_grid:
        return None
    return Fault(
        f"conv must be position or runs on {config.name}, whose convolution reads the grid, "
        f"got {conv!r}",
        "set alignment.conv to position",
    )
