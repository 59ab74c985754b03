"""Data sets: reading, checking, augmenting and batching them in memory."""

from utils.datasets.augment import AUGMENTATIONS
from utils.datasets.builtin import DATASETS, DatasetInfo
from utils.datasets.dataset import Dataset, load_dataset
from utils.datasets.own import OwnData, check_name, describe_own, info_of

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Dataset",
    "DatasetInfo",
    "OwnData",
    "check_name",
    "describe_own",
    "info_of",
    "load_dataset",
]
