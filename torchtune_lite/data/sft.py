"""Supervised fine-tuning samples: rows → messages → tokens and labels."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from torchtune_lite.data.rows import OnBadSample, Row, Rows, raise_problems
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.utils import get_logger

CROSS_ENTROPY_IGNORE_IDX = -100
"""The label of a position without a loss."""

log = get_logger()


OnLongSample = Literal["truncate", "skip", "error"]
"""What happens to a sample that is longer than the tokenizer's `max_seq_len`."""


class SFTDataset:
    """Samples `{"tokens", "labels"}`, two lists of the same length, made from rows on first use and then kept.

    `prepare` maps a row to a sample with `messages` or `text`; it is tried on every row at once, so that a bad one is
    found before any weight is read. `tokenize` maps that sample to `tokens`, `mask` (True: no loss) and, optionally,
    `truncated`; the rows for which its `surely_whole` is not true (all, where it has none) are tokenised at once.

    So the length is right from the start. Left out are samples without a label token, bad rows with
    `on_bad_sample="skip"`, and with `on_long_sample="skip"` samples that `tokenize` cuts; one line says how many. That
    nothing is left is an error.
    """

    def __init__(
        self,
        rows: Rows,
        prepare: Callable[[Row], Mapping[str, Any]],
        tokenize: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        *,
        on_bad_sample: OnBadSample = "error",
        on_long_sample: OnLongSample = "truncate",
    ) -> None:
        _check_policy("on_bad_sample", on_bad_sample, OnBadSample)
        _check_policy("on_long_sample", on_long_sample, OnLongSample)
        self.rows = rows
        self._prepare, self._tokenize = prepare, tokenize
        self._samples: dict[int, tuple[array, array]] = {}  # by row
        self.bad = list(rows.bad)  # what was wrong with each row that is left out
        self.long: list[int] = []  # rows that are cut, or left out for it
        self.unlabelled: list[int] = []  # rows that are left out since they have no label, even if cutting took it
        self._kept = self._usable_rows(on_bad_sample, on_long_sample)
        self._report(on_long_sample)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self._kept[index]
        if row not in self._samples:
            self._samples[row], _ = self._make(row)
        tokens, labels = self._samples[row]
        return {"tokens": tokens.tolist(), "labels": labels.tolist()}

    def where(self, index: int) -> str:
        """Says where the row of a sample stands."""
        return self.rows.where(self._kept[index])

    def _make(self, row: int) -> tuple[tuple[array, array], bool]:
        """Returns tokens and labels of a row, and whether they are cut."""
        sample = self._tokenize(self._prepare(self.rows[row]))
        tokens, labels = array("i", sample["tokens"]), array("i", shifted_labels(sample["tokens"], sample["mask"]))
        return (tokens, labels), sample.get("truncated", False)

    def _usable_rows(self, on_bad_sample: OnBadSample, on_long_sample: OnLongSample) -> Sequence[int]:
        bad, doubtful = self._check_rows()
        if on_bad_sample == "error":
            raise_problems([f"{self._where_all(rows)}: {problem}" for problem, rows in bad.items()])
        self.bad += [f"{self.rows.where(row)}: {problem}" for problem, rows in bad.items() for row in rows]
        left_out = {row for rows in bad.values() for row in rows}
        for row in doubtful:
            sample, cut = self._make(row)
            if cut:
                self.long.append(row)
            if cut and on_long_sample != "truncate":
                left_out.add(row)
            elif _has_label(sample[1]):
                self._samples[row] = sample
            else:
                self.unlabelled.append(row)
                left_out.add(row)
        if self.long and on_long_sample == "error":
            raise DataError(
                f"{self._where_all(self.long)}: longer than tokenizer.max_seq_len; raise it, shorten the row, or set "
                "dataset.on_long_sample to truncate or skip"
            )
        if not left_out:
            return range(len(self.rows))
        return array("l", (row for row in range(len(self.rows)) if row not in left_out))

    def _check_rows(self) -> tuple[dict[str, list[int]], list[int]]:
        """Prepares every row: returns the bad ones by what is wrong with them, and those that must be tokenised."""
        bad: dict[str, list[int]] = {}
        empty, doubtful = [], []
        surely_whole = getattr(self._tokenize, "surely_whole", lambda sample: False)
        for row in range(len(self.rows)):
            try:
                sample = self._prepare(self.rows[row])
            except DataError as error:
                bad.setdefault(str(error), []).append(row)
                continue
            if _has_empty_text(sample):
                empty.append(row)
            if not surely_whole(sample):
                doubtful.append(row)
        if empty:
            log.warning(f"{self._where_all(empty)}: an empty text, trained on as it is")
        return bad, doubtful

    def _report(self, on_long_sample: OnLongSample) -> None:
        """Says in one line what is trained on and what is not; raises DataError where nothing is."""
        done = "cut to" if on_long_sample == "truncate" else "left out as longer than"
        counts = [
            (len(self.long), f"{done} max_seq_len", self.long and self._where_all(self.long[:1])),
            (
                len(self.unlabelled),
                "left out without a label",
                self.unlabelled and self._where_all(self.unlabelled[:1]),
            ),
            (len(self.bad), "left out as bad", self.bad and self.bad[0]),
        ]
        total = len(self.rows) + len(self.rows.bad)
        said = [f"{n:,} ({n / total:.1%}) {what}, first {first}" for n, what, first in counts if n]
        if not len(self):
            raise DataError(
                f"{self.rows.name}: none of {total:,} rows is left to train on: {'; '.join(said)}; raise "
                "tokenizer.max_seq_len if it cuts the answers off, or set train_on_input=True"
            )
        report = log.warning if said else log.info
        report(
            f"{self.rows.name}: {len(self):,} samples of {total:,} rows; {'; '.join(said) or 'none cut or left out'}"
        )

    def _where_all(self, rows: Sequence[int]) -> str:
        return self.rows.where(rows[0]) + (f" and {len(rows) - 1:,} more" if len(rows) > 1 else "")


def _check_policy(name: str, given: str, policies: Any) -> None:
    if given not in get_args(policies):
        raise ConfigError(f"{name}={given!r} is not one of {', '.join(get_args(policies))}")


def shifted_labels(tokens: Sequence[int], mask: Sequence[bool]) -> list[int]:
    """Labels each position with the token that follows it, or -100 where that one is masked or there is none."""
    ignore = CROSS_ENTROPY_IGNORE_IDX
    return [ignore if masked else token for token, masked in zip(tokens[1:], mask[1:], strict=True)] + [ignore]


def _has_label(labels: Sequence[int]) -> bool:
    return any(label != CROSS_ENTROPY_IGNORE_IDX for label in labels)


def _has_empty_text(sample: Mapping[str, Any]) -> bool:
    texts = [message.text_content for message in sample["messages"]] if "messages" in sample else [sample["text"]]
    return not all(text.strip() for text in texts)
