"""Modules and an installed package of a user's own, as text that tests write to files."""

from pathlib import Path

SCORERS = """
from ssmprune.pruning.alignment import register_decay
from ssmprune.pruning.scorers import register_scorer


@register_scorer("peak", flops=lambda L, E, K: L * E)
def peak(features):
    return features.y.amax(-1)


@register_decay("fading")
def fading(counts_BL, delta_bias_E, strength):
    import torch.nn.functional as F

    from ssmprune.scan import Gaps

    return Gaps(counts_BL.log1p(), strength * F.softplus(delta_bias_E), 0.0)
"""

MODELS = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from ssmprune.measure import flops_vim
from ssmprune.models.vim_config import VimConfig
from ssmprune.models.families import register_family
from ssmprune.models.vim import Vim
from ssmprune.models.zoo import register_config


@dataclass(frozen=True, kw_only=True)
class FrontVimConfig(VimConfig):
    family: ClassVar[str] = "front_vim"
    prefix_positions = (0,)


class FrontVim(Vim):
    def embed(self, images):
        patches = self.patch_embed(images)
        cls = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([cls, patches], dim=1) + self.pos_embed


register_family("front_vim", FrontVim, flops_vim)
register_config(
    FrontVimConfig(
        name="front_vim_nano", image_size=(48, 48), channels=1, num_classes=10, window_size=10,
        stride=6, padding=2, embed_dim=16, depth=4, d_state=4,
    )
)
"""

POLICY = """\
schema: ssmprune.policy/1
model: vim_nano
stages:
  - {layer: 1, keep_ratio: 7e-1}
scorer: {name: peak}
alignment: {decay: fading}
"""


def write_module(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def install(folder: Path, **modules: str) -> Path:
    """Lay out the package `my_package` 1.0 in `folder`, each module being an entry point."""
    for name, text in {"__init__": "", **modules}.items():
        write_module(folder / "my_package" / f"{name}.py", text)
    entries = "\n".join(f"{name} = my_package.{name}" for name in modules)
    info = folder / "my_package-1.0.dist-info"
    write_module(info / "METADATA", "Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    write_module(info / "entry_points.txt", f"[ssmprune]\n{entries}\n")
    return folder
