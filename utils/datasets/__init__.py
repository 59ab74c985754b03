"""Data sets: reading, checking, augmenting and batching them in memory."""

from utils.datasets.builtin import DATASETS
from utils.datasets.dataset import Dataset, load_dataset
from utils.datasets.own import OwnData, describe_own

__all__ = ["DATASETS", "Dataset", "OwnData", "describe_own", "load_dataset"]
