from torchtune_lite.datasets import preference_dataset


def test_pairs_from_the_files_own_columns(tokenizer, jsonl, spell):
    path = jsonl([{"q": "ab", "good": "c", "poor": "d"}])
    columns = {"prompt": "q", "chosen": "good", "rejected": "poor"}
    dataset = preference_dataset(tokenizer, path, column_map=columns, new_system_prompt="s", train_on_input=True)
    assert {name: spell(ids) for name, ids in dataset[0].items()} == {
        "chosen_input_ids": "⟨▁sabc⟩",
        "chosen_labels": "··abc⟩·",
        "rejected_input_ids": "⟨▁sabd⟩",
        "rejected_labels": "··abd⟩·",
    }
