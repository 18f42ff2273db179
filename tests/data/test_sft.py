import pytest

from torchtune_lite.data import Batches, ColumnText, Rows, SFTDataset, checked_rows, load_rows, report_read, sft
from torchtune_lite.data.columns import NOT_READ, Note
from torchtune_lite.datasets import ConcatDataset
from torchtune_lite.errors import ConfigError, DataError


def rows_of(*texts):
    return Rows("x.jsonl", [{"text": text} for text in texts], lambda i: f"x.jsonl:{i + 1}")


def codes(sample):
    """A tokenizer: a letter is its code, all but lower case is masked, `…` at the end means truncated."""
    text = sample["text"]
    return {
        "tokens": [ord(letter) for letter in text],
        "mask": [not letter.islower() for letter in text],
        "truncated": text.endswith("…"),
    }


def test_what_is_noted_of_rows_is_said_once_for_all(log_lines):
    note = Note(NOT_READ, "column 'id'")

    def prepare(row):
        return {"text": row["text"], "notes": {note}}

    SFTDataset(rows_of("ab", "cd"), prepare, codes)
    assert log_lines[1:] == ["x.jsonl: not read: column 'id' (2 rows)"]


def test_gives_tokens_and_labels_of_the_same_length():
    dataset = SFTDataset(rows_of("Abc", "dEf"), ColumnText("text"), codes)
    assert len(dataset) == 2
    assert dataset[0] == {"tokens": [65, 98, 99], "labels": [98, 99, -100]}
    assert dataset[1] == {"tokens": [100, 69, 102], "labels": [-100, 102, -100]}
    assert dataset.where(1) == "x.jsonl:2"
    with pytest.raises(IndexError):
        dataset[2]


class Codes:
    """`codes` that knows a whole sample by its first letter, and notes the texts it tokenises."""

    def __init__(self):
        self.seen = []

    def surely_whole(self, sample):
        return sample["text"].startswith("w")

    def __call__(self, sample):
        self.seen.append(sample["text"])
        return codes(sample)


def test_tokenizes_each_sample_once_and_on_first_use_where_its_text_says_enough():
    tokenize = Codes()
    dataset = SFTDataset(rows_of("wb", "cd", "wf", "EF"), ColumnText("text"), tokenize)
    assert tokenize.seen == ["cd", "EF"] and len(dataset) == 3
    dataset[2]["tokens"].append(0)  # what the caller does to a sample stays with the caller
    assert dataset[2]["tokens"] == [119, 102]
    assert [dataset[i]["tokens"][0] for i in range(3)] == [119, 99, 119]
    assert tokenize.seen == ["cd", "EF", "wf", "wb"]


class Noted:
    """Rows that note which are read."""

    def __init__(self, *texts):
        self.rows, self.read = rows_of(*texts), []
        self.name, self.num_bytes, self.where = self.rows.name, self.rows.num_bytes, self.rows.where

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.read.append(index)
        return self.rows[index]


@pytest.mark.parametrize("waiting", [0, 5, 2**24])
@pytest.mark.parametrize("all_at_once", [False, True])
def test_each_row_is_read_once_to_be_checked(waiting, all_at_once, monkeypatch):
    monkeypatch.setattr(sft, "MOST_WAITING", waiting)
    texts = ["wb", "cd", "", "EF", None, "gh…", "wf", "ij"] * 3
    rows, tokenize = Noted(*texts), Codes()
    dataset = SFTDataset(rows, ColumnText("text"), tokenize, on_bad_sample="skip", tokenize_all=all_at_once)
    assert rows.read == list(range(24)) and len(tokenize.seen) == (21 if all_at_once else 15)
    kept = [number for number, text in enumerate(texts) if text not in ("", "EF", None)]
    samples = [dataset[i] for i in range(len(dataset))]
    assert [dataset.where(i) for i in range(len(dataset))] == [f"x.jsonl:{number + 1}" for number in kept]
    assert samples == [SFTDataset(rows_of(texts[number]), ColumnText("text"), codes)[0] for number in kept]
    again = [] if all_at_once else [number for number in kept if texts[number][0] == "w"]
    assert rows.read[24:] == again, "the others are kept"


def test_of_a_large_data_set_too(large):
    rows = Noted("ab", "cd", "ef", "gh", "ij", "kl")
    SFTDataset(rows, ColumnText("text"), codes)
    assert rows.read == [0, 3]


