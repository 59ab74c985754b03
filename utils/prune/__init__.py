"""Pruning: ranking, allocation, corrections, reports and comparisons."""

from utils.outputs.trained_model import load_pruned
from utils.prune.ranking import global_prune

__all__ = ["global_prune", "load_pruned"]
