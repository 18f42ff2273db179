from types import SimpleNamespace

import pytest

from tests.data.chats import plain, write_folder
from tests.data.lookalikes import THINKS
from torchtune_lite.config.schema.components import Component
from torchtune_lite.data import checked_rows, load_tokenizer
from torchtune_lite.datasets import inspect_data, inspection
from torchtune_lite.datasets.inspection import histogram, pieces, special_names
from torchtune_lite.errors import ConfigError, DataError

ROWS = [{"input": "hi ", "output": "yo"}, {"input": "a", "output": "bcdefgh"}, {"input": "abcdefgh", "output": "x"}]

FIXED = """
class Fixed:
    def __init__(self, tokenizer, rows): self.rows_given = rows
    def __len__(self): return len(self.rows_given)
    def __getitem__(self, index): return self.rows_given[index]
"""


@pytest.fixture
def cfg(char_model, jsonl, folder):
    """Settings with a data set in two columns, and no model."""

    def make(rows=ROWS, max_seq_len=8, **changes):
        (folder / "own_data.py").write_text(FIXED)
        tokenizer = {"_component_": "torchtune_lite.data.SentencePieceTokenizer", "path": str(char_model)}
        dataset = {"_component_": "torchtune_lite.datasets.instruct_dataset", "source": jsonl(rows)}
        values = {"dataset": dataset, "dataset_val": None, "checkpointer": None, "batch_size": 2, "model": None}
        return SimpleNamespace(tokenizer=Component(tokenizer | {"max_seq_len": max_seq_len}, ""), **values | changes)

    return make


def test_counts_what_is_trained_on(cfg):
    report = inspect_data(cfg(model={"_component_": "torchtune_lite.no_model"}))
    data = report["dataset"]
    assert (report["max_seq_len"], report["steps_per_epoch"]) == (8, 1)
    assert (data["rows"], data["samples"], data["cut"], data["without_label"], data["bad"]) == (3, 2, 2, 1, 0)
    assert (data["tokens"], data["label_tokens"]) == (8 + 8, 4 + 5)  # ⟨▁hi▁yo⟩, ⟨▁abcde⟩
    assert data["lengths"] == {"min": 8, "median": 8, "mean": 8.0, "max": 8}
    assert sum(count for *_, count in data["histogram"]) == 2
    assert data["shown"][0]["where"].endswith("rows.jsonl:1") and data["shown"][0]["tokens"] == 8


def test_rows_that_a_large_data_set_leaves_out_when_they_are_read(cfg, monkeypatch):
    monkeypatch.setattr(checked_rows, "CHECKED_WHOLE", {"rows": 1, "bytes": 0})
    monkeypatch.setattr(checked_rows, "CHECKED_FIRST", 1)
    data = inspect_data(cfg([ROWS[0], ROWS[2], ROWS[0]]))["dataset"]
    assert (data["rows"], data["samples"], data["cut"], data["without_label"], data["bad"]) == (3, 2, 1, 1, 0)
    assert data["lengths"]["min"] == 8 and [sample["where"][-2:] for sample in data["shown"]] == [":1", ":3"]


def test_several_data_sets_and_those_of_validation_and_questions(cfg, jsonl):
    def one(path):
        return {"_component_": "torchtune_lite.datasets.text_completion_dataset", "source": path}

    paths = [jsonl([{"text": text} for text in texts], f"{texts}.jsonl") for texts in ("ab", "cde")]
    report = inspect_data(cfg(dataset=[one(path) for path in paths], dataset_val=one(paths[0])), num_samples=4)
    assert [report[key]["samples"] for key in ("dataset", "dataset_val")] == [5, 2]
    assert [sample["where"] for sample in report["dataset"]["shown"]] == [f"{paths[0]}:1", f"{paths[0]}:2"] + [
        f"{paths[1]}:1",
        f"{paths[1]}:2",
    ]
    assert report["steps_per_epoch"] == 3
    named = {"a": one(paths[0]), "b": one(paths[1])}
    report = inspect_data(cfg(dataset=one(paths[0]), dataset_val=named, dataset_eval=one(paths[1])))
    assert {key: part["samples"] for key, part in report.items() if isinstance(part, dict)} == {
        "dataset": 2,
        "dataset_val/a": 2,
        "dataset_val/b": 3,
        "dataset_eval": 3,
    }


def test_a_data_set_of_the_users_own_counts_nothing_but_is_shown(cfg):
    samples = [{"tokens": [5, 6], "labels": [6, -100]}]
    report = inspect_data(cfg(dataset={"_component_": "own_data.Fixed", "rows": samples}, max_steps_per_epoch=1))
    assert (report["dataset"]["rows"], report["dataset"]["cut"]) == (1, None)
    assert report["dataset"]["shown"][0]["where"] == "sample 0"


