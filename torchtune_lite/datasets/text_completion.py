"""Plain text, every token in the loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torchtune_lite.data import ColumnText, TextTokens
from torchtune_lite.datasets.builder import dataset_builder


@dataset_builder()
def text_completion_dataset(
    tokenizer: Any, column: str = "text", add_eos: bool = True, *, split_across_pack: bool = True
) -> tuple[Callable, Callable]:
    """Build a data set from a column of text, without any template.

    A text longer than the tokenizer's `max_seq_len` is cut, or with `packed` and `split_across_pack` becomes several
    samples, so that all of it is trained on. The other arguments are those of `builder.samples`.
    """
    return ColumnText(column), TextTokens(tokenizer, add_eos, split_across_pack)


wikitext_dataset = partial(
    text_completion_dataset, source="EleutherAI/wikitext_document_level", name="wikitext-103-v1", column="page"
)
cnn_dailymail_articles_dataset = partial(
    text_completion_dataset, source="ccdv/cnn_dailymail", name="3.0.0", column="article"
)
