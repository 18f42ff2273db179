import json
import logging
import pickle
from itertools import islice

import pytest

from tests.data.chats import plain, write_folder
from tests.data.lookalikes import THINKS
from torchtune_lite.data import ChatMLTemplate, SentencePieceTokenizer, StreamBatches, checked_rows, load_tokenizer
from torchtune_lite.datasets import (
    alpaca_dataset,
    chat_dataset,
    detected_dataset,
    instruct_dataset,
    text_completion_dataset,
)
from torchtune_lite.errors import DataError

TURNS = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
SHAREGPT = [{"from": "human", "value": "ab"}, {"from": "gpt", "value": "cd"}]
CHAT = {"conversation_style": "openai"}

FORMS = [
    ({"messages": TURNS}, chat_dataset, {"conversation_column": "messages", **CHAT}),
    ({"conversations": TURNS}, chat_dataset, {"conversation_column": "conversations", **CHAT}),
    (
        {"conversations": SHAREGPT},
        chat_dataset,
        {"conversation_column": "conversations", "conversation_style": "sharegpt"},
    ),
    ({"messages": json.dumps(TURNS)}, chat_dataset, {"conversation_column": "messages", **CHAT}),
    ({"instruction": "ab", "output": "cd"}, alpaca_dataset, {"train_on_input": False}),
    ({"instruction": "ab", "input": "x", "output": "cd"}, alpaca_dataset, {"train_on_input": False}),
    *(
        ({question: "ab", answer: "cd"}, instruct_dataset, {"column_map": {"input": question, "output": answer}})
        for question, answer in (
            ("prompt", "completion"),
            ("prompt", "response"),
            ("question", "answer"),
            ("input", "output"),
        )
    ),
    ({"text": "ab cd"}, text_completion_dataset, {"column": "text"}),
    ({"messages": None, "text": "ab cd"}, text_completion_dataset, {"column": "text"}),
]


@pytest.fixture
def tokenizer(char_model):
    return SentencePieceTokenizer(str(char_model), max_seq_len=512)


def write(folder, *rows):
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return "rows.jsonl"


@pytest.mark.parametrize(("row", "builder", "arguments"), FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_read_as_the_builder_for_their_columns_reads_them(row, builder, arguments, packed, folder, tokenizer):
    source = write(folder, row, row)
    found, named = (
        detected_dataset(tokenizer, source, packed=packed),
        builder(tokenizer, source, packed=packed, **arguments),
    )
    assert [found[i] for i in range(len(found))] == [named[i] for i in range(len(named))]


def test_an_instruction_is_a_plain_question_where_the_tokenizer_has_a_template(folder, tokenizer):
    tokenizer.prompt_template = ChatMLTemplate()
    rows = [{"instruction": "ab", "input": "x", "output": "cd"}, {"instruction": "ab", "input": "", "output": "cd"}]
    found = detected_dataset(tokenizer, write(folder, *rows))
    found = [found[0], found[1]]
    pairs = [{"input": "ab\n\nx", "output": "cd"}, {"input": "ab", "output": "cd"}]
    named = instruct_dataset(tokenizer, write(folder, *pairs))
    assert found == [named[0], named[1]]


def test_one_line_says_what_was_found(folder, tokenizer, caplog):
    caplog.set_level(logging.INFO)
    row = {"prompt": "ab", "completion": "cd"}
    detected_dataset(tokenizer, write(folder, row, row))
    assert [each for each in caplog.messages if each.startswith("data:")] == ["data: the columns prompt, completion"]


def test_columns_of_no_known_form_are_named_with_what_to_do(folder, tokenizer):
    message = r"rows.jsonl:1: the columns a, b are not a known format \(messages, .*\); name them with dataset:"
    with pytest.raises(DataError, match=message):
        detected_dataset(tokenizer, write(folder, {"a": 1, "b": 2}))


def test_a_later_row_without_these_columns_is_an_error(folder, tokenizer):
    with pytest.raises(DataError, match="rows.jsonl:2: missing column 'prompt'"):
        detected_dataset(tokenizer, write(folder, {"prompt": "ab", "completion": "cd"}, {"text": "ab"}))


def test_it_goes_to_worker_processes(folder, tokenizer):
    tokenizer.prompt_template = ChatMLTemplate()
    found = detected_dataset(tokenizer, write(folder, {"instruction": "ab", "output": "cd"}))
    assert pickle.loads(pickle.dumps(found))[0] == found[0]


@pytest.fixture
def thinking(tmp_path):
    """A tokenizer whose template drops the thoughts of earlier answers."""
    folder = write_folder(tmp_path / "model", "bytelevel", chat_template=plain(THINKS))
    return load_tokenizer(folder, 256, prompt_template="chat_template")


def thoughts(count, start=0):
    """A conversation of so many questions and answers, each with a thought of its own."""
    turns = [
        ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"<think>\nx{i}\n</think>\n\na{i}"})
        for i in range(start, start + count)
    ]
    return {"messages": [turn for pair in turns for turn in pair]}


