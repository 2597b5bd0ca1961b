"""PlainMamba (Yang et al., arXiv 2403.17695), equal to the released models, prunable by a policy.

Four scans walk the grid: zigzag by rows, zigzag by columns, and both backwards. As in the released
code only x follows an order; dt, B and C do not. At step t of a scan

    u = x[order_t],    dt, B and C of token t in raster order,

and `direction_Bs` of the move that led to the step is added to B. The bias of dt enters twice.

Of a pruned grid the scans walk the tokens that are left, M of them in raster order. Each order
visits them as it would on the whole grid: its t-th step takes x of the t-th kept token along the
order, dt, B and C of the t-th kept token in raster order, and the move that led to the visited
token on the whole grid. The gaps are those of the whole order. Laid out on that order, with u = 0
and the step softplus(2 dt_bias) where tokens were pruned, this is a full-length scan, which the
aligned one equals (`zero_input`, strength 1).

Parameters carry the official names, without `backbone.`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmprune.errors import UsageError
from ssmprune.models.backbone import Backbone
from ssmprune.models.layers import Linear, classifier, fit_pos_embed, resize_grid
from ssmprune.models.plain_mamba_config import PlainMambaConfig
from ssmprune.policy import Alignment
from ssmprune.pruning.alignment import AlignedTokens, asks_members, scan_steps
from ssmprune.pruning.block import BlockOutput
from ssmprune.pruning.scorers import Features
from ssmprune.scan import Backend, selective_scan
from ssmprune.tokens import TokenStream, moved, put, take

Indices = NDArray[np.int64]

_MOVES = 5  # the first step, right, left, up, down: rows of direction_Bs
_STEM_WIDTH = 64
_FINAL_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Walk:
    """A zigzag order over the tokens that are left, walked forwards and backwards.

    Attributes:
        order: Token that stands at each place along the walk, (L,), or (B, L) of a pruned grid.
        place: Place of each token along the walk, in the shape of `order`.
        moves: Label of the move that led to each place, walked forwards and backwards.
        aligned: The gaps along the walk; None where no token was pruned.
    """

    order: Tensor
    place: Tensor
    moves: tuple[Tensor, Tensor]
    aligned: AlignedTokens | None = None

    def left(self, positions_BM: Tensor, members_BL: Tensor | None, alignment: Alignment) -> Walk:
        """This walk over a whole grid, for the tokens that are left of it."""
        steps_BM, order_BM = _at(self.place, positions_BM).sort(dim=1)
        count_BM = torch.arange(order_BM.shape[1], device=order_BM.device).expand(order_BM.shape)
        place_BM = torch.zeros_like(order_BM).scatter(1, order_BM, count_BM)
        along = None
        if members_BL is not None and asks_members(alignment):
            along = moved(members_BL.index_select(1, self.order), place_BM)
        return Walk(
            order=order_BM,
            place=place_BM,
            moves=(_at(self.moves[0], steps_BM), _at(self.moves[1], steps_BM)),
            aligned=AlignedTokens.of(alignment, steps_BM, len(self.order), along),
        )


def _at(values_L: Tensor, indices_BM: Tensor) -> Tensor:
    return take(values_L.expand(len(indices_BM), -1), indices_BM)


@functools.cache
def zigzags(height: int, width: int) -> tuple[Indices, Indices]:
    """The raster index at each step of the zigzags along the rows and along the columns."""
    raster = np.arange(height * width).reshape(height, width)
    return _snake(raster), _snake(raster.T)


def _snake(lines: Indices) -> Indices:
    turned = lines.copy()
    turned[1::2] = turned[1::2, ::-1]
    steps: Indices = turned.ravel()
    return steps


def move_labels(order: Indices, width: int) -> Indices:
    """The move that led to each step: 0 for the first, 1 right, 2 left, 3 up, 4 down."""
    down, right = np.diff(order // width), np.diff(order % width)
    moves = np.select([right == 1, right == -1, down == -1, down == 1], [1, 2, 3, 4])
    return np.append(0, moves).astype(np.int64)


@dataclass(frozen=True)
class GridTokens:
    """Where the tokens that are left stand on the grid.

    Attributes:
        grid: H and W.
        device: Where the tokens are.
        positions: Raster positions of the tokens, (B, L); None where none was pruned.
        alignment: How the scans and the convolution treat the places of those that have left.
        members: The token that each position is in, (B, H W), -1 where it has left; None where no
            token was merged.
    """

    grid: tuple[int, int]
    device: torch.device
    positions: Tensor | None = None
    alignment: Alignment | None = None
    members: Tensor | None = None

    @functools.cached_property
    def walks(self) -> tuple[Walk, Walk]:
        """The walks along the rows and along the columns."""
        by_rows, by_columns = (self._walk(order) for order in zigzags(*self.grid))
        return by_rows, by_columns

    def _walk(self, order: Indices) -> Walk:
        width = self.grid[1]
        backwards = move_labels(order[::-1], width)[::-1]
        arrays = (order, np.argsort(order), move_labels(order, width), backwards)
        visited, place, *moves = (torch.from_numpy(a.copy()).to(self.device) for a in arrays)
        walk = Walk(visited, place, (moves[0], moves[1]))
        if self.positions is None or self.alignment is None:
            return walk
        return walk.left(self.positions, self.members, self.alignment)

    def lay_out(self, values_BLE: Tensor) -> Tensor:
        """The tokens on their grid, zero where one was pruned, of shape (B, E, H, W).

        With `conv: runs` a merged token stands at the place of each of its members.
        """
        batch, _, width = values_BLE.shape
        if self._reads_runs and self.members is not None:
            values_BLE = take(values_BLE, self.members.clamp(min=0))
            values_BLE = values_BLE.masked_fill(self.members[..., None] < 0, 0)
        elif self.positions is not None:
            empty = values_BLE.new_zeros(batch, math.prod(self.grid), width)
            values_BLE = put(values_BLE, self.positions, empty)
        return values_BLE.reshape(batch, *self.grid, width).permute(0, 3, 1, 2)

    @property
    def _reads_runs(self) -> bool:
        return self.alignment is not None and self.alignment.conv == "runs"

    def collect(self, grid_BEHW: Tensor) -> Tensor:
        """The values at the tokens that are left, of shape (B, L, E)."""
        values = grid_BEHW.permute(0, 2, 3, 1).flatten(1, 2)
        return values if self.positions is None else take(values, self.positions)


class PatchEmbed(nn.Module):
    """Image (B, channels, height, width) to patches on their grid (B, D, H, W)."""

    def __init__(self, config: PlainMambaConfig):
        super().__init__()
        width, patch = _STEM_WIDTH, config.patch_size // 2
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.convs = nn.Sequential()
        for _ in range(config.num_convs):
            self.convs.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.convs.append(nn.BatchNorm2d(width))
            self.convs.append(nn.ReLU())
        self.projection = nn.Conv2d(width, config.embed_dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        x = self.convs(self.stem(images))
        patch = self.projection.kernel_size[0]
        bottom, right = -x.shape[2] % patch, -x.shape[3] % patch
        grid: Tensor = self.projection(F.pad(x, (0, right, 0, bottom)))
        return grid


class ScanInputs(NamedTuple):
    """What goes by step, not by token: delta with its bias once (B, L, E), B and C (B, L, N)."""

    delta: Tensor
    B: Tensor
    C: Tensor

    def backwards(self) -> ScanInputs:
        """The last step's first: what a scan walks backwards along the same sequence."""
        return ScanInputs(self.delta.flip(1), self.B.flip(1), self.C.flip(1))