def test_what_waits_to_be_tokenized_is_not_more_than_may_be_kept(monkeypatch):
    monkeypatch.setattr(sft, "MOST_WAITING", 5)
    rows, waited = Noted(*["abc"] * 100), []
    SFTDataset(rows, ColumnText("text"), lambda sample: waited.append(len(rows.read)) or codes(sample))
    assert max(read - done for done, read in enumerate(waited)) <= 3


def test_names_every_bad_row_at_once_before_any_is_tokenized():
    rows = Rows("x", [{"text": "a"}, {"body": "b"}, {"text": None}, {"body": "c"}], lambda i: f"x:{i + 1}")
    with pytest.raises(DataError) as error:
        SFTDataset(rows, ColumnText("text"), lambda sample: pytest.fail("tokenized"))
    assert str(error.value) == (
        "x:2 and 1 more: missing column 'text' (has: body); set column to the one you mean; "
        "x:3: column 'text' must be text, got null"
    )


MIXED = ("ab", "cd…", "EF", "GH…", "ij")


@pytest.mark.parametrize(
    ("policy", "kept", "said"),
    [
        ("truncate", ["ab", "cd…", "ij"], "2 (40.0%) cut to max_seq_len, first x.jsonl:2; 2 (40.0%)"),
        ("skip", ["ab", "ij"], "2 (40.0%) left out as longer than max_seq_len, first x.jsonl:2; 1 (20.0%)"),
    ],
)
def test_long_samples_are_kept_or_not_and_those_without_labels_never(policy, kept, said, log_lines):
    dataset = SFTDataset(rows_of(*MIXED), ColumnText("text"), codes, on_long_sample=policy)
    assert ["".join(map(chr, dataset[i]["tokens"])) for i in range(len(dataset))] == kept
    assert dataset.where(len(kept) - 1) == "x.jsonl:5"
    unlabelled = "left out without a label, first x.jsonl:3"
    assert log_lines == [f"x.jsonl: {len(kept)} samples of 5 rows; {said} {unlabelled}"]


def test_long_samples_may_be_an_error():
    with pytest.raises(DataError, match="^x.jsonl:2 and 1 more: longer than tokenizer.max_seq_len; raise it, shorten"):
        SFTDataset(rows_of(*MIXED), ColumnText("text"), codes, on_long_sample="error")


def test_bad_rows_may_be_left_out(log_lines):
    rows = Rows("x", [{"text": "ab"}, {"body": "b"}, {"text": "cd"}], lambda i: f"x:{i + 1}")
    dataset = SFTDataset(rows, ColumnText("text"), codes, on_bad_sample="skip")
    assert (len(dataset), dataset.where(1)) == (2, "x:3")
    bad = "x:2: missing column 'text' (has: body); set column to the one you mean"
    assert log_lines == [f"x: 2 samples of 3 rows; 1 (33.3%) left out as bad, first {bad}"]
    assert dataset.bad == {1: bad}


def test_one_line_says_that_nothing_is_left_out(log_lines):
    SFTDataset(rows_of("ab", "cd"), ColumnText("text"), codes)
    assert log_lines == ["x.jsonl: 2 samples of 2 rows; none cut or left out"]


def test_warns_of_empty_texts(log_lines):
    SFTDataset(rows_of("ab", "", " \n"), ColumnText("text"), codes)
    assert log_lines[0] == "x.jsonl:2 and 1 more: an empty text is trained on as it is"


@pytest.mark.parametrize(
    ("texts", "policies", "message"),
    [
        (("AB", "CD"), {}, "none of 2 rows is left .*: 2 .100.0%. left out without a label, .*; raise .*max_seq_len"),
        (("ab…",), {"on_long_sample": "skip"}, "none of 1 row is left .* longer than max_seq_len"),
        ((None,), {"on_bad_sample": "skip"}, "none of 1 row is left .* left out as bad, first x.jsonl:1: column"),
    ],
)
def test_that_nothing_is_left_is_an_error(texts, policies, message):
    with pytest.raises(DataError, match=f"^x.jsonl: {message}"):
        SFTDataset(rows_of(*texts), ColumnText("text"), codes, **policies)


