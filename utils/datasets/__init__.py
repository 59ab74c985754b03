"""Data sets: reading, checking, augmenting and batching them in memory."""

from utils.datasets.builtin import DATASETS
from utils.datasets.dataset import Dataset, load_dataset
from utils.datasets.own import OwnData, read_own

__all__ = ["DATASETS", "Dataset", "OwnData", "load_dataset", "read_own"]