class MixerOutput(NamedTuple):
    """What the mixer computed for each token, before its output projection.

    Attributes:
        y: SSM output before the gate, all four directions together, (B, L, E).
        gated: y times silu(z), (B, L, E).
        inputs: The scan inputs.
    """

    y: Tensor
    gated: Tensor
    inputs: ScanInputs


class Mixer(nn.Module):
    """A Mamba mixer with a convolution on the grid and four scans that share all parameters."""

    def __init__(self, config: PlainMambaConfig, backend: Backend):
        super().__init__()
        D, E, N, R = config.embed_dim, config.inner_dim, config.d_state, config.dt_rank
        self.split = (R, N, N)
        self.backend: Backend = backend
        self.A_log = nn.Parameter(torch.arange(1, N + 1).float().log().repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))
        self.direction_Bs = nn.Parameter(torch.empty(_MOVES, N))
        self.in_proj = Linear(D, 2 * E)
        self.conv2d = nn.Conv2d(E, E, config.conv_size, padding=config.conv_size // 2, groups=E)
        self.x_proj = Linear(E, R + 2 * N, bias=False)
        self.dt_proj = Linear(R, E)
        self.out_proj = Linear(E, D)
        nn.init.trunc_normal_(self.direction_Bs, std=0.02)

    def forward(self, normed: Tensor, tokens: GridTokens) -> MixerOutput:
        """Run all directions over the tokens, of shape (B, L, D), up to the output projection."""
        x, z = self.in_proj(normed).chunk(2, dim=-1)  # (B, L, E) each
        u = F.silu(tokens.collect(self.conv2d(tokens.lay_out(x))))
        dt, B, C = self.x_proj(u).split(self.split, dim=-1)  # (B, L, R), (B, L, N), (B, L, N)
        inputs = ScanInputs(self.dt_proj(dt), B, C)
        both = (inputs, inputs.backwards())
        by_rows, by_columns = (self.walk(u, both, walk) for walk in tokens.walks)
        y = by_rows + by_columns
        return MixerOutput(y, y * F.silu(z), inputs)

    def walk(self, u: Tensor, inputs: tuple[ScanInputs, ScanInputs], walk: Walk) -> Tensor:
        """Both directions of a walk together, (B, L, E), from and to raster order."""
        visited = at(u, walk.order)
        y = self.scan(visited, inputs[0], walk, False)
        return at(self.scan(visited, inputs[1], walk, True, y), walk.place)

    def scan(
        self,
        u: Tensor,
        inputs: ScanInputs,
        walk: Walk,
        reverse: bool,
        carry: Tensor | None = None,
    ) -> Tensor:
        """SSM output of one direction, (B, L, E), along the walk as `u` is, on top of `carry`."""
        bias = self.dt_proj.bias
        gaps = None if walk.aligned is None else walk.aligned.gaps(2 * bias, reverse)
        return selective_scan(
            u,
            A=-self.A_log.exp(),
            B=inputs.B + F.embedding(walk.moves[reverse], self.direction_Bs),
            C=inputs.C,
            D=self.D,
            **scan_steps(walk.aligned, inputs.delta, bias)._asdict(),
            gaps=gaps,
            reverse=reverse,
            backend=self.backend,
            carry=carry,
        )


def at(values: Tensor, indices: Tensor) -> Tensor:
    """The rows of `values`, (B, L, E), at indices (M,), or at each image's own, (B, M)."""
    return values.index_select(1, indices) if indices.dim() == 1 else take(values, indices)


class Layer(nn.Module):
    """Norm, mixer, and in some layers a convolution over the grid that all of it passes through."""

    def __init__(self, config: PlainMambaConfig, index: int, backend: Backend):
        super().__init__()
        D = config.embed_dim
        self.norm = nn.LayerNorm(D)
        self.dw: nn.Sequential | None = None
        if index in config.dw_layers:
            conv = nn.Conv2d(D, D, 3, padding=1, groups=D, bias=False)
            self.dw = nn.Sequential(conv, nn.BatchNorm2d(D), nn.GELU())
        self.mamba = Mixer(config, backend)

    def smooth(self, hidden: Tensor, tokens: GridTokens) -> Tensor:
        """What follows the residual sum, (B, L, D): the convolution, or nothing."""
        return hidden if self.dw is None else tokens.collect(self.dw(tokens.lay_out(hidden)))


class Head(nn.Module):
    """Mean over the patches and classifier."""

    def __init__(self, config: PlainMambaConfig):
        super().__init__()
        self.fc = classifier(config.embed_dim, config.num_classes)

    def forward(self, hidden: Tensor, sizes: Tensor | None) -> Tensor:
        """Logits from tokens, (B, L, D), that stand for so many patches, (B, L); None: for one."""
        if sizes is not None:
            hidden = hidden * (sizes * (sizes.shape[1] / sizes.sum(1, keepdim=True)))[..., None]
        logits: Tensor = self.fc(hidden.mean(1))
        return logits


class PlainMamba(Backbone):
    """A PlainMamba classifier; a dense one takes images of any size."""

    config: PlainMambaConfig
    head_name = "head.fc"

    def __init__(self, config: PlainMambaConfig, backend: Backend = "auto"):
        super().__init__(config, backend)
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_patches, config.embed_dim))
        self.layers = nn.ModuleList(Layer(config, i, backend) for i in range(config.depth))
        self.ln1 = nn.LayerNorm(config.embed_dim, eps=_FINAL_NORM_EPS)
        self.head = Head(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the official training begins: linear layers narrow, without a special dt_proj."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.normal_(self.head.fc.weight, std=0.01)

    def embed_grid(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens of shape (B, L, D) in raster order with their position embedding; their grid."""
        patches = self.patch_embed(images)
        height, width = (int(side) for side in patches.shape[2:])  # plain numbers in a trace too
        pos_embed: Tensor = self.pos_embed
        if (height, width) != self.config.grid:
            pos_embed = resize_grid(pos_embed, self.config.grid, (height, width))
        return patches.flatten(2).transpose(1, 2) + pos_embed, (height, width)

    def encode(self, images: Tensor, restore: bool) -> TokenStream:
        hidden, grid = self.embed_grid(images)
        if self.plan is not None and grid != self.config.grid:
            raise UsageError(
                f"images must have {self.config.grid} patches under a policy, got {grid}; "
                "create the model with their image_size."
            )
        stream = TokenStream.begin(hidden, grid, self.config.prefix_positions, restore)
        tokens = GridTokens(grid, hidden.device)
        for index, layer in enumerate(cast(Iterable[Layer], self.layers)):
            mixed: MixerOutput = layer.mamba(layer.norm(stream.hidden), tokens)
            if self.plan is not None and self.reduces_after(index):
                steps = ((mixed.inputs.delta, layer.mamba.dt_proj.bias),)
                features = Features(mixed.y, steps, stream.positions, stream.prefix_mask(), index)
                weights = ((mixed.inputs.B, mixed.inputs.C),)
                output = BlockOutput(features, mixed.gated, weights, layer.mamba.out_proj)
                stream = self.reduce(stream, output)
                tokens = GridTokens(
                    grid, hidden.device, stream.positions, self.plan.alignment, stream.members
                )
            else:
                projected = layer.mamba.out_proj(mixed.gated)
                stream = stream.with_hidden(stream.hidden + projected)
            stream = stream.with_hidden(layer.smooth(stream.hidden, tokens))
        stream = stream.restored()
        return stream.with_hidden(self.ln1(stream.hidden))

    def forward_head(self, stream: TokenStream) -> Tensor:
        """Logits of shape (B, num_classes), from the mean over the patches that are left."""
        sizes = None if stream.members is None else stream.sizes(stream.hidden.dtype)
        logits: Tensor = self.head(stream.hidden, sizes)
        return logits

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resize a position embedding that was trained on another, square grid."""
        return fit_pos_embed(weights, self.config.grid, prefix_rows=0)
