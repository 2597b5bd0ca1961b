"""A pruning policy: which tokens leave after which layer, and how the scan crosses the gaps.

For hierarchical models, which need whole grids between their blocks: which blocks scan a share of
the grid only.

The file format is `ssmprune.policy/1`, and `ssmprune.policy/2` of those that merge tokens;
`Policy.load` reads it, `Policy.save` writes it. What its stages do is said by its reduction, see
`ssmprune.pruning.reduction`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, model_validator

from ssmprune.errors import PolicyError, unknown_name
from ssmprune.extensions import recorded
from ssmprune.faults import Fault, Location, newer
from ssmprune.files import write_atomically
from ssmprune.models.configs import ModelConfig
from ssmprune.models.zoo import configs, find_config
from ssmprune.pruning.reduction import Reduction
from ssmprune.pruning.reductions import DEFAULT, REDUCTIONS, SUMMARIES, ReductionName
from ssmprune.stage import Alignment, Merge, ModelName, PoolName, Scorer, Stage
from ssmprune.yamlfile import FilePart, YamlFile, parse, to_yaml

__all__ = ["Alignment", "Merge", "Policy", "Scorer", "Stage", "load_for", "shipped_policies"]

Schema = Literal["ssmprune.policy/1", "ssmprune.policy/2"]
SCHEMAS: tuple[Schema, Schema] = get_args(Schema)
"""The second knows merging, and grids that are pooled or reduced along one axis."""

_SHIPPED = Path(__file__).parent / "policies"


class Policy(FilePart):
    """A complete pruning decision for one model."""

    schema_: Schema = Field(
        default=SCHEMAS[0],
        alias="schema",
        description=f"{SCHEMAS[0]}, or {SCHEMAS[1]} of a policy that merges tokens or pools grids; "
        "a higher one is of a newer ssmprune",
    )
    model: ModelName = Field(
        description="the name of a model of `ssmprune models`",
        json_schema_extra=lambda schema: schema.update(enum=[*sorted(configs.filed())]),
    )
    reduction: ReductionName = Field(default=DEFAULT, description=SUMMARIES)
    stages: tuple[Stage, ...] = Field(
        strict=False, description="a list of stages, such as - {layer: 4, keep_ratio: 0.8}"
    )
    scorer: Scorer = Field(default=Scorer(), description="the scorer of every stage")
    pool: PoolName = Field(
        default="middle",
        description="with `reduction: grid`, what is scanned for the cells of a group; middle: the "
        "one in the middle; mean: their mean",
    )
    merge: Merge = Field(default=Merge(), description="how the stages that merge do it")
    alignment: Alignment = Field(
        default=Alignment(), description="alignment across the gaps of tokens that have left"
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

    @model_validator(mode="after")
    def _oldest_schema(self) -> Policy:
        """A policy says the oldest schema that has all of it, so that what is equal is equal."""
        pools = self.pool != "middle" or any(stage.axes != "both" for stage in self.stages)
        object.__setattr__(self, "schema_", SCHEMAS[self.merges or pools])
        return self

    @property
    def merges(self) -> bool:
        """Whether a stage merges tokens."""
        return any(stage.reduce == "merge" for stage in self.stages)

    def faults(self, config: ModelConfig) -> list[Fault]:
        """What keeps the policy from serving the model."""
        return list(_faults(self.model_dump(), config))

    def stage_scorer(self, stage: Stage) -> Scorer:
        """The scorer that decides at `stage`."""
        return stage.scorer or self.scorer

    @property
    def reducer(self) -> Reduction:
        """What the stages do."""
        return REDUCTIONS[self.reduction]

    def keep_counts(self, config: ModelConfig) -> tuple[int, ...]:
        """Patch tokens that are left after each stage; with `reduction: grid`, scanned at each."""
        return tuple(kept for _, kept in self.reducer.counts(self.stages, config))

    def effective_stages(self, config: ModelConfig) -> tuple[tuple[Stage, int], ...]:
        """The stages that remove anything, each with the patch tokens that it keeps."""
        pairs = zip(self.stages, self.reducer.counts(self.stages, config), strict=True)
        return tuple((stage, kept) for stage, (entering, kept) in pairs if kept < entering)

    def entering_tokens(self, config: ModelConfig) -> tuple[int, ...]:
        """Tokens that each block scans, prefix tokens included; last, those that leave the model.

        Returns:
            `depth + 1` counts.
        """
        return self.reducer.scanned(self.effective_stages(config), config)

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
        idle = set() if self.reducer.scores else {"scorer", "alignment"}
        idle |= set() if self.merges else {"merge"}
        idle |= {"pool"} if self.pool == "middle" else set()
        data = self.model_dump(by_alias=True, exclude_none=True, exclude=idle, mode="json")
        if not self.merges:
            data.get("alignment", {}).pop("sizes", None)
        for stage in data["stages"]:
            for key, default in (("reduce", "drop"), ("axes", "both")):
                if stage[key] == default:
                    del stage[key]
        for part in (data, *data["stages"]):
            if "scorer" in part and part["scorer"]["name"] != "random":
                del part["scorer"]["seed"]
        return to_yaml(data)

    def save(self, path: str | Path) -> None:
        """Write the policy file; the file appears whole or not at all."""
        write_atomically(Path(path), self.to_yaml())


def _faults(data: Mapping[str, Any], config: ModelConfig) -> Iterator[Fault]:
    """What does not fit together or the model in a policy.

    Values that break a rule of their own are passed over; pydantic tells those.
    """
    stages = data.get("stages")
    stages = stages if isinstance(stages, Sequence) and not isinstance(stages, str) else ()
    yield from _layer_faults(stages, config)
    name = data.get("reduction", DEFAULT)
    reduction = REDUCTIONS.get(name) if isinstance(name, str) else None
    if reduction is not None:
        yield from reduction.faults(data, stages, config)
    yield from newer("policy", data.get("schema"), SCHEMAS, _newer(data, stages))


def _newer(data: Mapping[str, Any], stages: Sequence[Any]) -> Iterator[tuple[Location, Any]]:
    """What a file says that came with the second schema, and where."""
    parts: list[tuple[Location, Any, tuple[str, ...]]] = [
        ((), data, ("merge", "pool")),
        (("alignment",), data.get("alignment"), ("sizes",)),
    ]
    for index, stage in enumerate(stages):
        parts.append((("stages", index), stage, ("reduce", "match", "axes")))
    for place, part, keys in parts:
        for key in keys:
            if isinstance(part, Mapping) and part.get(key) is not None:
                yield (*place, key), part[key]
    alignment = data.get("alignment")
    if isinstance(alignment, Mapping) and alignment.get("conv") == "runs":
        yield ("alignment", "conv"), "runs"


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
