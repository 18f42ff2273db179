import pytest

from torchtune_lite.data import Llama2ChatTemplate, SentencePieceTokenizer
from torchtune_lite.datasets import alpaca, alpaca_dataset

ROWS = [{"instruction": "add", "input": "1 2", "output": "3"}, {"instruction": "hi", "input": "", "output": "yo"}]


@pytest.fixture(autouse=True)
def _warn_again():
    alpaca._warn_of_two_templates.cache_clear()


def test_prompt_and_answer(tokenizer, jsonl, written):
    path = jsonl(ROWS)
    for train_on_input in (True, False):
        dataset = alpaca_dataset(tokenizer, source=path, train_on_input=train_on_input)
        for (tokens, labels), end in zip(
            written(dataset), ("Input:\n1▁2\n\n###▁Response:\n3⟩", "Response:\nyo⟩"), strict=True
        ):
            assert tokens.startswith("⟨▁Below▁is▁an▁instruction") and tokens.endswith(end)
            answer = len(end.partition("Response:\n")[2])
            masked = tokens[1:-answer] if train_on_input else "·" * (len(tokens) - 1 - answer)
            assert labels == masked + tokens[-answer:] + "·"


def test_trains_on_the_prompt_unless_told_not_to(tokenizer, jsonl):
    dataset = alpaca_dataset(tokenizer, source=jsonl(ROWS), column_map={"output": "output"})
    assert -100 not in dataset[0]["labels"][:-1]


def test_two_templates_give_one_warning(char_model, jsonl, log_lines, written):
    path = jsonl(ROWS)
    tokenizer = SentencePieceTokenizer(char_model, prompt_template=Llama2ChatTemplate())
    for _ in range(2):
        tokens = written(alpaca_dataset(tokenizer, source=path))[1][0]
    assert tokens.startswith("⟨▁[INST]▁Below▁is") and tokens.endswith("Response:\n▁▁[/INST]▁yo⟩")
    assert len([line for line in log_lines if "two prompt templates" in line]) == 1
    assert "Llama2ChatTemplate" in log_lines[0] and "tokenizer.prompt_template=null" in log_lines[0]


def test_one_template_gives_no_warning(tokenizer, jsonl, log_lines):
    alpaca_dataset(tokenizer, source=jsonl(ROWS))
    assert not any("two prompt" in line for line in log_lines)
