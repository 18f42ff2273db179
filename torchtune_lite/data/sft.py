"""Supervised fine-tuning samples: rows → messages → tokens and labels."""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from torchtune_lite.data.columns import Note, summarized
from torchtune_lite.data.readers.rows import MarkedRows, OnBadSample, Row, raise_problems
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.utils import counted, get_logger

CROSS_ENTROPY_IGNORE_IDX = -100
"""The label of a position without a loss."""

CHECKED_WHOLE = {"rows": 200_000, "bytes": 64 * 2**20}
"""The most a data set may have of each for all of its rows to be checked at the start."""

CHECKED_FIRST, CHECKED_SPREAD = 100, 10_000
"""How many rows of a larger one are checked at the start: the first ones, and at most so many evenly spread."""

MOST_WAITING = 2**24
"""How many characters of prepared samples wait to be tokenised, until it is known that no row is bad."""

MOST_SAID = 1000
"""How many problems of rows that are checked when they are read are kept in words."""

log = get_logger()


OnLongSample = Literal["truncate", "skip", "error"]
"""What happens to a sample that is longer than the tokenizer's `max_seq_len`."""


class SFTDataset:
    """Samples `{"tokens", "labels"}`, two lists of the same length, made from rows on first use and then kept.

    `prepare` maps a row to a sample with `messages` or `text`; it is tried on every row at once, so that a bad one is
    found before any weight is read. `tokenize` maps that sample to `tokens`, `mask` (True: no loss) and, optionally,
    `truncated`; the rows for which its `surely_whole` is not true (all, where it has none) are tokenised at once, and
    all that are kept with `tokenize_all`, for a use that needs their lengths.

    So the length is right from the start. Left out are samples without a label token, bad rows with
    `on_bad_sample="skip"`, and with `on_long_sample="skip"` samples that `tokenize` cuts; one line says how many. That
    nothing is left is an error. Another line says what the samples have in their `notes`.

    Of more rows or bytes than `CHECKED_WHOLE` only some rows are checked at the start and no samples are kept; the
    length is the number of rows, and a row that is left out gives a sample of empty lists. What is wrong with a row is
    noted in `bad` (with its place, in the process that reads it), `long` and `unlabelled`, by the number of the row, as
    soon as it is known; `report_read` says how many in the end.
    """

    names = ("tokens", "labels")

    def __init__(
        self,
        rows: Any,
        prepare: Callable[[Row], Mapping[str, Any]],
        tokenize: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        *,
        on_bad_sample: OnBadSample = "error",
        on_long_sample: OnLongSample = "truncate",
        tokenize_all: bool = False,
    ) -> None:
        _check_policy("on_bad_sample", on_bad_sample, OnBadSample)
        _check_policy("on_long_sample", on_long_sample, OnLongSample)
        self.rows = rows
        self._prepare, self._tokenize = prepare, tokenize
        self._on_bad, self._on_long = on_bad_sample, on_long_sample
        self._samples: dict[int, dict[str, array]] = {}  # by row
        self.bad: dict[int, str] = {}
        self._bad = MarkedRows(len(rows))  # those that worker processes found, too
        self.long = MarkedRows(len(rows))  # cut, or left out for it
        self.unlabelled = MarkedRows(len(rows))  # left out since they have no label, even if cutting took it
        self._notes: Counter[Note] = Counter()
        self.keeps_samples = _is_small(rows)
        at_once = tokenize_all and self.keeps_samples
        self._surely_whole = None if at_once else getattr(tokenize, "surely_whole", None)
        self.checked = range(len(rows)) if self.keeps_samples else _some_rows(rows)
        left_out = self._check()
        self._kept: Sequence[int] = range(len(rows))
        if left_out and self.keeps_samples:
            self._kept = array("q", (row for row in self._kept if row not in left_out))
        self._report(left=len(self.checked) - len(left_out))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.part(index)

    def part(self, index: int, start: int = 0, stop: int | None = None) -> dict[str, list[int]]:
        """Returns tokens and labels of a sample from `start` to `stop`; of one that is kept, at their cost alone."""
        row = self._kept[index]
        if not self.keeps_samples:
            sample = self._checked_now(row)
        elif row in self._samples:
            sample = self._samples[row]
        else:
            sample = self._samples[row] = self._make(row, self._prepared(row))[0]
        return {name: sample[name][start:stop].tolist() if sample else [] for name in self.names}

    def where(self, index: int) -> str:
        """Says where the row of a sample stands."""
        return self.rows.where(self._kept[index])

    def _arrays(self, tokenized: Mapping[str, Any]) -> dict[str, array]:
        labels = shifted_labels(tokenized["tokens"], tokenized["mask"])
        return {"tokens": array("i", tokenized["tokens"]), "labels": array("i", labels)}

    def _prepared(self, row: int) -> Mapping[str, Any]:
        values = self.rows[row]
        try:
            return self._prepare(values)
        except DataError as error:
            raise DataError(f"{self.rows.where(row)}: {error}") from None

    def _make(self, row: int, prepared: Mapping[str, Any]) -> tuple[dict[str, array], bool]:
        """Returns tokens and labels of a row that is prepared, and whether they are cut."""
        try:
            tokenized = self._tokenize(prepared)
        except DataError as error:  # of a template that wants other turns
            raise DataError(f"{self.rows.where(row)}: {error}") from None
        return self._arrays(tokenized), tokenized.get("truncated", False)

    def _usable(self, row: int, prepared: Mapping[str, Any]) -> dict[str, array] | None:
        """Returns tokens and labels of a row; None, with a note of the reason, where it is to be left out."""
        sample, cut = self._make(row, prepared)
        if cut:
            self.long.add(row)
        if cut and self._on_long != "truncate":
            return None
        if not all(_has_label(sample[name]) for name in self.names if name.endswith("labels")):
            self.unlabelled.add(row)
            return None
        return sample

    def _checked_now(self, row: int) -> dict[str, array] | None:
        """Does for one row what `_check` does for all."""
        try:
            sample = self._usable(row, self._prepared(row))
        except DataError as error:
            if self._on_bad == "error":
                raise
            self.bad[row] = str(error) if len(self.bad) < MOST_SAID else ""
            self._bad.add(row)
            return None
        if self._on_long == "error" and sample is None and row in self.long:
            self._refuse_long([row])
        return sample

    def _check(self) -> set[int]:
        """Checks rows, each read once, and returns those to leave out; raises DataError for what is not allowed.

        What must be tokenised to know more waits until all rows are prepared, or until that is too much to keep.
        """
        empty: list[int] = []
        waiting: list[tuple[int, Mapping[str, Any]]] = []
        left_out: set[int] = set()
        size = 0
        for row in self.checked:
            try:
                sample = self._prepared(row)
            except DataError as error:
                self.bad[row] = str(error)
                continue
            self._notes.update(sample.get("notes", ()))
            texts = _texts(sample)
            if not all(text.strip() for text in texts):
                empty.append(row)
            refused = self.bad and self._on_bad == "error"
            if refused or (self._surely_whole is not None and self._surely_whole(sample)):
                continue
            waiting.append((row, sample))
            size += sum(map(len, texts))
            if size > MOST_WAITING:
                left_out |= self._tokenize_all(waiting)
                waiting, size = [], 0
        if empty:
            log.warning(f"{self._where_all(empty)}: an empty text, trained on as it is")
        self._refuse_bad()
        left_out |= self._tokenize_all(waiting)
        self._refuse_bad()
        if self.long and self._on_long == "error":
            self._refuse_long([*self.long])
        return left_out | set(self.bad)

    def _tokenize_all(self, prepared: Sequence[tuple[int, Mapping[str, Any]]]) -> set[int]:
        """Tokenises rows that are prepared, keeps them where all are kept, and returns those to leave out."""
        left_out = set()
        for row, each in prepared:
            try:
                sample = self._usable(row, each)
            except DataError as error:
                sample, self.bad[row] = None, str(error)
            if sample is None:
                left_out.add(row)
            elif self.keeps_samples:
                self._samples[row] = sample
        return left_out

    def _refuse_bad(self) -> None:
        if self._on_bad == "error":
            raise_problems(self._alike(self.bad))

    def _report(self, left: int) -> None:
        """Says in one line what is trained on and what is not; raises DataError where nothing is."""
        total = len(self.checked)
        said = self._said(lambda number: f"{number:,} ({number / total:.1%})")
        if not left:
            raise DataError(
                f"{self.rows.name}: none of {counted(total, 'row')} is left to train on: {said}; raise "
                "tokenizer.max_seq_len if it cuts the answers off, or set train_on_input=True"
            )
        summary = f"{counted(len(self), 'sample')} of {counted(total, 'row')}"
        if not self.keeps_samples:
            summary = f"{counted(len(self), 'row')}, of which only {total:,} are checked before they are read"
        report = log.warning if said else log.info
        report(f"{self.rows.name}: {summary}; {said or 'none cut or left out'}")
        if notes := summarized(self._notes, getattr(self._tokenize, "reads", lambda field: False)):
            log.warning(f"{self.rows.name}: {notes}")

    def report_read(self) -> None:
        """Says of a large data set that was read how many rows were cut or left out."""
        if not self.keeps_samples:
            said = self._said("{:,}".format)
            (log.warning if said else log.info)(f"{self.rows.name}: read, {said or 'none cut or left out'}")

    def _said(self, count: Callable[[int], str]) -> str:
        """Writes how many rows are cut or left out, and the first of each kind."""
        for row in self.bad:
            self._bad.add(row)
        done = "cut to" if self._on_long == "truncate" else "left out as longer than"
        kinds = [
            (self.long, f"{done} max_seq_len"),
            (self.unlabelled, "left out without a label"),
            (self._bad, "left out as bad"),
        ]
        return "; ".join(f"{count(len(rows))} {what}, first {self._first(rows)}" for rows, what in kinds if rows)

    def _first(self, rows: MarkedRows) -> str:
        row = next(iter(rows))
        return (rows is self._bad and self.bad.get(row)) or self.rows.where(row)

    def _alike(self, problems: Mapping[int, str]) -> list[str]:
        """Joins the problems that differ in their place alone."""
        rows_by_problem: dict[str, list[int]] = {}
        for row, problem in problems.items():
            rows_by_problem.setdefault(problem.removeprefix(f"{self.rows.where(row)}: "), []).append(row)
        return [
            problems[rows[0]] if len(rows) == 1 else f"{self._where_all(rows)}: {problem}"
            for problem, rows in rows_by_problem.items()
        ]

    def _refuse_long(self, rows: Sequence[int]) -> None:
        raise DataError(
            f"{self._where_all(rows)}: longer than tokenizer.max_seq_len; raise it, shorten the row, or set "
            "dataset.on_long_sample to truncate or skip"
        )

    def _where_all(self, rows: Sequence[int]) -> str:
        return self.rows.where(rows[0]) + (f" and {len(rows) - 1:,} more" if len(rows) > 1 else "")


