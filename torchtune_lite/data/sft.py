"""Supervised fine-tuning samples: rows → messages → tokens and labels."""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Literal, get_args

from torchtune_lite.data.checked_rows import is_small, some_rows
from torchtune_lite.data.columns import Note, summarized
from torchtune_lite.data.labels import has_label, shifted_labels
from torchtune_lite.data.messages import texts
from torchtune_lite.data.readers.rows import MarkedRows, OnBadSample, Row, raise_problems
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.utils import counted, get_logger

MOST_WAITING = 2**24
"""The characters of prepared samples that may wait to be tokenised until all rows are known to be good."""

MOST_SAID = 1000
"""The number of problems kept in words, of rows that are checked when they are read."""

log = get_logger()


OnLongSample = Literal["truncate", "skip", "error"]
"""The treatment of a sample that is longer than the tokenizer's `max_seq_len`."""


class SFTDataset:
    """Samples `{"tokens", "labels"}`, two lists of the same length, made from rows on first use and then kept.

    `prepare` maps a row to a sample with `messages` or `text`; it is tried on every row at once, so that a bad one is
    found before any weight is read. `tokenize` maps that sample to `tokens`, `mask` (True: no loss) and, optionally,
    `truncated`; the rows for which its `surely_whole` is not true (all, where it has none) are tokenised at once, and
    all that are kept with `tokenize_all`, for a use that needs their lengths. Its `expanded`, if it has one, makes
    several samples of one before, as `ModelTokenizer.expanded` does: they come one after the other.

    So the length is right from the start. Left out are samples without a label token, bad rows with
    `on_bad_sample="skip"`, and with `on_long_sample="skip"` samples that `tokenize` cuts; one line says how many. That
    nothing is left is an error. Another line says what the samples have in their `notes`.

    Of more rows or bytes than `checked_rows.CHECKED_WHOLE` only some rows are checked at the start and no samples are
    kept; the length is the number of rows (where `tokenize` says that it `may_expand` samples, all rows are read to
    count those of each), and a row that is left out gives a sample of empty lists. What is wrong with a row is noted,
    by its number, in `bad` (with its place, in the process that reads it), `long` and `unlabelled`, as
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
        self._samples: dict[int, list[dict[str, array]]] = {}  # by row
        self.bad: dict[int, str] = {}
        self._bad = MarkedRows(len(rows))  # those that worker processes found, too
        self.long = MarkedRows(len(rows))  # cut, or left out for it
        self.unlabelled = MarkedRows(len(rows))  # left out since they have no label, even if cutting took it
        self._notes: Counter[Note] = Counter()
        self.keeps_samples = is_small(rows)
        at_once = tokenize_all and self.keeps_samples
        self._surely_whole = None if at_once else getattr(tokenize, "surely_whole", None)
        self.checked = range(len(rows)) if self.keeps_samples else some_rows(rows)
        left_out = self._check()
        self._kept = self._rows_of_samples(left_out)
        self._report(left=len(self.checked) - len(left_out))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.part(index)

    def part(self, index: int, start: int = 0, stop: int | None = None) -> dict[str, list[int]]:
        """Return tokens and labels of a sample from `start` to `stop`; of one that is kept, at their cost alone."""
        row, number = self._find(index)
        if not self.keeps_samples:
            sample = self._checked_now(row, number)
        else:
            if row not in self._samples:
                self._samples[row] = [self._make(row, each)[0] for each in self._expanded(row, self._prepared(row))]
            sample = self._samples[row][number]
        return {name: sample[name][start:stop].tolist() if sample else [] for name in self.names}

    def where(self, index: int) -> str:
        """Say where the row of a sample stands, and which of its samples it is."""
        row, number = self._find(index)
        several = number or self._kept[index + 1 : index + 2] == self._kept[index : index + 1]
        return self.rows.where(row) + (f", sample {number + 1}" if several else "")

    def _find(self, index: int) -> tuple[int, int]:
        """Return the row of a sample, and its number among those of the row."""
        row, alone = self._kept[index], isinstance(self._kept, range)
        return row, 0 if alone else index % len(self._kept) - bisect_left(self._kept, row)

    def _rows_of_samples(self, left_out: Container[int]) -> Sequence[int]:
        """List the row of each sample."""
        rows = range(len(self.rows))
        if self.keeps_samples:
            counts = {row: len(samples) for row, samples in self._samples.items() if len(samples) != 1}
            counts |= dict.fromkeys(left_out, 0)
        else:
            may_expand = getattr(self._tokenize, "may_expand", False)
            counts = {row: count for row in rows if (count := self._count(row)) != 1} if may_expand else {}
        return array("q", (row for row in rows for _ in range(counts.get(row, 1)))) if counts else rows

    def _count(self, row: int) -> int:
        """Count the samples of a row; 1 for a bad one, of which reading it will tell."""
        try:
            return len(self._expanded(row, self._prepared(row)))
        except DataError:
            return 1

    def _expanded(self, row: int, prepared: Mapping[str, Any], number: int | None = None) -> list[Mapping[str, Any]]:
        """Return the samples, not tokenised yet, that are made of a row that is prepared."""
        expanded = getattr(self._tokenize, "expanded", None)
        try:
            return [prepared] if expanded is None else expanded(prepared, number)
        except DataError as error:
            raise DataError(f"{self.rows.where(row)}: {error}") from None

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
        """Return tokens and labels of a row that is prepared, and whether they are cut."""
        try:
            tokenized = self._tokenize(prepared)
        except DataError as error:  # of a template that wants other turns
            raise DataError(f"{self.rows.where(row)}: {error}") from None
        return self._arrays(tokenized), tokenized.get("truncated", False)

    def _usable(self, row: int, prepared: Mapping[str, Any]) -> dict[str, array] | None:
        """Return tokens and labels of a row; None, with a note of the reason, where it is to be left out."""
        sample, cut = self._make(row, prepared)
        if cut:
            self.long.add(row)
        if cut and self._on_long != "truncate":
            return None
        if not all(has_label(sample[name]) for name in self.names if name.endswith("labels")):
            self.unlabelled.add(row)
            return None
        return sample

    def _checked_now(self, row: int, number: int) -> dict[str, array] | None:
        """Do for one sample of a row what `_check` does for all."""
        try:
            [prepared] = self._expanded(row, self._prepared(row), number)
            sample = self._usable(row, prepared)
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
        """Check rows, each read once, and return those to leave out; raise DataError for what is not allowed.

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
            written = texts(sample)
            if not all(text.strip() for text in written):
                empty.append(row)
            refused = self.bad and self._on_bad == "error"
            if refused or (self._surely_whole is not None and self._surely_whole(sample)):
                continue
            waiting.append((row, sample))
            size += sum(map(len, written))
            if size > MOST_WAITING:
                left_out |= self._tokenize_all(waiting)
                waiting, size = [], 0
        if empty:
            log.warning(f"{self._where_all(empty)}: an empty text is trained on as it is")
        self._refuse_bad()
        left_out |= self._tokenize_all(waiting)
        self._refuse_bad()
        if self.long and self._on_long == "error":
            self._refuse_long([*self.long])
        return left_out | set(self.bad)

    def _tokenize_all(self, prepared: Sequence[tuple[int, Mapping[str, Any]]]) -> set[int]:
        """Tokenise rows that are prepared, keep them where all are kept, and return those to leave out."""
        left_out = set()
        for row, each in prepared:
            try:
                samples = [self._usable(row, part) for part in self._expanded(row, each)]
            except DataError as error:
                samples, self.bad[row] = [], str(error)
            kept = [sample for sample in samples if sample is not None]
            if not kept:
                left_out.add(row)
            elif self.keeps_samples:
                self._samples[row] = kept
        return left_out

    def _refuse_bad(self) -> None:
        if self._on_bad == "error":
            raise_problems(self._alike(self.bad))

    def _report(self, left: int) -> None:
        """Say in one line what is trained on and what is not; raise DataError where nothing is."""
        total = len(self.checked)
        said = self._said(lambda number: f"{number:,} ({number / total:.1%})")
        if not left:
            raise DataError(
                f"{self.rows.name}: none of {counted(total, 'row')} is left to train on: {said}; raise "
                "tokenizer.max_seq_len if it cuts the answers off, or set train_on_input=True"
            )
        summary = f"{counted(len(self), 'sample')} of {counted(total, 'row')}"
        if len(self) > total >= left:
            summary += ", one for each answer, since the chat template rewrites earlier answers"
        if not self.keeps_samples:
            summary = f"{counted(len(self.rows), 'row')}, of which only {total:,} are checked before they are read"
        report = log.warning if said else log.info
        report(f"{self.rows.name}: {summary}; {said or 'none cut or left out'}")
        if notes := summarized(self._notes, getattr(self._tokenize, "reads", lambda field: False)):
            log.warning(f"{self.rows.name}: {notes}")

    def report_read(self) -> None:
        """Say of a large data set that was read how many rows were cut or left out."""
        if not self.keeps_samples:
            said = self._said("{:,}".format)
            (log.warning if said else log.info)(f"{self.rows.name}: read, {said or 'none cut or left out'}")

    def _said(self, count: Callable[[int], str]) -> str:
        """Write how many rows are cut or left out, and the first of each kind."""
        for row in self.bad:
            self._bad.add(row)
        done = "cut to" if self._on_long == "truncate" else "left out as longer than"
        kinds = [
            (self.long, f"{done} max_seq_len"),
            (self.unlabelled, "left out without a label"),
            (self._bad, "left out as bad"),
        ]
        return "; ".join(f"{count(len(rows))} {outcome}, first {self._first(rows)}" for rows, outcome in kinds if rows)

    def _first(self, rows: MarkedRows) -> str:
        row = next(iter(rows))
        return (rows is self._bad and self.bad.get(row)) or self.rows.where(row)

    def _alike(self, problems: Mapping[int, str]) -> list[str]:
        """Join the problems that differ in their place alone."""
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
