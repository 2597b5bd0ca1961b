"""Training and fine-tuning, dense or with a policy."""

from ssmprune.training.launch import TrainResult, train
from ssmprune.training.settings import TrainSettings, load_recipe, shipped_recipes

__all__ = ["TrainResult", "TrainSettings", "load_recipe", "shipped_recipes", "train"]
