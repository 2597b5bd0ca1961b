"""What a space file says: its keys, with their meanings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ssmprune.faults import Fault
from ssmprune.pruning.matching import MATCHES, find_match
from ssmprune.pruning.reductions import DEFAULT, SUMMARIES, ReductionName
from ssmprune.stage import MatchName, ModelName, ScorerName
from ssmprune.yamlfile import FilePart
from ssmprune_search.candidate.objective import OBJECTIVES, ObjectiveName
from ssmprune_search.space.choices import AlignmentChoices, MergeChoices, listed_choices
from ssmprune_search.space.faults import SCHEMAS, Schema
from ssmprune_search.space.limits import Limits
from ssmprune_search.space.ratios import Ratios, distinct
from ssmprune_search.space.schedules import Schedule

_BOUNDED = list(Limits.model_fields)

MOST_OBJECTIVES = 3
"""With more, nearly every candidate is on the front."""


def _few(objectives: tuple[str, ...]) -> tuple[str, ...]:
    if len(objectives) > MOST_OBJECTIVES:
        got = f"objectives must be at most {MOST_OBJECTIVES}, got {len(objectives)}"
        raise ValueError(Fault(got, "remove those that matter least"))
    return objectives


class SpaceKeys(FilePart):
    """The keys of a space file."""

    schema_: Schema = Field(
        alias="schema",
        description=f"{SCHEMAS[0]}, or {SCHEMAS[1]} of a space whose policies may merge tokens",
    )
    model: ModelName = Field(description="the name of a model of `ssmprune models`")
    reduction: ReductionName = Field(default=DEFAULT, description=SUMMARIES)
    ratios: Ratios = Field(description="where tokens may leave: per, layers, low, high, step")
    scorer: Annotated[tuple[ScorerName, ...], AfterValidator(distinct)] = listed_choices(
        "a list of scorers, such as [l1, clipped_sum]", ("clipped_sum",)
    )
    scorer_per: Literal["policy", "stage"] = Field(
        default="policy",
        description="policy: one scorer for all stages; "
        "stage: one for each stage, or for each of `layers`",
    )
    reduce: Annotated[tuple[Literal["drop", "merge"], ...], AfterValidator(distinct)] = (
        listed_choices("a list of drop, merge: what stages may do", ("drop",))
    )
    match: Annotated[tuple[MatchName, ...], AfterValidator(distinct)] = listed_choices(
        f"where stages may merge, a list of {', '.join(MATCHES)}: who joins whom; a stage that "
        "would have to merge more than its match can drops tokens instead",
        (find_match(None).name,),
    )
    reduce_per: Literal["policy", "stage"] = Field(
        default="stage",
        description="where stages may merge; policy: all stages do the same; "
        "stage: each does what it does best",
    )
    merge: MergeChoices = Field(
        default=MergeChoices(),
        description="where stages may merge, lists of metric, weight, protect, untouched and fate",
    )
    alignment: AlignmentChoices = Field(
        default=AlignmentChoices(), description="lists of decay, strength, conv and sizes"
    )
    objectives: Annotated[
        tuple[ObjectiveName, ...], AfterValidator(distinct), AfterValidator(_few)
    ] = listed_choices(f"a list of up to three of {', '.join(OBJECTIVES)}", ("top1", "flops"))
    limits: Limits = Field(
        default=Limits(),
        description=f"bounds of {', '.join(_BOUNDED[:-1])} and {_BOUNDED[-1]}",
    )
    schedules: Annotated[tuple[Schedule, ...], Field(strict=False)] = Field(
        default=(), description="a list of known schedules to try first"
    )
    imports: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="modules of your own that a search imports first, as `--import`; "
        "paths of .py files are relative to this file",
    )
