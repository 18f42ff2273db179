import pytest

from torchtune_lite.data import ColumnText, Rows, SFTDataset
from torchtune_lite.data.sft import shifted_labels
from torchtune_lite.errors import DataError


def rows_of(*texts):
    return Rows("x.jsonl", [{"text": text} for text in texts], lambda i: f"x.jsonl:{i + 1}")


def codes(sample):
    """A tokenizer: a letter is its code, upper case is masked, `…` at the end means truncated."""
    text = sample["text"]
    return {
        "tokens": [ord(letter) for letter in text],
        "mask": [letter.isupper() for letter in text],
        "truncated": text.endswith("…"),
    }


def test_labels_are_the_next_token_where_that_one_is_not_masked():
    assert shifted_labels([5, 6, 7, 8], [True, False, True, False]) == [6, -100, 8, -100]
    assert shifted_labels([5], [False]) == [-100]


def test_gives_tokens_and_labels_of_the_same_length():
    dataset = SFTDataset(rows_of("Abc", "d"), ColumnText("text"), codes)
    assert len(dataset) == 2
    assert dataset[0] == {"tokens": [65, 98, 99], "labels": [98, 99, -100]}
    assert dataset[1] == {"tokens": [100], "labels": [-100]}
    assert dataset.where(1) == "x.jsonl:2"
    with pytest.raises(IndexError):
        dataset[2]


def test_tokenizes_each_sample_once_and_on_first_use():
    seen = []

    def tokenize(sample):
        seen.append(sample["text"])
        return codes(sample)

    dataset = SFTDataset(rows_of("ab", "cd", "ef"), ColumnText("text"), tokenize)
    assert seen == ["ab"]  # one sample with a label is looked for
    dataset[2]["tokens"].append(0)  # what the caller does to a sample stays with the caller
    assert dataset[2]["tokens"] == [101, 102]
    assert [dataset[i]["tokens"][0] for i in range(3)] == [97, 99, 101]
    assert seen == ["ab", "ef", "cd"]


def test_names_every_bad_row_at_once_before_any_is_tokenized():
    rows = Rows("x", [{"text": "a"}, {"body": "b"}, {"text": None}, {"body": "c"}], lambda i: f"x:{i + 1}")
    with pytest.raises(DataError) as error:
        SFTDataset(rows, ColumnText("text"), lambda sample: pytest.fail("tokenized"))
    assert str(error.value) == (
        "x:2 and 1 more: missing column 'text' (has: body); set column to the one that is meant; "
        "x:3: column 'text' must be text, got null"
    )


def test_samples_that_are_cut_or_without_labels_are_counted(log_lines):
    dataset = SFTDataset(rows_of("ab", "cd…", "EF", "GH…"), ColumnText("text"), codes)
    for i in (0, 1, 2, 2):
        dataset[i]
    assert log_lines == [
        "x.jsonl:2 is cut to 3 tokens (max_seq_len); the total follows when every sample has been used"
    ]
    for _ in range(2):
        dataset[3]
    assert log_lines[1:] == [
        "x.jsonl: of 4 samples 2 (50.0%) are cut to max_seq_len, 1 (25.0%) have no token in the loss"
    ]


def test_says_nothing_where_there_is_nothing_to_say(log_lines):
    dataset = SFTDataset(rows_of("ab", "cd"), ColumnText("text"), codes)
    assert [dataset[i]["labels"] for i in range(2)] and log_lines == []


def test_warns_of_empty_texts(log_lines):
    SFTDataset(rows_of("ab", "", " \n"), ColumnText("text"), codes)
    assert log_lines[0] == "x.jsonl:2 and 1 more: an empty text, trained on as it is"


def test_no_label_at_all_is_an_error():
    with pytest.raises(DataError, match="x.jsonl: none of the 2 samples has a token in the loss; raise .*max_seq_len"):
        SFTDataset(rows_of("AB", "CD"), ColumnText("text"), codes)
