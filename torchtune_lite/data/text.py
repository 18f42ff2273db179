"""Plain text: a column that is trained on from its first token to its last."""

from collections.abc import Mapping
from typing import Any

from torchtune_lite.data.messages import column_text
from torchtune_lite.data.rows import Row


class ColumnText:
    """Reads the text of a column."""

    def __init__(self, column: str) -> None:
        self.column = column

    def __call__(self, row: Row) -> dict[str, str]:
        return {"text": column_text(row, self.column, "column")}


class TextTokens:
    """Encodes a text with BOS and, if `add_eos`, EOS; no token is masked, no template applied.

    A longer text is cut to `max_seq_len - 1` tokens, without EOS: it goes on, as torchtune has it.
    """

    def __init__(self, tokenizer: Any, add_eos: bool = True) -> None:
        self.tokenizer, self.add_eos = tokenizer, add_eos

    def surely_whole(self, sample: Mapping[str, str]) -> bool:
        """Tells without encoding it that a text will not be cut and has a label; False where only encoding tells."""
        limit, bound = self.tokenizer.max_seq_len, getattr(self.tokenizer, "most_tokens", None)
        if not self.add_eos and not sample["text"].strip():
            return False
        return limit is None or (bound is not None and bound(sample["text"]) + 2 <= limit - 1)  # BOS and EOS

    def __call__(self, sample: Mapping[str, str]) -> dict[str, Any]:
        tokens = self.tokenizer.encode(sample["text"], add_bos=True, add_eos=self.add_eos)
        limit = len(tokens) if self.tokenizer.max_seq_len is None else self.tokenizer.max_seq_len - 1
        return {"tokens": tokens[:limit], "mask": [False] * len(tokens[:limit]), "truncated": len(tokens) > limit}