@pytest.mark.parametrize("packed", [False, True])
def test_a_template_that_rewrites_earlier_turns_gives_a_sample_for_each_answer(packed, jsonl, thinking):
    """As with `chat_dataset`: the tokenizer's abilities are passed on."""
    source = jsonl([thoughts(2)] * 2)
    detected = detected_dataset(thinking, source, packed=packed)
    expected = chat_dataset(thinking, source, packed=packed, conversation_column="messages", **CHAT)
    assert packed or len(expected) == 4
    assert [detected[i] for i in range(len(detected))] == [expected[i] for i in range(len(expected))]


def batches_of(stream, num_workers=0, shuffle=False):
    return StreamBatches(stream, 1, seed=0, shuffle=shuffle, pad_id=0, num_workers=num_workers)


def taken(batches, count):
    """The next samples, their tokens and labels."""
    return [
        tuple(batch[name][0].tolist() for name in ("tokens", "labels")) for batch in islice(batches.epoch(0), count)
    ]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_so_does_a_stream_which_goes_on_within_a_row(large, num_workers, jsonl, thinking, monkeypatch):
    if large:
        monkeypatch.setitem(checked_rows.CHECKED_WHOLE, "rows", 1)
    files = [jsonl([thoughts(count, 10 * count), thoughts(1, 10 * count + 9)], f"{count}.jsonl") for count in (1, 2, 3)]
    stream = detected_dataset(thinking, "json", data_files=files, streaming=True)
    whole = [chat_dataset(thinking, file, conversation_column="messages", **CHAT) for file in files]
    expected = [(each[i]["tokens"], each[i]["labels"]) for each in whole for i in range(len(each))]
    assert len(expected) == 9
    assert taken(batches_of(stream, num_workers), 9) == expected
    assert sorted(taken(batches_of(stream, num_workers, shuffle=True), 9)) == sorted(expected)
    for done in (3, 6):  # of 2.jsonl and 3.jsonl the first row, whose samples are not all taken
        first, again = batches_of(stream), batches_of(stream, num_workers)
        assert taken(first, done) == expected[:done]
        again.cursor = first.cursor
        assert taken(again, 9 - done) == expected[done:]


def test_the_packs_of_a_stream_hold_the_same_samples(jsonl, thinking):
    files = [jsonl([thoughts(count, 10 * count)] * 2, f"{count}.jsonl") for count in (1, 3)]
    stream = detected_dataset(thinking, "json", data_files=files, streaming=True, packed=True)
    whole = [chat_dataset(thinking, file, conversation_column="messages", **CHAT) for file in files]
    expected = [each[i]["tokens"] for each in whole for i in range(len(each))]
    packs = iter(batches_of(stream).epoch(0))
    found = []
    while len(found) < len(expected):
        batch = next(packs)
        found += [tokens.tolist() for tokens in batch["tokens"][0].split(batch["seq_lens"])]
    assert sorted(found) == sorted(expected)
