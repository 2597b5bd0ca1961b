"""Vim (Zhu et al., arXiv 2401.09417), equal to the released models, prunable by a policy.

Parameters carry the official names, so released checkpoints fit as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmprune.models.backbone import Backbone
from ssmprune.models.layers import Linear, classifier, fit_pos_embed, linear
from ssmprune.models.vim_config import VimConfig
from ssmprune.pruning.alignment import AlignedTokens, ConvReads, scan_steps
from ssmprune.pruning.block import BlockOutput
from ssmprune.pruning.scorers import Features
from ssmprune.scan import Backend, causal_conv1d_silu, selective_scan
from ssmprune.tokens import TokenStream

_NORM_EPS = 1e-5
_SHARE = 0.5  # the mean of both directions


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), _NORM_EPS)


class PatchEmbed(nn.Module):
    """Image (B, channels, H, W) to patch tokens (B, L, D) in raster order."""

    def __init__(self, config: VimConfig):
        super().__init__()
        self.proj = nn.Conv2d(
            config.channels,
            config.embed_dim,
            config.window_size,
            stride=config.stride,
            padding=config.padding,
        )

    def forward(self, images: Tensor) -> Tensor:
        grid: Tensor = self.proj(images)  # (B, D, H, W)
        return grid.flatten(2).transpose(1, 2)


class ScanInputs(NamedTuple):
    """What one direction hands to the scan; every sequence in token order."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_bias: Tensor


class MixerOutput(NamedTuple):
    """What the mixer computed for each token, before its output projection.

    Attributes:
        y: SSM output before the gate, both directions together, (B, L, E); None unless asked for.
        gated: y times silu(z), (B, L, E).
        inputs: The scan inputs of the forward and of the backward direction.
    """

    y: Tensor | None
    gated: Tensor
    inputs: tuple[ScanInputs, ...]


class Mixer(nn.Module):
    """A bidirectional Mamba mixer: one input and output projection, two scans.

    The backward direction has parameters of its own and reads the tokens from last to first.
    """

    def __init__(self, config: VimConfig, backend: Backend):
        super().__init__()
        D, E, N, R = config.embed_dim, config.inner_dim, config.d_state, config.dt_rank
        self.split = (R, N, N)
        self.backend: Backend = backend
        self.in_proj = Linear(D, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, config.d_conv, groups=E)
        self.x_proj = Linear(E, R + 2 * N, bias=False)
        self.dt_proj = Linear(R, E)
        self.A_log = nn.Parameter(torch.empty(E, N))
        self.D = nn.Parameter(torch.ones(E))
        self.conv1d_b = nn.Conv1d(E, E, config.d_conv, groups=E)
        self.x_proj_b = Linear(E, R + 2 * N, bias=False)
        self.dt_proj_b = Linear(R, E)
        self.A_b_log = nn.Parameter(torch.empty(E, N))
        self.D_b = nn.Parameter(torch.ones(E))
        self.out_proj = Linear(E, D, bias=False)
        self.reset_parameters(config.depth)

    def reset_parameters(self, depth: int) -> None:
        """Steps log-uniform in [0.001, 0.1], A = -(1..N), projections scaled by their fan-in."""
        E, N = self.A_log.shape
        nn.init.normal_(self.in_proj.weight, std=self.in_proj.in_features**-0.5)
        nn.init.normal_(self.out_proj.weight, std=(E * depth) ** -0.5)
        for A_log in (self.A_log, self.A_b_log):
            A_log.data.copy_(torch.arange(1, N + 1).float().log().expand(E, N))
        for conv in (self.conv1d, self.conv1d_b):
            nn.init.uniform_(conv.weight, -0.5, 0.5)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        for dt_proj in (self.dt_proj, self.dt_proj_b):
            bound = dt_proj.in_features**-0.5
            nn.init.uniform_(dt_proj.weight, -bound, bound)
            step = torch.empty(E).uniform_(math.log(0.001), math.log(0.1)).exp()
            dt_proj.bias.data.copy_(step + torch.log(-torch.expm1(-step)))  # inverse softplus

    def forward(
        self, normed: Tensor, aligned: AlignedTokens | None, keep_y: bool = True
    ) -> MixerOutput:
        """Run both directions over the tokens, of shape (B, L, D), up to the output projection."""
        x, z = self.in_proj(normed).chunk(2, dim=-1)  # (B, L, E) each
        ahead, back = inputs = tuple(
            self.scan_inputs(x, aligned, reverse) for reverse in (False, True)
        )
        y = self.scan(ahead, aligned, False)
        if not keep_y:
            return MixerOutput(None, self.scan(back, aligned, True, y, z), inputs)
        y = self.scan(back, aligned, True, y)
        return MixerOutput(y, y * F.silu(z), inputs)

    def scan_inputs(self, x: Tensor, aligned: AlignedTokens | None, reverse: bool) -> ScanInputs:
        """Convolve x, of shape (B, L, E), and project it to the scan's inputs."""
        if reverse:
            conv, x_proj, dt_proj = self.conv1d_b, self.x_proj_b, self.dt_proj_b
            A_log, D = self.A_b_log, self.D_b
        else:
            conv, x_proj, dt_proj = self.conv1d, self.x_proj, self.dt_proj
            A_log, D = self.A_log, self.D
        reads = ConvReads() if aligned is None else aligned.conv_reads(x)
        assert conv.bias is not None
        u = causal_conv1d_silu(
            x,
            conv.weight[:, 0],
            conv.bias,
            **reads._asdict(),
            reverse=reverse,
            backend=self.backend,
        )
        dt, B, C = x_proj(u).split(self.split, dim=-1)  # (B, L, R), (B, L, N), (B, L, N)
        delta = linear(dt, dt_proj.weight)  # the bias is added inside the scan
        return ScanInputs(u, delta, -A_log.exp(), B, C, D, dt_proj.bias)

    def scan(
        self,
        inputs: ScanInputs,
        aligned: AlignedTokens | None,
        reverse: bool,
        carry: Tensor | None = None,
        z: Tensor | None = None,
    ) -> Tensor:
        """SSM output, of shape (B, L, E), in token order, with another one added, gated by z."""
        steps = scan_steps(aligned, inputs.delta, inputs.delta_bias)
        gaps = None if aligned is None else aligned.gaps(inputs.delta_bias, reverse)
        return selective_scan(
            inputs.u,
            A=inputs.A,
            B=inputs.B,
            C=inputs.C,
            D=inputs.D,
            z=z,
            **steps._asdict(),
            gaps=gaps,
            reverse=reverse,
            backend=self.backend,
            carry=carry,
        )


