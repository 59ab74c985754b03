"""Pruning: ranking, allocation, corrections, reports and comparisons."""

from utils.outputs.model_file import load_pruned
from utils.prune.ranking import global_prune

__all__ = ["global_prune", "load_pruned"]
