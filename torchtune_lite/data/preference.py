"""Preference pairs: the same prompt with an answer that is chosen and one that is rejected."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from torchtune_lite.data.batching.collate import padded_collate_sft
from torchtune_lite.data.columns import Note, checked_column_map, column_value, has_column
from torchtune_lite.data.conversations import OpenAIToMessages
from torchtune_lite.data.labels import CROSS_ENTROPY_IGNORE_IDX
from torchtune_lite.data.messages import MaskingStrategy, Message, noted
from torchtune_lite.data.sft import SFTDataset
from torchtune_lite.errors import DataError

SIDES = ("chosen", "rejected")


class ChosenRejectedToMessages:
    """Makes two conversations, `chosen` and `rejected`, from the columns of these names and `prompt`.

    Each is text, or a list of messages in OpenAI's form. One that begins with an answer is put after `prompt`, which
    is text or messages too; else it is the whole conversation. `column_map` gives the file's own names for any of the
    three, or dotted paths. `new_system_prompt`, `train_on_input` and `masking_strategy` are those of a conversation.
    """

    def __init__(
        self,
        train_on_input: bool = False,
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
        masking_strategy: MaskingStrategy | None = None,
    ) -> None:
        self.column_map = checked_column_map(column_map, (*SIDES, "prompt"))
        self._conversation = OpenAIToMessages(None, train_on_input, new_system_prompt, masking_strategy)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        notes: set[Note] = set()
        pair = {side: self._side(row, side, notes) for side in SIDES}
        return noted(pair | self._conversation.beside(row, [*self.column_map.values()], notes), notes)

    def _side(self, row: Mapping[str, Any], side: str, notes: set[Note]) -> list[Message]:
        messages = self._read(row, side, "assistant", notes)
        if messages and messages[0].role == "assistant":
            if not has_column(row, self.column_map["prompt"]):
                raise DataError(
                    f"column {self.column_map[side]!r} begins with an answer, and there is no column "
                    f"{self.column_map['prompt']!r} (has: {', '.join(row)}); set column_map.prompt"
                )
            messages = self._read(row, "prompt", "user", notes) + messages
        try:
            return self._conversation.finish(messages, row)
        except DataError as error:
            raise DataError(f"column {self.column_map[side]!r}: {error}") from None

    def _read(self, row: Mapping[str, Any], name: str, role: str, notes: set[Note]) -> list[Message]:
        column = self.column_map[name]
        value = column_value(row, column, f"column_map.{name}")
        turns = [{"role": role, "content": value}] if isinstance(value, str) else value
        return self._conversation.read(turns, column, notes)


class PairTokens:
    """Tokenises both conversations of a pair with a tokenizer of messages.

    One that the tokenizer makes several samples of is the last of them, whose loss is on its last answer alone.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def reads(self, field: str) -> bool:
        """Return whether the tokenizer's chat template reads a field of a message or a variable."""
        return getattr(self.tokenizer, "reads", lambda field: False)(field)

    def surely_whole(self, sample: Mapping[str, Any]) -> bool:
        """Tell without encoding them that neither will be cut and both have a label."""
        surely_whole = getattr(self.tokenizer, "surely_whole", lambda sample: False)
        return all(surely_whole({"messages": sample[side]}) for side in SIDES)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in sample.items() if name not in SIDES}
        expanded = getattr(self.tokenizer, "expanded", lambda sample: [sample])
        pair = {side: self.tokenizer(expanded({**rest, "messages": sample[side]})[-1]) for side in SIDES}
        return {**pair, "truncated": any(each.get("truncated", False) for each in pair.values())}


class PreferenceDataset(SFTDataset):
    """Samples `{"chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"}`, lists of ints.

    Rows are checked as those of an `SFTDataset`; a pair is left out where either side has no label or is cut. Labels
    are those of the next token, unlike torchtune's, whose loss shifts them.
    """

    names = tuple(f"{side}_{kind}" for side in SIDES for kind in ("input_ids", "labels"))

    def _arrays(self, tokenized: Mapping[str, Any]) -> dict[str, array]:
        pair = {side: super(PreferenceDataset, self)._arrays(tokenized[side]) for side in SIDES}
        arrays = [pair[side][key] for side in SIDES for key in ("tokens", "labels")]
        return dict(zip(self.names, arrays, strict=True))


def padded_collate_dpo(
    batch: Sequence[dict[str, list[int]]], padding_idx: int = 0, ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX
) -> dict[str, Tensor]:
    """Pad pairs on the right to the longest, all that are chosen first: `tokens`, `labels` [2b, s] int64."""
    samples = [
        {"tokens": sample[f"{side}_input_ids"], "labels": sample[f"{side}_labels"]}
        for side in SIDES
        for sample in batch
    ]
    return padded_collate_sft(samples, padding_idx, ignore_idx)
