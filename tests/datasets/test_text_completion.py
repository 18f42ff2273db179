from torchtune_lite.data import Llama2ChatTemplate, SentencePieceTokenizer
from torchtune_lite.datasets import text_completion_dataset


def test_every_token_is_in_the_loss(tokenizer, jsonl, written):
    path = jsonl([{"text": "abc"}, {"text": "d"}])
    assert written(text_completion_dataset(tokenizer, path)) == [("⟨▁abc⟩", "▁abc⟩·"), ("⟨▁d⟩", "▁d⟩·")]
    assert written(text_completion_dataset(tokenizer, path, add_eos=False))[0] == ("⟨▁abc", "▁abc·")


def test_no_template_is_applied_and_another_column_can_be_read(char_model, jsonl, written):
    tokenizer = SentencePieceTokenizer(char_model, max_seq_len=5, prompt_template=Llama2ChatTemplate())
    path = jsonl([{"body": "abcdef"}])
    assert written(text_completion_dataset(tokenizer, source="json", data_files=path, column="body")) == [
        ("⟨▁ab", "▁ab·")
    ]