class Block(nn.Module):
    """RMS norm and mixer; the residual sum is the model's business."""

    def __init__(self, config: VimConfig, backend: Backend):
        super().__init__()
        self.mixer = Mixer(config, backend)
        self.norm = RMSNorm(config.embed_dim)


class Vim(Backbone):
    """A Vim classifier."""

    config: VimConfig
    resumes = True

    def __init__(self, config: VimConfig, backend: Backend = "auto"):
        super().__init__(config, backend)
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.embed_dim) * 0.2)
        self.pos_embed = nn.Parameter(torch.randn(1, config.num_tokens, config.embed_dim) * 0.2)
        self.layers = nn.ModuleList(Block(config, backend) for _ in range(config.depth))
        self.norm_f = RMSNorm(config.embed_dim)
        self.head = classifier(config.embed_dim, config.num_classes)
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Tokens of shape (B, L, D): patches, class token in the middle, position embedding."""
        patches = self.patch_embed(images)
        middle = patches.shape[1] // 2
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([patches[:, :middle], cls, patches[:, middle:]], dim=1) + self.pos_embed

    def encode(self, images: Tensor, restore: bool) -> TokenStream:
        return self._encode(self.embed(images), 0, restore)

    def run_dense(self, entering: Tensor, first: int, last: int) -> Tensor:
        for block in cast(Iterable[Block], self.layers[first:last]):
            mixed: MixerOutput = block.mixer(block.norm(entering), None, keep_y=False)
            entering = torch.add(entering, block.mixer.out_proj(mixed.gated), alpha=_SHARE)
        return entering

    def forward_from(self, entering: Tensor, first: int) -> Tensor:
        return self.forward_head(self._encode(entering, first, restore=self.restores))

    def _encode(self, entering: Tensor, first: int, restore: bool) -> TokenStream:
        """Run the blocks from `first` on, which tokens of shape (B, L, D) enter."""
        stream = TokenStream.begin(
            entering, self.config.grid, self.config.prefix_positions, restore
        )
        aligned: AlignedTokens | None = None
        for index, block in enumerate(cast(Iterable[Block], self.layers[first:]), first):
            reduces = self.reduces_after(index)
            mixed: MixerOutput = block.mixer(block.norm(stream.hidden), aligned, keep_y=reduces)
            if self.plan is None or mixed.y is None:
                projected = block.mixer.out_proj(mixed.gated)
                stream = stream.with_hidden(torch.add(stream.hidden, projected, alpha=_SHARE))
                continue
            steps = tuple((scan.delta, scan.delta_bias) for scan in mixed.inputs)
            features = Features(mixed.y, steps, stream.positions, stream.prefix_mask(), index)
            weights = tuple((scan.B, scan.C) for scan in mixed.inputs)
            output = BlockOutput(features, mixed.gated, weights, block.mixer.out_proj, _SHARE)
            stream = self.reduce(stream, output)
            aligned = AlignedTokens.of(
                self.plan.alignment, stream.positions, stream.num_tokens, stream.members
            )
        stream = stream.restored()
        return stream.with_hidden(self.norm_f(stream.hidden))

    def forward_head(self, stream: TokenStream) -> Tensor:
        """Logits of shape (B, num_classes), from the class token."""
        logits: Tensor = self.head(stream.prefix_tokens()[:, 0])
        return logits

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resize a position embedding that was trained on another, square grid.

        As the official fine-tuning script does it: row 0 stays first, though the class token
        stands in the middle; the other rows are resized as the grid.
        """
        return fit_pos_embed(weights, self.config.grid, prefix_rows=1)
