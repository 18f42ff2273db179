"""Plain text: a column that is trained on from its first token to its last."""

import math
from collections.abc import Mapping
from typing import Any

from torchtune_lite.data.columns import column_text, unread
from torchtune_lite.data.messages import noted
from torchtune_lite.data.readers.rows import Row


class ColumnText:
    """Reads the text of a column."""

    def __init__(self, column: str) -> None:
        self.column = column

    def __call__(self, row: Row) -> dict[str, Any]:
        notes = unread(row, [self.column])
        return noted({"text": column_text(row, self.column, "column", notes)}, notes)


class TextTokens:
    """Encodes a text with BOS and, if `add_eos`, EOS; no token is masked, no template applied.

    A longer text is cut to `max_seq_len - 1` tokens, without EOS: it goes on, as torchtune has it. With
    `split_across_pack`, `for_packs` leaves it whole, for a packed data set to split.
    """

    def __init__(self, tokenizer: Any, add_eos: bool = True, split_across_pack: bool = False) -> None:
        self.tokenizer, self.add_eos = tokenizer, add_eos
        self.max_seq_len, self._cuts = tokenizer.max_seq_len, tokenizer.max_seq_len is not None
        self.for_packs = self
        if split_across_pack:
            self.for_packs = TextTokens(tokenizer, add_eos)
            self.for_packs._cuts = False

    def surely_whole(self, sample: Mapping[str, str]) -> bool:
        """Tell without encoding it that a text will not be cut and has a label; False where only encoding tells."""
        bound = getattr(self.tokenizer, "most_tokens", None)
        if not self.add_eos and not sample["text"].strip():
            return False
        return not self._cuts or (bound is not None and bound(sample["text"]) + 2 <= self.max_seq_len - 1)  # BOS, EOS

    def __call__(self, sample: Mapping[str, str]) -> dict[str, Any]:
        limit = self.max_seq_len - 1 if self._cuts else None
        most, options = math.inf if limit is None else limit, {"add_bos": True, "add_eos": self.add_eos}
        if hasattr(self.tokenizer, "encode_first"):
            whole = self.tokenizer.encode_first(sample["text"], most, **options)
        else:
            whole = self.tokenizer.encode(sample["text"], **options)
        tokens = whole[:limit]
        return {"tokens": tokens, "mask": [False] * len(tokens), "truncated": len(tokens) < len(whole)}
