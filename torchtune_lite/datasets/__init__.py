"""Builders of data sets, one function each, with torchtune's names and arguments."""

from torchtune_lite.datasets.alpaca import alpaca_cleaned_dataset, alpaca_dataset
from torchtune_lite.datasets.chat import chat_dataset, slimorca_dataset
from torchtune_lite.datasets.detected import detected_dataset
from torchtune_lite.datasets.inspection import inspect_data
from torchtune_lite.datasets.instruct import grammar_dataset, instruct_dataset, samsum_dataset
from torchtune_lite.datasets.mixing import ConcatDataset, concatenated, validation_sets
from torchtune_lite.datasets.preference import (
    hh_rlhf_helpful_dataset,
    preference_dataset,
    stack_exchange_paired_dataset,
)
from torchtune_lite.datasets.sft import sft_dataset
from torchtune_lite.datasets.text_completion import (
    cnn_dailymail_articles_dataset,
    text_completion_dataset,
    wikitext_dataset,
)

__all__ = [
    "ConcatDataset",
    "alpaca_cleaned_dataset",
    "alpaca_dataset",
    "chat_dataset",
    "cnn_dailymail_articles_dataset",
    "concatenated",
    "detected_dataset",
    "grammar_dataset",
    "hh_rlhf_helpful_dataset",
    "inspect_data",
    "instruct_dataset",
    "preference_dataset",
    "samsum_dataset",
    "sft_dataset",
    "slimorca_dataset",
    "stack_exchange_paired_dataset",
    "text_completion_dataset",
    "validation_sets",
    "wikitext_dataset",
]
