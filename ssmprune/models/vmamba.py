"""VMamba (Liu et al., arXiv 2401.10166), equal to the released models, reducible by a policy.

A hierarchy of four levels; every block scans its H x W grid in four directions. The
vanilla models are the first release: a gate on the scan's output, no MLP, patches that do not
overlap. Everything is channel-last, (B, H, W, D); parameters carry the official names, so released
checkpoints fit as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import count
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmprune.models.backbone import Backbone
from ssmprune.models.layers import Linear, classifier, linear
from ssmprune.models.vmamba_config import VMambaConfig
from ssmprune.pruning.grid import GridStep
from ssmprune.scan import Backend, selective_scan
from ssmprune.tokens import TokenStream

_NORM_EPS = 1e-5
_DIRECTIONS = 4


class ToFirst(nn.Module):
    """(B, H, W, D) to (B, D, H, W), as convolutions take it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class ToLast(nn.Module):
    """(B, D, H, W) to (B, H, W, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def patch_embed(config: VMambaConfig) -> nn.Sequential:
    """Image (B, channels, H, W) to patch tokens (B, H / 4, W / 4, D)."""
    C, D = config.channels, config.widths[0]
    if config.vanilla:
        return nn.Sequential(nn.Conv2d(C, D, 4, stride=4), ToLast(), nn.LayerNorm(D, _NORM_EPS))
    return nn.Sequential(
        nn.Conv2d(C, D // 2, 3, stride=2, padding=1),
        ToLast(),
        nn.LayerNorm(D // 2, _NORM_EPS),
        ToFirst(),
        nn.GELU(),
        nn.Conv2d(D // 2, D, 3, stride=2, padding=1),
        ToLast(),
        nn.LayerNorm(D, _NORM_EPS),
    )


class PatchMerging(nn.Module):
    """Half the resolution: 2 x 2 tokens side by side, projected; odd sizes are padded with zeros.

    The four come in the order top left, bottom left, top right, bottom right.
    """

    def __init__(self, width: int, next_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, _NORM_EPS)
        self.reduction = Linear(4 * width, next_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return merged


def downsample(config: VMambaConfig, level: int) -> nn.Module:
    """From one level to the next: (B, H, W, D) to (B, ceil(H / 2), ceil(W / 2), D')."""
    width, next_width = config.widths[level : level + 2]
    if config.vanilla:
        return PatchMerging(width, next_width)
    conv = nn.Conv2d(width, next_width, 3, stride=2, padding=1)
    return nn.Sequential(ToFirst(), conv, ToLast(), nn.LayerNorm(next_width, _NORM_EPS))


class ScanInputs(NamedTuple):
    """What one direction hands to the scan; sequences run row by row or column by column."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_bias: Tensor


class SS2D(nn.Module):
    """The four-way scan of a grid: rows, columns, and both from last to first.

    Every direction has parameters of its own and projects the sequence that it scans.
    """

    def __init__(self, config: VMambaConfig, width: int, backend: Backend):
        super().__init__()
        D, E, N, K = width, config.expand * width, config.d_state, _DIRECTIONS
        R = -(-width // 16)
        self.split = [R, N, N]
        self.vanilla = config.vanilla
        self.backend: Backend = backend
        self.in_proj = Linear(D, 2 * E if config.vanilla else E, bias=False)
        self.conv2d = nn.Conv2d(E, E, 3, padding=1, groups=E, bias=config.vanilla)
        self.x_proj_weight = nn.Parameter(torch.empty(K, R + 2 * N, E))
        self.dt_projs_weight = nn.Parameter(torch.empty(K, E, R))
        self.dt_projs_bias = nn.Parameter(torch.empty(K, E))
        self.A_logs = nn.Parameter(torch.empty(K * E, N))
        self.Ds = nn.Parameter(torch.ones(K * E))
        self.out_norm = nn.LayerNorm(E, _NORM_EPS)
        self.out_proj = Linear(E, D, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Steps log-uniform in [0.001, 0.1], A = -(1..N), projections scaled by their fan-in."""
        _, E, R = self.dt_projs_weight.shape
        nn.init.uniform_(self.x_proj_weight, -(E**-0.5), E**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(R**-0.5), R**-0.5)
        step = torch.empty_like(self.dt_projs_bias).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_projs_bias.data.copy_(step + torch.log(-torch.expm1(-step)))  # inverse softplus
        N = self.A_logs.shape[1]
        self.A_logs.data.copy_(torch.arange(1, N + 1).float().log().expand_as(self.A_logs))

    def forward(self, normed: Tensor, step: GridStep | None) -> Tensor:
        """The scan's result, projected, of shape (B, H, W, D).

        Args:
            normed: Tokens of shape (B, H, W, D).
            step: The cells that are scanned; None for all of them. What acts on each
                token alone gives the same before and after the result is spread over the grid,
                so it runs before.
        """
        x, z = self.project(normed)
        subset = None if step is None else step.subset(x)
        y = self.out_norm(self.scan_grid(x if subset is None else subset.reduce(x)))
        if z is not None:
            y = y if subset is None else subset.restore(y)
            out: Tensor = self.out_proj(y * F.silu(z))
            return out
        out = self.out_proj(y)
        return out if subset is None else subset.restore(out)

    def project(self, normed: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is scanned and, in vanilla models, the gate: (B, H, W, E) each."""
        x, z = self.in_proj(normed), None
        if self.vanilla:
            x, z = x.chunk(2, dim=-1)
        return F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1), z

    def scan_grid(self, x: Tensor) -> Tensor:
        """Scan x, of shape (B, H, W, E), in all directions; the sum, in the same shape."""
        B, H, W, E = x.shape
        inputs = self.scan_inputs(x)
        by_rows = self.scan(inputs[0], False) + self.scan(inputs[2], True)
        by_columns = self.scan(inputs[1], False) + self.scan(inputs[3], True)
        return by_rows.view(B, H, W, E) + by_columns.view(B, W, H, E).transpose(1, 2)

    def scan_inputs(self, x: Tensor) -> list[ScanInputs]:
        """The inputs of rows, columns, rows reversed, columns reversed.

        The reversed directions share the sequence of the first two, to be walked backwards.
        """
        E = x.shape[-1]
        A, D = -self.A_logs.exp().view(_DIRECTIONS, E, -1), self.Ds.view(_DIRECTIONS, E)
        sequences = (x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2))  # (B, L, E) each
        inputs = []
        for k in range(_DIRECTIONS):
            u = sequences[k % 2]
            dt, B, C = torch.split(linear(u, self.x_proj_weight[k]), self.split, dim=-1)
            delta = dt @ self.dt_projs_weight[k].t()  # the bias is added inside the scan
            inputs.append(ScanInputs(u, delta, A[k], B, C, D[k], self.dt_projs_bias[k]))
        return inputs

    def scan(self, inputs: ScanInputs, reverse: bool) -> Tensor:
        """SSM output of one direction, of shape (B, L, E), in the order of its inputs."""
        return selective_scan(
            *inputs[:6],
            delta_bias=inputs.delta_bias,
            delta_softplus=True,
            reverse=reverse,
            backend=self.backend,
        )


class MLP(nn.Module):
    """Two linear layers with GELU, token by token."""

    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.fc1 = Linear(width, hidden_width)
        self.fc2 = Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """Four-way scan and, except in vanilla models, MLP, each on a residual."""

    def __init__(self, config: VMambaConfig, width: int, backend: Backend):
        super().__init__()
        self.norm = nn.LayerNorm(width, _NORM_EPS)
        self.op = SS2D(config, width, backend)
        self.mlp: MLP | None = None
        if not config.vanilla:
            self.norm2 = nn.LayerNorm(width, _NORM_EPS)
            self.mlp = MLP(width, config.mlp_ratio * width)

    def forward(self, x: Tensor, step: GridStep | None) -> Tensor:
        x = x + self.op(self.norm(x), step)
        return x if self.mlp is None else x + self.mlp(self.norm2(x))


class Level(nn.Module):
    """The blocks of one resolution and, except after the last, the way to the next one."""

    def __init__(self, config: VMambaConfig, level: int, backend: Backend):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config, config.widths[level], backend) for _ in range(config.depths[level])
        )
        is_last = level == len(config.depths) - 1
        self.downsample = nn.Identity() if is_last else downsample(config, level)


class Classifier(nn.Module):
    """The final norm, and the linear layer on the mean over the grid."""

    def __init__(self, config: VMambaConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.embed_dim, _NORM_EPS)
        self.head = classifier(config.embed_dim, config.num_classes)


class VMamba(Backbone):
    """A VMamba classifier, for images of any size."""

    config: VMambaConfig
    head_name = "classifier.head"

    def __init__(self, config: VMambaConfig, backend: Backend = "auto"):
        super().__init__(config, backend)
        self.patch_embed = patch_embed(config)
        self.layers = nn.ModuleList(
            Level(config, level, backend) for level in range(len(config.depths))
        )
        self.classifier = Classifier(config)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def encode(self, images: Tensor, restore: bool) -> TokenStream:
        """The tokens of the last level, which is whole under every policy."""
        x = self.patch_embed(images)
        steps = {} if self.plan is None else self.plan.steps
        layers = count()
        for level in cast(Iterable[Level], self.layers):
            for block in cast(Iterable[Block], level.blocks):
                x = block(x, steps.get(next(layers)))
            x = level.downsample(x)
        normed = self.classifier.norm(x)
        B, H, W, _ = normed.shape
        positions = torch.arange(H * W, device=normed.device).expand(B, -1)
        return TokenStream(normed.flatten(1, 2), positions, (H, W), ())

    def forward_head(self, stream: TokenStream) -> Tensor:
        """Logits of shape (B, num_classes), from the mean of the tokens."""
        logits: Tensor = self.classifier.head(stream.hidden.mean(1))
        return logits

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of older files, and make matrices of projections with 1 x 1 windows."""
        return {
            _renamed(key): x.flatten(1) if x.shape[2:] == (1, 1) else x
            for key, x in weights.items()
        }


_OLD_NAMES = {
    r"^patch_embed\.proj\.": "patch_embed.0.",
    r"^patch_embed\.norm\.": "patch_embed.2.",
    r"\.ln_1\.": ".norm.",
    r"\.self_attention\.": ".op.",
    r"^(norm|head)\.": r"classifier.\1.",
}


def _renamed(key: str) -> str:
    for old, new in _OLD_NAMES.items():
        key = re.sub(old, new, key)
    return key
