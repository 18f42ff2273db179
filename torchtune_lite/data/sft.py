"""Supervised fine-tuning samples: rows → messages → tokens and labels."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchtune_lite.data.rows import Row, Rows, raise_problems
from torchtune_lite.errors import DataError
from torchtune_lite.utils import get_logger

CROSS_ENTROPY_IGNORE_IDX = -100
"""The label of a position without a loss."""

log = get_logger()


class SFTDataset:
    """Samples `{"tokens", "labels"}`, two lists of the same length, made from rows on first use and then kept.

    `prepare` maps a row to a sample with `messages` or `text`; it is tried on every row at once, so that a bad one is
    found before any weight is read. `tokenize` maps that sample to `tokens`, `mask` (True: no loss) and, optionally,
    `truncated`.

    A sample without any label token stays in (it adds 0 to the loss); that all samples are so is an error. Samples cut
    to `max_seq_len` and samples without labels are counted: one warning at the first, one with the totals when every
    sample has been used, so a run that ends within its first epoch reports the first alone.
    """

    def __init__(
        self,
        rows: Rows,
        prepare: Callable[[Row], Mapping[str, Any]],
        tokenize: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self.rows = rows
        self._prepare, self._tokenize = prepare, tokenize
        self._samples: dict[int, tuple[array, array]] = {}
        self._truncated = self._unlabelled = 0
        self._check_rows()
        self._check_labels()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if index not in self._samples:
            self._samples[index] = self._make(index)
            if len(self._samples) == len(self):
                self._report_totals()
        tokens, labels = self._samples[index]
        return {"tokens": tokens.tolist(), "labels": labels.tolist()}

    def where(self, index: int) -> str:
        """Says where the row of a sample stands."""
        return self.rows.where(index)

    def _make(self, index: int) -> tuple[array, array]:
        sample = self._tokenize(self._prepare(self.rows[index]))
        tokens, labels = array("i", sample["tokens"]), array("i", shifted_labels(sample["tokens"], sample["mask"]))
        first = not self._truncated and not self._unlabelled
        truncated, unlabelled = sample.get("truncated", False), not _has_label(labels)
        self._truncated += truncated
        self._unlabelled += unlabelled
        if first and (truncated or unlabelled):
            what = f"is cut to {len(tokens)} tokens (max_seq_len)" if truncated else "has no token in the loss"
            log.warning(f"{self.where(index)} {what}; the total follows when every sample has been used")
        return tokens, labels

    def _report_totals(self) -> None:
        if self._truncated or self._unlabelled:
            cut, unlabelled = (f"{n:,} ({n / len(self):.1%})" for n in (self._truncated, self._unlabelled))
            log.warning(
                f"{self.rows.name}: of {len(self):,} samples {cut} are cut to max_seq_len, "
                f"{unlabelled} have no token in the loss"
            )

    def _check_rows(self) -> None:
        rows_by_problem: dict[str, list[int]] = {}
        empty = []
        for i in range(len(self)):
            try:
                if _has_empty_text(self._prepare(self.rows[i])):
                    empty.append(i)
            except DataError as error:
                rows_by_problem.setdefault(str(error), []).append(i)
        raise_problems([f"{self._where_all(rows)}: {problem}" for problem, rows in rows_by_problem.items()])
        if empty:
            log.warning(f"{self._where_all(empty)}: an empty text, trained on as it is")

    def _check_labels(self) -> None:
        """Looks for one sample with a label, nearly always the first; those looked at are kept."""
        if not any(_has_label(self[i]["labels"]) for i in range(len(self))):
            raise DataError(
                f"{self.rows.name}: none of the {len(self):,} samples has a token in the loss; raise "
                "tokenizer.max_seq_len if it cuts the answers off, or set train_on_input=True"
            )

    def _where_all(self, indices: Sequence[int]) -> str:
        return self.where(indices[0]) + (f" and {len(indices) - 1:,} more" if len(indices) > 1 else "")


def shifted_labels(tokens: Sequence[int], mask: Sequence[bool]) -> list[int]:
    """Labels each position with the token that follows it, or -100 where that one is masked or there is none."""
    ignore = CROSS_ENTROPY_IGNORE_IDX
    return [ignore if masked else token for token, masked in zip(tokens[1:], mask[1:], strict=True)] + [ignore]


def _has_label(labels: Sequence[int]) -> bool:
    return any(label != CROSS_ENTROPY_IGNORE_IDX for label in labels)


def _has_empty_text(sample: Mapping[str, Any]) -> bool:
    texts = [message.text_content for message in sample["messages"]] if "messages" in sample else [sample["text"]]
    return not all(text.strip() for text in texts)
