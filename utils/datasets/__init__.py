"""Data sets: reading, checking, augmenting and batching them in memory."""

from utils.datasets.augment import AUGMENTATIONS
from utils.datasets.dataset import DATASETS, Dataset, load_dataset

__all__ = ["AUGMENTATIONS", "DATASETS", "Dataset", "load_dataset"]