def test_a_policy_that_does_not_exist():
    with pytest.raises(ConfigError, match="on_long_sample='drop' is not one of truncate, skip, error"):
        SFTDataset(rows_of("ab"), ColumnText("text"), codes, on_long_sample="drop")


def test_broken_lines_and_bad_rows_are_named_together_or_left_out(folder, log_lines):
    (folder / "x.jsonl").write_text('{"text": "ab"}\nno\n\n[1]\n[2]\n{"body": "b"}\n{"text": "cd"}\n')
    rows = load_rows("x.jsonl")
    with pytest.raises(
        DataError,
        match=r"^x.jsonl:2:1: invalid JSON .*; x.jsonl:4 and 1 more: expected an object, got list; x.jsonl:6: m",
    ):
        SFTDataset(rows, ColumnText("text"), codes)
    dataset = SFTDataset(rows, ColumnText("text"), codes, on_bad_sample="skip")
    assert [dataset.where(i) for i in range(len(dataset))] == ["x.jsonl:1", "x.jsonl:7"]
    assert list(dataset.bad) == [1, 2, 3, 4] and "4 (66.7%) left out as bad, first x.jsonl:2:1: " in log_lines[-1]


@pytest.fixture
def large(monkeypatch):
    """Return a data set whose first row and every third are checked at the start."""
    monkeypatch.setattr(checked_rows, "CHECKED_WHOLE", {"rows": 5, "bytes": 1000})
    monkeypatch.setattr(checked_rows, "CHECKED_FIRST", 1)
    monkeypatch.setattr(checked_rows, "CHECKED_SPREAD", 2)
    return lambda *texts, **policies: SFTDataset(rows_of(*texts), ColumnText("text"), codes, **policies)


def test_of_many_rows_some_are_checked_and_no_samples_kept(large, log_lines):
    dataset = large("ab", "cd…", None, "EF", "gh", "i", on_bad_sample="skip", on_long_sample="skip")
    assert len(dataset) == 6 and list(dataset.checked) == [0, 3]
    assert log_lines == [
        "x.jsonl: 6 rows, of which only 2 are checked before they are read; "
        "1 (50.0%) left out without a label, first x.jsonl:4"
    ]
    assert (dataset.bad, [*dataset.long], [*dataset.unlabelled]) == ({}, [], [3])
    nothing = {"tokens": [], "labels": []}
    for _ in range(2):
        assert [dataset[i] for i in range(6)] == [
            {"tokens": [97, 98], "labels": [98, -100]},
            nothing,
            nothing,
            nothing,
            {"tokens": [103, 104], "labels": [104, -100]},
            nothing,  # one token has no next one
        ]
        assert (dataset.bad, [*dataset.long], [*dataset.unlabelled]) == (
            {2: "x.jsonl:3: column 'text' must be text, got null"},
            [1],
            [3, 5],
        )
    assert not dataset._samples and dataset.where(4) == "x.jsonl:5"


def test_of_many_rows_one_that_is_not_allowed_is_an_error_when_it_is_read(large):
    dataset = large("ab", "cd…", None, "ef", "gh", "ij", on_long_sample="error")
    with pytest.raises(DataError, match="^x.jsonl:2: longer than tokenizer.max_seq_len"):
        dataset[1]
    with pytest.raises(DataError, match="^x.jsonl:3: column 'text' must be text, got null"):
        dataset[2]
    assert dataset[3]["tokens"] == [101, 102]
    assert large("ab", "cd…", "ef", "ef", "gh", "ij")[1]["tokens"] == [99, 100, ord("…")]
    with pytest.raises(DataError, match="^x.jsonl:4: column 'text'"):
        large("ab", "cd", "ef", None, "gh", "ij")
    with pytest.raises(DataError, match="none of 2 rows is left"):
        large("AB", "cd", "ef", "GH", "gh", "ij")


