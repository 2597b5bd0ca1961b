"""Training and fine-tuning, dense or with a policy."""

from ssmprune.training.loop import TrainResult, train
from ssmprune.training.settings import FINE_TUNING, FROM_SCRATCH, TrainSettings

__all__ = ["FINE_TUNING", "FROM_SCRATCH", "TrainResult", "TrainSettings", "train"]