def _check_policy(name: str, given: str, policies: Any) -> None:
    if given not in get_args(policies):
        raise ConfigError(f"{name}={given!r} is not one of {', '.join(get_args(policies))}")


def _is_small(rows: Any) -> bool:
    return len(rows) <= CHECKED_WHOLE["rows"] and rows.num_bytes <= CHECKED_WHOLE["bytes"]


def _some_rows(rows: Any) -> Sequence[int]:
    """Chooses the rows of a large data set to check, of fewer bytes than those of a small one but for the first."""
    count = len(rows)
    spread = min(CHECKED_SPREAD, count * CHECKED_WHOLE["bytes"] // max(rows.num_bytes, 1))
    return sorted({*range(min(CHECKED_FIRST, count)), *(k * count // spread for k in range(spread))})


def shifted_labels(tokens: Sequence[int], mask: Sequence[bool]) -> list[int]:
    """Labels each position with the token that follows it, or -100 where that one is masked or there is none."""
    if len(tokens) != len(mask):
        raise DataError(
            f"the tokenizer gives {counted(len(mask), 'mark')} in mask for {counted(len(tokens), 'token')}; "
            "give each token one"
        )
    ignore = CROSS_ENTROPY_IGNORE_IDX
    return [ignore if masked else token for token, masked in zip(tokens[1:], mask[1:], strict=True)] + [ignore]


def _has_label(labels: Sequence[int]) -> bool:
    return any(label != CROSS_ENTROPY_IGNORE_IDX for label in labels)


def _texts(sample: Mapping[str, Any]) -> list[str]:
    messages = [message for name in ("messages", "chosen", "rejected") for message in sample.get(name, ())]
    return [message.text_content for message in messages] + ([sample["text"]] if "text" in sample else [])