def test_of_many_bad_rows_some_are_kept_in_words(large, monkeypatch):
    monkeypatch.setattr(sft, "MOST_SAID", 2)
    dataset = large("ab", None, None, "cd", None, None, on_bad_sample="skip")
    assert [dataset[i]["tokens"] == [] for i in range(6)] == [False, True, True, False, True, True]
    assert list(dataset.bad) == [1, 2, 4, 5] and [bool(said) for said in dataset.bad.values()] == [1, 1, 0, 0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_was_left_out_of_many_rows_is_said_at_the_end_whoever_read_them(large, log_lines, num_workers):
    dataset = large("ab", "cd…", None, "ef", "G", None, on_bad_sample="skip")
    batches = Batches(dataset, 2, seed=0, shuffle=True, pad_id=0, num_workers=num_workers)
    for epoch in range(2):
        assert sum(1 for _ in batches.epoch(epoch)) == 3
    report_read(batches)
    bad = "x.jsonl:3" if num_workers else "x.jsonl:3: column 'text' must be text, got null"
    assert log_lines[1:] == [
        "x.jsonl: read, 1 cut to max_seq_len, first x.jsonl:2; 1 left out without a label, first x.jsonl:5; "
        f"2 left out as bad, first {bad}"
    ]


def test_of_a_small_data_set_the_start_has_said_it_all(log_lines):
    dataset = SFTDataset(rows_of("ab", None), ColumnText("text"), codes, on_bad_sample="skip")
    report_read(Batches(ConcatDataset([dataset, [{"tokens": [1], "labels": [1]}]]), 2, seed=0, shuffle=True, pad_id=0))
    assert len(log_lines) == 1


def test_large_in_bytes_is_large_too(monkeypatch):
    def checked(num_bytes, count=300):
        rows = Rows("x", [{"text": "ab"}] * count, str, num_bytes)
        return len(SFTDataset(rows, ColumnText("text"), codes).checked)

    assert checked(0) == checked(64 * 2**20) == 300
    assert checked(128 * 2**20) == 100 + 100  # the first, and every second of the others
    assert checked(2**40) == 100
    assert 10_000 < checked(0, 200_001) < 10_101


def refusing(sample):
    """A tokenizer whose template takes no text that starts with `x`."""
    if sample["text"].startswith("x"):
        raise DataError("the chat template refuses it")
    return codes(sample)


def test_a_row_that_the_template_refuses_is_a_bad_one():
    rows = rows_of("ab", "xa", "xb")
    with pytest.raises(DataError, match=r"^x.jsonl:2 and 1 more: the chat template refuses it$"):
        SFTDataset(rows, ColumnText("text"), refusing)
    dataset = SFTDataset(rows, ColumnText("text"), refusing, on_bad_sample="skip")
    assert len(dataset) == 1 and list(dataset.bad) == [1, 2]


class Thrice:
    """`codes` of a text or, where it has commas, of each part of it."""

    may_expand = True

    def expanded(self, sample, number=None):
        parts = [{"text": part} for part in sample["text"].split(",")]
        return parts if number is None else [parts[number]]

    def __call__(self, sample):
        return codes(sample)


def test_several_samples_of_a_row_follow_each_other(log_lines):
    dataset = SFTDataset(rows_of("ab,cd,EF", "gh", "IJ", "kl,mn"), ColumnText("text"), Thrice())
    assert ["".join(map(chr, dataset[i]["tokens"])) for i in range(len(dataset))] == ["ab", "cd", "gh", "kl", "mn"]
    places = [dataset.where(i) for i in range(5)]
    assert places == [f"x.jsonl:{place}" for place in ("1, sample 1", "1, sample 2", "2", "4, sample 1", "4, sample 2")]
    assert dataset[-1] == dataset[4] and dataset.part(1, 1) == {"tokens": [100], "labels": [-100]}
    assert "5 samples of 4 rows, one for each answer, since" in log_lines[-1]
    with pytest.raises(IndexError):
        dataset[5]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_of_many_rows_the_samples_are_counted_and_made_one_by_one(large, num_workers):
    rows = rows_of("ab,cd,EF", "gh", "ij", None, "kl,mn", "op")
    dataset = SFTDataset(rows, ColumnText("text"), Thrice(), on_bad_sample="skip")
    assert not dataset.keeps_samples and len(dataset) == 9
    batches = Batches(dataset, 2, seed=0, shuffle=True, pad_id=0, num_workers=num_workers)
    made = "".join(chr(token) for batch in batches.epoch(0) for token in batch["tokens"][0] if token)
    assert sorted(made) == sorted("abcdghijklmnop")
    assert not dataset._samples and [*dataset.unlabelled] == [0] and dataset.where(7) == "x.jsonl:5, sample 2"
