import pytest

from tests.data.chats import plain, write_folder
from tests.data.lookalikes import THINKS
from torchtune_lite.data import (
    ChosenRejectedToMessages,
    PairTokens,
    PreferenceDataset,
    Rows,
    SentencePieceTokenizer,
    load_tokenizer,
    padded_collate_dpo,
)
from torchtune_lite.errors import ConfigError, DataError

USER, GOOD, POOR = (
    {"role": role, "content": text} for role, text in [("user", "Q"), ("assistant", "g"), ("assistant", "p")]
)
SYSTEM = {"role": "system", "content": "S"}


def seen(sample):
    return {side: [(m.role, m.text_content, m.masked) for m in messages] for side, messages in sample.items()}


EXPECTED = {
    "chosen": [("user", "Q", True), ("assistant", "g", False)],
    "rejected": [("user", "Q", True), ("assistant", "p", False)],
}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "g", "rejected": "p"},
        {"chosen": [USER, GOOD], "rejected": [USER, POOR]},
        {"prompt": "not used", "chosen": [USER, GOOD], "rejected": [USER, POOR]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [POOR]},
        {"prompt": [USER], "chosen": "g", "rejected": [POOR]},
    ],
    ids=["texts", "conversations", "conversations beside a prompt", "answers", "mixed"],
)
def test_makes_two_conversations(row):
    assert seen(ChosenRejectedToMessages()(row)) == EXPECTED


def test_takes_the_arguments_of_a_conversation():
    row = {"p": "Q", "data": [{"text": "g"}, {"text": "p"}]}
    columns = {"prompt": "p", "chosen": "data.0.text", "rejected": "data.1.text"}
    assert seen(ChosenRejectedToMessages(column_map=columns)(row)) == EXPECTED
    with_system = {"chosen": [SYSTEM, USER, GOOD], "rejected": [USER, POOR]}
    for side in seen(ChosenRejectedToMessages(True, new_system_prompt="N")(with_system)).values():
        assert side[:2] == [("system", "N", True), ("user", "Q", False)]
    last = ChosenRejectedToMessages(masking_strategy="train_on_last")
    turns = [USER, GOOD, USER, POOR]
    assert [masked for *_, masked in seen(last({"chosen": turns, "rejected": turns}))["chosen"]] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"chosen": "g"}, r"column 'chosen' begins with an answer, and there is no column 'prompt' \(has: chosen\)"),
        ({"prompt": "Q", "chosen": "g"}, r"missing column 'rejected' .*; set column_map.rejected"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "column 'rejected': has 1 message"),
        ({"chosen": [USER, {"role": "bot", "content": ""}]}, r"chosen\[1\].role='bot' is not one of"),
        ({"prompt": 3, "chosen": "g"}, "column 'prompt' must be a list of messages, got int"),
    ],
)
def test_says_what_is_wrong_with_a_row(row, message):
    with pytest.raises(DataError, match=message):
        ChosenRejectedToMessages()(row)
    with pytest.raises(ConfigError, match="unknown keys input; its keys are chosen, rejected, prompt"):
        ChosenRejectedToMessages(column_map={"input": "x"})


def pairs(tokenizer, *answers, **policies):
    rows = [{"prompt": "ab", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    transform, tokenize = ChosenRejectedToMessages(), PairTokens(tokenizer)
    return PreferenceDataset(Rows("x", rows, "x:{}".format), transform, tokenize, **policies)


def test_samples_have_the_next_token_as_their_label(char_model, spell):
    dataset = pairs(SentencePieceTokenizer(char_model), ("cd", "e"), ("f", "gh"))
    sample = dataset[0]
    assert {name: spell(ids) for name, ids in sample.items()} == {
        "chosen_input_ids": "⟨▁abcd⟩",
        "chosen_labels": "···cd⟩·",
        "rejected_input_ids": "⟨▁abe⟩",
        "rejected_labels": "···e⟩·",
    }
    assert dataset.where(1) == "x:1"


def test_a_pair_is_left_out_where_one_side_is_cut_or_has_no_label(char_model, spell):
    answers = [("c", "d"), ("cdefg", "d"), ("c", "defghijk")]
    tokenizer = SentencePieceTokenizer(char_model, max_seq_len=8)
    dataset = pairs(tokenizer, *answers, on_long_sample="skip")
    assert (len(dataset), [*dataset.long]) == (1, [1, 2])
    assert len(pairs(tokenizer, *answers)) == 3
    transform = ChosenRejectedToMessages()
    masked = {"chosen": [USER, GOOD | {"weight": 0}], "rejected": [USER, POOR]}
    rows = Rows("x", [masked, {"chosen": [USER, GOOD], "rejected": [USER, POOR]}], "x:{}".format)
    assert [*PreferenceDataset(rows, transform, PairTokens(tokenizer)).unlabelled] == [0]


def test_pairs_are_padded_to_the_longest_the_chosen_first():
    samples = [
        {
            "chosen_input_ids": [1, 2, 3],
            "chosen_labels": [2, 3, -100],
            "rejected_input_ids": [4],
            "rejected_labels": [5],
        },
        {"chosen_input_ids": [6], "chosen_labels": [7], "rejected_input_ids": [8, 9], "rejected_labels": [9, -100]},
    ]
    batch = padded_collate_dpo(samples, padding_idx=0)
    assert batch["tokens"].tolist() == [[1, 2, 3], [6, 0, 0], [4, 0, 0], [8, 9, 0]]
    assert batch["labels"].tolist() == [[2, 3, -100], [7, -100, -100], [5, -100, -100], [9, -100, -100]]


def test_a_chat_template_sees_the_tools_of_a_pair(tmp_path, log_lines):
    source = "{{ tools | tojson if tools }}{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", source), prompt_template="chat_template")
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [POOR], "tools": [{"name": "add"}], "system": "S", "id": 1}
    dataset = PreferenceDataset(Rows("x", [row], "x:{}".format), ChosenRejectedToMessages(), PairTokens(tokenizer))
    assert tokenizer.decode(dataset[0]["rejected_input_ids"]) == '[{"name": "add"}]systemSuserQassistantp'
    assert log_lines[-1] == "x: not read: column 'id' (1 row)"


def test_a_pair_whose_template_rewrites_earlier_answers_has_its_loss_on_the_last(tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, "bytelevel", plain(THINKS)), prompt_template="chat_template")
    row = {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, POOR]}
    dataset = PreferenceDataset(Rows("x", [row], str), ChosenRejectedToMessages(), PairTokens(tokenizer))
    assert len(dataset) == 1
    for side, answer in (("chosen", "g"), ("rejected", "p")):
        labels = [label for label in dataset[0][f"{side}_labels"] if label != -100]
        assert tokenizer.tokenizer.decode(labels, False) == f"{answer}<|im_end|>\n"
