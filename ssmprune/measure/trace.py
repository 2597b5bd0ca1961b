"""FLOPs of a model as fvcore finds them in a trace of its forward.

The check of the closed form in `ssmprune.measure.flops`: an operator that neither has a price nor
is known to be free is an error, since fvcore alone would log it and count zero.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
from torch.jit._trace import TracerWarning

from ssmprune.errors import SsmpruneError
from ssmprune.measure.flops import FlopCount
from ssmprune.measure.rows import NORM_FLOPS, SCAN_FLOPS, FlopRow
from ssmprune.models.backbone import Backbone
from ssmprune.models.configs import ModelConfig
from ssmprune.models.families import families
from ssmprune.pruning.scorers import sort_flops

Handle = Callable[[list[Any], list[Any]], int]

# Element-wise arithmetic, and constants, that fvcore neither prices nor ignores.
_FREE = (
    "__or__",
    "abs",
    "add",
    "diff",
    "div",
    "exp",
    "gelu",
    "le",
    "lift_fresh",
    "log",
    "log1p",
    "lt",
    "mul",
    "ne",
    "neg",
    "pad",
    "rand",
    "reciprocal",
    "rsub",
    "silu",
    "softplus",
    "sqrt",
    "square",
    "sub",
    "where",
)

# What the publications do not charge, in every family, by fvcore's operator.
_UNCHARGED = {
    "embedding": "gather",
    "flip": "gather",
    "index_select": "gather",
    "scatter": "scatter",
    "sum": "score",
    "mean": "score",
    "amax": "score",
    "amin": "score",
    "index": "score",
    "sort": "sort",
    "gather": "gather",
    "argmax": "gather",
    "cumsum": "score",
}

# What they charge in every family, of the operators that no module's name stands for.
_CHARGED = {"matmul": "match"}


def trace_flops(model: Backbone) -> FlopCount:
    """Count the FLOPs of one image by tracing `model`, dense or pruned as it is.

    The trace runs on a copy, on the CPU in float32.

    Raises:
        SsmpruneError: The forward holds an operator whose FLOPs are not known.
    """
    config = model.config
    model = copy.deepcopy(model).cpu().float().eval()
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = "auto"  # type: ignore[assignment]
    image = torch.zeros(1, config.channels, *config.image_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=TracerWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, image)
        analysis.set_op_handle(**_handles())
        analysis.set_op_handle(**{f"aten::{name}": None for name in _FREE})
        with torch.no_grad(), _silenced("fvcore"):
            counts = analysis.by_module_and_operator()
            skipped = analysis.unsupported_ops()
    if skipped:
        raise SsmpruneError(
            f"every operator must have a FLOP count, got {', '.join(sorted(skipped))} in "
            f"{config.name}; give it a handle in {__name__}."
        )
    return FlopCount(tuple(_rows(counts, config)))


def _rows(counts: dict[str, dict[str, int]], config: ModelConfig) -> Iterator[FlopRow]:
    """The leaves of fvcore's table, on both rules."""
    family = families[config.family].flops
    own = {
        path: {
            operator: int(total)
            - sum(int(counts[child].get(operator, 0)) for child in _children(path, counts))
            for operator, total in operators.items()
        }
        for path, operators in counts.items()
    }
    for path, operators in own.items():
        layer = re.match(r"layers\.\d+(\.blocks\.\d+)?", path)
        part = layer[0] if layer else path.split(".")[0]
        in_projs = (p for p in own if p.startswith(f"{part}.") and p.endswith(".in_proj"))
        in_proj = sum(own[p]["linear"] for p in in_projs)
        for operator, flops in operators.items():
            if not flops:
                continue
            name = family.NAMES.get((_last_name(path), operator))
            if name is None and operator in _CHARGED:
                yield FlopRow(part, _CHARGED[operator], flops, flops)
            elif name is None:
                yield FlopRow(part, _UNCHARGED[operator], flops, 0)
            else:
                paper = family.paper_flops(config, name, flops, in_proj)
                yield FlopRow(part, name.removesuffix("_b"), flops, paper)


def _last_name(path: str) -> str:
    """The last module on a path that is no number in a list of modules."""
    return re.sub(r"(\.\d+)+$", "", path).rpartition(".")[2]


def _children(path: str, paths: dict[str, Any]) -> Iterator[str]:
    prefix = f"{path}." if path else ""
    for other in paths:
        if other != path and other.startswith(prefix) and "." not in other[len(prefix) :]:
            yield other


def _handles() -> dict[str, Handle]:
    from fvcore.nn.jit_handles import get_shape

    def shape(value: Any) -> list[int]:
        return list(get_shape(value))

    return {
        "ssmprune::selective_scan": lambda i, o: SCAN_FLOPS * prod(shape(i[0])) * shape(i[2])[1],
        "ssmprune::causal_conv1d_silu": lambda i, o: prod(shape(i[0])) * shape(i[1])[1],
        "aten::rms_norm": lambda i, o: NORM_FLOPS * prod(shape(i[0])),
        "aten::sum": lambda i, o: prod(shape(i[0])),
        "aten::mean": lambda i, o: prod(shape(i[0])),
        "aten::amax": lambda i, o: prod(shape(i[0])),
        "aten::amin": lambda i, o: prod(shape(i[0])),
        "aten::cumsum": lambda i, o: prod(shape(i[0])),
        "aten::argmax": lambda i, o: prod(shape(i[0])),
        "aten::sort": lambda i, o: sort_flops(shape(i[0])[1]),
        "aten::embedding": lambda i, o: prod(shape(o[0])),
        "aten::flip": lambda i, o: prod(shape(o[0])),
        "aten::gather": lambda i, o: prod(shape(o[0])),
        "aten::index_select": lambda i, o: prod(shape(o[0])),
        "aten::scatter": lambda i, o: prod(shape(i[2])),
        "aten::index": lambda i, o: prod(shape(o[0])),
    }


class _silenced:
    """Keeps a library from logging what is raised as an error here."""

    def __init__(self, logger: str):
        self.logger = logging.getLogger(logger)

    def __enter__(self) -> None:
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)