def test_limits_are_the_models(cfg, folder, capsys):
    (folder / "own_model.py").write_text(
        "from types import SimpleNamespace as S\n"
        "def model(vocab_size, max_seq_len=9): return S(config=S(vocab_size=vocab_size, max_seq_len=max_seq_len))\n"
        "def checkpoint(): return S(decoder_args={'max_seq_len': 7})\n"
    )
    model, checkpointer = {"_component_": "own_model.model", "vocab_size": 999}, {"_component_": "own_model.checkpoint"}
    assert inspect_data(cfg(max_seq_len=None, model=model))["max_seq_len"] == 9
    assert inspect_data(cfg(max_seq_len=None, model=model, checkpointer=checkpointer))["max_seq_len"] == 7
    with pytest.raises(DataError, match="the model embeds 3"):
        inspect_data(cfg(model=model | {"vocab_size": 3}))
    inspect_data(cfg(model=model, checkpointer={"_component_": "own_model.nothing"}))
    assert "without the model's limits: " in capsys.readouterr().err


def test_an_answer_of_a_conversation_that_is_a_sample_of_its_own_is_shown(cfg, jsonl, tmp_path):
    """The tokenizer is that of the checkpoint."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(["a", "b", "c", "d"])]
    data = {"_component_": "torchtune_lite.datasets.chat_dataset", "source": jsonl([{"messages": turns}], "chat.jsonl")}
    data |= {"conversation_column": "messages", "conversation_style": "openai"}
    write_folder(tmp_path / "base", "bytelevel", plain(THINKS))
    (tmp_path / "own_checkpointer.py").write_text(
        f"class Folder:\n    tokenizer_args = {{'path': {str(tmp_path / 'base')!r}}}\n    decoder_args = {{}}\n"
    )
    settings = cfg(dataset=data, checkpointer={"_component_": "own_checkpointer.Folder"})
    for changes, places in ({}, ["1, sample 1", "1, sample 2"]), ({"train_on": "last"}, ["1"]):
        settings.tokenizer = Component({"_component_": "torchtune_lite.models.tokenizer_of_checkpoint"} | changes, "")
        shown = inspect_data(settings)["dataset"]["shown"]
        assert [sample["where"].rpartition(":")[2] for sample in shown] == places
        loss = ["".join(piece["text"] for piece in sample["pieces"] if piece["label"]) for sample in shown]
        assert loss == [f"{answer}<|im_end|>\n" for answer in ("b", "d")[-len(places) :]]


def test_a_config_that_trains_on_nothing():
    with pytest.raises(ConfigError, match="has no key 'dataset', so it trains on nothing"):
        inspect_data(SimpleNamespace(prompt="x"))


def test_samples_are_spelled_out_with_their_spaces_and_special_tokens(cfg, tokenizer):
    sample = {"tokens": [tokenizer.bos_id, *tokenizer.encode("hi yo", False, False), tokenizer.eos_id]}
    sample["labels"] = [-100] * 3 + sample["tokens"][4:] + [-100]
    assert [(piece["text"], piece["label"], piece["special"]) for piece in pieces(sample, tokenizer)] == [
        ("<bos>", False, True),
        ("hi", False, False),
        (" yo", True, False),
        ("<eos>", True, True),
    ]
    assert special_names(SimpleNamespace(special_tokens={"<|eot|>": 9}, eos_id=9))[9] == "<|eot|>"


@pytest.mark.parametrize("kind", ["spm", "bytelevel", "metaspace"])
def test_a_run_of_text_is_spelled_out_with_the_last_tokens_before_it(kind, tmp_path, monkeypatch):
    """As with all of them; with twice as many runs, that would cost four times as much."""
    tokenizer = load_tokenizer(write_folder(tmp_path, kind))
    tokens = tokenizer.encode("the 市場 fox é  x\n " * 60, add_bos=False, add_eos=False)
    decoded, decode = [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    costs = []
    for count in (len(tokens) // 2, len(tokens)):
        sample = {"tokens": tokens[:count], "labels": [-100 if i % 5 < 2 else 0 for i in range(count)]}
        decoded.clear()
        found = list(pieces(sample, tokenizer))
        costs.append(sum(decoded))
        with monkeypatch.context() as whole:
            whole.setattr(inspection, "DECODED_BEFORE", len(tokens))
            assert list(pieces(sample, tokenizer)) == found
    assert costs[1] < 2.1 * costs[0]


@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [3, 4096], list(range(40, 90)), [0, 7, 8, 15, 16]])
def test_a_histogram_counts_each_length_once_in_a_few_classes(lengths):
    bars = histogram(lengths)
    assert 1 <= len(bars) <= 8
    assert [count for *_, count in bars] == [sum(first <= n <= last for n in lengths) for first, last, _ in bars]
    assert sum(count for *_, count in bars) == len(lengths)
    assert all(a[1] + 1 == b[0] for a, b in zip(bars, bars[1:], strict=False))
