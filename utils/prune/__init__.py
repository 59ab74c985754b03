"""Pruning: ranking, allocation, patterns, channels and corrections."""

from utils.checkpoints.trained_model import load_pruned
from utils.prune.weights.ranking import global_prune

__all__ = ["global_prune", "load_pruned"]
