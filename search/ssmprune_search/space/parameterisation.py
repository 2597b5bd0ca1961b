"""How the parameters of a trial stand for the stages of a policy: `per:` of a space's ratios.

These are the only places that know the names of a trial's parameters for stages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, product
from operator import mul
from typing import Any

from optuna.trial import BaseTrial

from ssmprune.faults import Fault
from ssmprune.stage import Stage
from ssmprune_search.space.ratios import Ratios, on_line

Named = Callable[[str], str]
"""What a trial calls a parameter of one stage, by what all stages have: `scorer`, `reduce`."""

OwnOf = Callable[[Named], Mapping[str, Any]]
"""What a trial says of a stage beside its layer and keep ratio, as fields of `Stage`."""

Own = Mapping[str, str]
"""The values of a stage's parameters beside those of its layer and keep ratio, as `Named` takes
them."""

Kept = Mapping[int, float]
"""Keep ratios by layer."""


class Parameterisation(ABC):
    """How the parameters of a trial stand for stages."""

    def __init__(self, ratios: Ratios, removing: Callable[[Kept], dict[int, float]]):
        """Args:
        ratios: Where tokens may leave, and how many.
        removing: Of keep ratios, those that remove anything.
        """
        self.ratios = ratios
        self.removing = removing

    @abstractmethod
    def suggest(self, trial: BaseTrial, own: OwnOf) -> list[Stage]:
        """The stages that a trial stands for, ascending; asks it for every parameter."""

    @abstractmethod
    def params(self, stages: Sequence[Stage], own: Sequence[Own], other: Own) -> dict[str, Any]:
        """The parameters for which `suggest` gives these stages.

        Args:
            stages: Stages without a `fault`.
            own: Of each.
            other: Of one that there is not, for a trial that asks for more.
        """

    @abstractmethod
    def fault(self, stages: Sequence[Stage]) -> Fault | None:
        """Why no parameters stand for stages with layers and keep ratios of the space."""

    def nearest(self, left: Kept, tokens: int, compounds: bool) -> dict[int, float]:
        """The keep ratios that leave most nearly some shares of the tokens.

        Args:
            left: The share that is left after a layer, by layers of the space, ascending.
            tokens: Patch tokens that enter the model.
            compounds: Whether a layer's keep ratio counts of what the layers before it have left.
        """
        return self._nearest_at(self.ratios.layers, left, tokens, compounds)

    def _nearest_at(
        self, layers: Sequence[int], left: Kept, tokens: int, compounds: bool
    ) -> dict[int, float]:
        grid = self.ratios.grid()
        if not compounds:
            return {n: min(grid, key=lambda ratio: abs(ratio - left.get(n, 1.0))) for n in layers}
        entering, share = tokens, 1.0
        kept: dict[int, float] = {}
        for layer in layers:
            share = left.get(layer, share)
            counts = {r: Stage(layer=layer, keep_ratio=r).keep(entering) for r in grid}
            wanted = share * tokens
            kept[layer] = min(grid, key=lambda ratio: abs(counts[ratio] - wanted))
            entering = counts[kept[layer]]
        return kept


class PerLayer(Parameterisation):
    """A keep ratio for each layer."""

    def suggest(self, trial: BaseTrial, own: OwnOf) -> list[Stage]:
        stages: list[Stage] = []
        for layer in self.ratios.layers:
            ratio = _suggest_ratio(trial, f"keep_ratio_{layer}", self.ratios)
            stages.append(_stage(layer, ratio, own(_at_layer(layer))))
        return stages

    def params(self, stages: Sequence[Stage], own: Sequence[Own], other: Own) -> dict[str, Any]:
        kept = {stage.layer: stage.keep_ratio for stage in stages}
        layers = self.ratios.layers
        params = {f"keep_ratio_{n}": kept.get(n, self.ratios.high) for n in layers}
        return {**params, **_own_params(layers, stages, own, other)}

    def fault(self, stages: Sequence[Stage]) -> Fault | None:
        if self.ratios.high == 1 or len(stages) == len(self.ratios.layers):
            return None
        rule = "stages must stand at every layer where ratios.high is below 1.0"
        return Fault(rule, "raise high")


class PerStage(Parameterisation):
    """A fixed number of stages, each with a layer and a keep ratio."""

    def suggest(self, trial: BaseTrial, own: OwnOf) -> list[Stage]:
        ratios = self.ratios
        stages: list[Stage] = []
        for number in range(ratios.stages or 0):
            index = trial.suggest_int(f"stage_{number}_layer_index", 0, len(ratios.layers) - 1)
            ratio = _suggest_ratio(trial, f"stage_{number}_keep_ratio", ratios)
            stages.append(_stage(ratios.layers[index], ratio, own(_at_number(number))))
        lowest: dict[int, Stage] = {}  # of those at one layer, the first that keeps fewest
        for stage in sorted(stages, key=lambda stage: (stage.layer, stage.keep_ratio)):
            lowest.setdefault(stage.layer, stage)
        return [*lowest.values()]

    def params(self, stages: Sequence[Stage], own: Sequence[Own], other: Own) -> dict[str, Any]:
        ratios = self.ratios
        params: dict[str, Any] = {}
        chosen: dict[str, str] = {}
        if not stages:
            stages, own = [Stage(layer=ratios.layers[0], keep_ratio=ratios.high)], [other]
        for number in range(ratios.stages or 0):
            place, named = min(number, len(stages) - 1), _at_number(number)
            params[named("layer_index")] = ratios.layers.index(stages[place].layer)
            params[named("keep_ratio")] = stages[place].keep_ratio
            chosen |= {named(kind): value for kind, value in own[place].items()}
        return params | chosen

    def fault(self, stages: Sequence[Stage]) -> Fault | None:
        most = self.ratios.stages or 0
        if len(stages) > most:
            return Fault(f"stages must be at most {most}, got {len(stages)}", "raise ratios.stages")
        if not stages and self.ratios.high < 1:
            return Fault("stages must not be empty where ratios.high is below 1.0", "raise high")
        return None

    def nearest(self, left: Kept, tokens: int, compounds: bool) -> dict[int, float]:
        before = dict(zip(left, [1.0, *left.values()], strict=False))
        cuts = sorted(left, key=lambda n: left[n] / before[n] if compounds else left[n])
        return self._nearest_at(sorted(cuts[: self.ratios.stages]), left, tokens, compounds)


class PerSchedule(Parameterisation):
    """A first and a last layer, and keep ratios on a straight line between them."""

    def suggest(self, trial: BaseTrial, own: OwnOf) -> list[Stage]:
        ratios = self.ratios
        start, end = sorted(
            trial.suggest_int(f"{which}_layer_index", 0, len(ratios.layers) - 1)
            for which in ("first", "last")
        )
        first, last = (
            round((ratio - ratios.low) / ratios.step)
            for ratio in [
                _suggest_ratio(trial, f"{which}_keep_ratio", ratios) for which in ("first", "last")
            ]
        )
        line = ratios.line(start, end, first, last)
        return [
            _stage(layer, line.get(layer, 1.0), own(_at_layer(layer))) for layer in ratios.layers
        ]

    def params(self, stages: Sequence[Stage], own: Sequence[Own], other: Own) -> dict[str, Any]:
        ends = self._ends(stages)
        assert ends is not None  # `fault` tells of what is on no line
        start, end, *steps = ends
        first, last = (self.ratios.grid()[step] for step in steps)
        params: dict[str, Any] = {"first_layer_index": start, "last_layer_index": end}
        params |= {"first_keep_ratio": first, "last_keep_ratio": last}
        return {**params, **_own_params(self.ratios.layers, stages, own, other)}

    def fault(self, stages: Sequence[Stage]) -> Fault | None:
        if self._ends(stages) is not None:
            return None
        kept = ", ".join(f"{stage.layer}: {stage.keep_ratio}" for stage in stages) or "none"
        return Fault(
            "keep ratios must lie on a line over successive layers of ratios.layers with "
            f"`per: schedule`, got {kept}",
            "change them, or write `per: layer`",
        )

    def nearest(self, left: Kept, tokens: int, compounds: bool) -> dict[int, float]:
        if not left:
            return {}
        ratios = self.ratios
        start, end = (ratios.layers.index(layer) for layer in (min(left), max(left)))
        shares = [1.0]
        for layer in ratios.layers[start : end + 1]:
            shares.append(left.get(layer) or (shares[-1] if compounds else 1.0))

        def distance(line: dict[int, float]) -> float:
            found: Iterable[float] = line.values()
            found = accumulate(found, mul) if compounds else found
            return sum(abs(one - other) for one, other in zip(found, shares[1:], strict=True))

        steps = range(len(ratios.grid()))
        return min((ratios.line(start, end, *pair) for pair in product(steps, steps)), key=distance)

    def _ends(self, stages: Sequence[Stage]) -> tuple[int, int, int, int] | None:
        """What `Ratios.line` takes to remove what the stages do; None where no line does.

        Of several lines it is the shortest, then the flattest. Stages that remove nothing do not
        count, so a line may go on beyond the others and be broken between them.
        """
        layers, grid = self.ratios.layers, self.ratios.grid()
        wanted = self.removing({stage.layer: stage.keep_ratio or 1 for stage in stages})
        points = [(layers.index(layer), grid.index(ratio)) for layer, ratio in wanted.items()]
        leftmost, rightmost = (points[0][0], points[-1][0]) if points else (len(layers) - 1, 0)
        steps = range(len(grid) - 1, -1, -1)
        pairs = sorted(product(steps, steps), key=lambda pair: abs(pair[0] - pair[1]))
        for start in range(leftmost, -1, -1):
            for end in range(max(start, rightmost), len(layers)):
                for first, last in pairs if points else pairs[:1]:
                    ends = (start, end, first, last)
                    if any(on_line(place, *ends) != step for place, step in points):
                        continue
                    if self.removing(self.ratios.line(*ends)) == wanted:
                        return ends
        return None


PARAMETERISATIONS: dict[str, type[Parameterisation]] = {
    "layer": PerLayer,
    "stage": PerStage,
    "schedule": PerSchedule,
}
"""By what `ratios.per` calls them."""


def _suggest_ratio(trial: BaseTrial, name: str, ratios: Ratios) -> float:
    return trial.suggest_float(name, ratios.low, ratios.high, step=ratios.step)


def _stage(layer: int, ratio: float, own: Mapping[str, Any]) -> Stage:
    return Stage(layer=layer, keep_ratio=round(ratio, 9), **own)


def _at_layer(layer: int) -> Named:
    return lambda kind: f"{kind}_{layer}"


def _at_number(number: int) -> Named:
    return lambda kind: f"stage_{number}_{kind}"


def _own_params(
    layers: Sequence[int], stages: Sequence[Stage], own: Sequence[Own], other: Own
) -> dict[str, str]:
    at = {stage.layer: values for stage, values in zip(stages, own, strict=True)}
    return {
        _at_layer(layer)(kind): value
        for layer in layers
        for kind, value in at.get(layer, other).items()
    }
