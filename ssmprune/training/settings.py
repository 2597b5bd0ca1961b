"""The numbers that decide what a training run computes, and the recipes that ship them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from timm.optim._optim_factory import list_optimizers

from ssmprune.bounds import MOST_EPOCHS, MOST_IMAGES, MOST_SEED, MOST_STEPS
from ssmprune.errors import RecipeError, UsageError, unknown_name
from ssmprune.faults import Fault, unknown
from ssmprune.yamlfile import FilePart, YamlFile, fault_of, parse

SCHEMA: Literal["ssmprune.recipe/1"] = "ssmprune.recipe/1"
_SHIPPED = Path(__file__).parents[1] / "recipes"


Real = Annotated[float, Field(allow_inf_nan=False)]


class TrainSettings(FilePart):
    """Optimiser, schedule, augmentation and losses; `schema: ssmprune.recipe/1` as a file."""

    schema_: Literal["ssmprune.recipe/1"] = Field(
        default=SCHEMA, alias="schema", description=f"write {SCHEMA}"
    )
    steps: int | None = Field(default=None, ge=1, le=MOST_STEPS, description="batches to train on")
    epochs: Real | None = Field(
        default=None,
        gt=0,
        le=MOST_EPOCHS,
        description="passes over the training images, in place of steps",
    )
    batch_size: int = Field(
        default=64, ge=1, le=MOST_IMAGES, description="images per step, over all workers together"
    )
    accumulate: int = Field(
        default=1, ge=1, description="parts in which each worker computes its share of a batch"
    )
    optimizer: str = Field(default="adamw", description="a name of timm's optimisers")
    betas: tuple[Real, Real] | None = Field(
        default=(0.9, 0.98),
        strict=False,
        description="the optimiser's betas, where it has any; null for timm's own",
    )
    lr: Real = Field(gt=0, description="highest learning rate")
    schedule: Literal["cosine", "tanh", "poly"] = Field(
        default="cosine", description="how the learning rate falls; poly falls linearly"
    )
    final_lr: Real = Field(
        default=0.02, ge=0, le=1, description="share of lr that is left after the last step"
    )
    warmup: Real = Field(
        default=0.0, ge=0, le=1, description="share of the steps over which lr grows to its height"
    )
    weight_decay: Real = Field(
        default=0.05,
        ge=0,
        description="not applied to vectors, embeddings and the logarithm of A",
    )
    clip: Real | None = Field(
        default=1.0, gt=0, description="largest norm of the gradient; null for none"
    )
    ema: Real | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of the running mean of the weights, which is then what is measured and "
        "kept; null for none",
    )
    label_smoothing: Real = Field(default=0.0, ge=0, lt=1, description="share spread evenly")
    mixup: Real = Field(default=0.0, ge=0, description="alpha of mixup, 0 for none")
    cutmix: Real = Field(default=0.0, ge=0, description="alpha of cutmix, 0 for none")
    augment: str | None = Field(
        default=None,
        description="timm's auto_augment for folders of images, such as rand-m9-mstd0.5-inc1",
    )
    erase: Real = Field(
        default=0.0, ge=0, le=1, description="chance of random erasing in folders of images"
    )
    distill: Real = Field(
        default=0.0,
        ge=0,
        le=1,
        description="weight of the divergence from the dense model with the initial weights, the "
        "cross entropy having the rest",
    )
    temperature: Real = Field(
        default=1.0, gt=0, description="what both models' logits are divided by in distillation"
    )
    anneal: Real = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the steps over which keep ratios fall from 1 to the policy's",
    )
    aux_weight: Real = Field(
        default=0.0,
        ge=0,
        description="initial weight of the cross entropy on mean-pooled tokens; falls to zero",
    )
    curriculum: Real = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the steps over which composed images grow to full difficulty",
    )
    amp: bool = Field(default=False, description="compute under bfloat16 autocast")
    seed: int = Field(default=0, ge=0, le=MOST_SEED, description="seed of weights and batches")
    checkpoint_every: int = Field(
        default=250,
        ge=1,
        description="steps between two checkpoints, each with a look at the search split",
    )

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        known = [str(optimizer) for optimizer in list_optimizers()]
        if name not in known:
            raise ValueError(unknown("optimizer", name, known))
        return name

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            raise ValueError(Fault(f"a recipe must have either steps or epochs, got {given}"))
        return self

    def total_steps(self, images: int) -> int:
        """Batches of the whole run, for a training set of `images` images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * images / self.batch_size))

    def changed(self, **changes: Any) -> TrainSettings:
        """These settings with others in place of some; steps and epochs displace each other.

        Raises:
            UsageError: A value is out of range; the message tells all.
        """
        for length, other in (("steps", "epochs"), ("epochs", "steps")):
            if changes.get(length) is not None:
                changes = {other: None, **changes}
        try:
            return TrainSettings(**{**self.model_dump(), **changes})
        except ValidationError as fault:
            raise UsageError("\n".join(_sentence(error) for error in fault.errors())) from None


def _sentence(error: Any) -> str:
    if error["type"] == "value_error":
        return fault_of(error).told()
    rule = str(error["msg"]).replace("Input should be", "must be")
    return f"{error['loc'][0]} {rule}, got {error['input']}."


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def load_recipe(recipe: str | Path) -> TrainSettings:
    """Read a recipe file, or the recipe of this name that ships with the package.

    Raises:
        UsageError: There is neither a file nor a shipped recipe of this name.
        RecipeError: The file breaks a rule of the format; the message names every fault.
    """
    path, name = Path(recipe), str(recipe)
    if not path.is_file():
        if name not in shipped_recipes() and len(path.parts) == 1 and not path.suffix:
            raise UsageError(unknown_name("recipe", name, shipped_recipes()))
        path = _SHIPPED / f"{name}.yaml" if name in shipped_recipes() else path
    return parse(YamlFile.read(path, RecipeError), TrainSettings, RecipeError)
