"""Builders of data sets, one function each, with torchtune's names and arguments."""

from torchtune_lite.datasets.alpaca import alpaca_cleaned_dataset, alpaca_dataset
from torchtune_lite.datasets.chat import chat_dataset
from torchtune_lite.datasets.concatenated import ConcatDataset, concatenated
from torchtune_lite.datasets.inspection import inspect_data
from torchtune_lite.datasets.instruct import instruct_dataset
from torchtune_lite.datasets.text_completion import text_completion_dataset

__all__ = [
    "ConcatDataset",
    "alpaca_cleaned_dataset",
    "alpaca_dataset",
    "chat_dataset",
    "concatenated",
    "inspect_data",
    "instruct_dataset",
    "text_completion_dataset",
]
