import json

import pytest
import tokenizers

from tests.export.models import BASE
from torchtune_lite.data import HuggingFaceModelTokenizer, Llama2ChatTemplate, load_tokenizer
from torchtune_lite.data.tokenizers.template_export import as_chat_template
from torchtune_lite.errors import ConfigError
from torchtune_lite.export.gguf.vocabulary import write_vocabulary

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def byte_level(tmp_path):
    """A byte-level BPE trained on a few words, as SmolLM2's is built, with tokens of a chat."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the street and the house", "in the street 12"] * 5, trainer)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "chat_template": CHAT}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_byte_level_bpe_has_its_merges_and_ends_answers_where_the_template_does(byte_level):
    tokenizer = load_tokenizer(byte_level, prompt_template="chat_template")
    size = tokenizer.vocab_size
    values = write_vocabulary(tokenizer, size + 5)
    content = json.loads((byte_level / "tokenizer.json").read_text())
    assert values["tokenizer.ggml.model"] == "gpt2" and values["tokenizer.ggml.pre"] == "smollm"
    assert values["tokenizer.ggml.merges"] == [" ".join(merge) for merge in content["model"]["merges"]]
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] and types[:3] == [3, 3, 3]
    assert types[tokens.index("<tool>")] == 4 and types[3] == 1
    assert tokens[-1] == f"[PAD{size + 4}]" and types[-5:] == [5] * 5 and len(tokens) == size + 5
    assert values["tokenizer.ggml.eos_token_id"] == values["tokenizer.ggml.eot_token_id"] == 2
    assert values["tokenizer.ggml.add_bos_token"] is False and "tokenizer.ggml.scores" not in values
    assert values["tokenizer.chat_template"] == CHAT


def test_bos_is_added_where_the_tokenizer_does(byte_level):
    content = json.loads((byte_level / "tokenizer.json").read_text())
    first = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (byte_level / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(byte_level, prompt_template="chat_template")
    assert write_vocabulary(tokenizer, tokenizer.vocab_size)["tokenizer.ggml.add_bos_token"] is True


def test_sentencepiece_has_its_scores_and_bytes():
    tokenizer = load_tokenizer(BASE)
    values = write_vocabulary(tokenizer, 1152)
    assert values["tokenizer.ggml.model"] == "llama" and values["tokenizer.ggml.pre"] == "default"
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert tokens[:3] == ["<unk>", "<s>", "</s>"] and types[:3] == [2, 3, 3]
    assert types[tokens.index("<0x0A>")] == 6 and types[tokens.index("[INST]")] == 4
    assert values["tokenizer.ggml.add_space_prefix"] is True and values["tokenizer.ggml.add_bos_token"] is True
    assert values["tokenizer.ggml.eos_token_id"] == 2 and values["tokenizer.ggml.bos_token_id"] == 1


def test_a_text_template_is_written_as_a_chat_template():
    tokenizer = load_tokenizer(BASE, prompt_template=Llama2ChatTemplate())
    values = write_vocabulary(tokenizer, 1152)
    assert values["tokenizer.chat_template"] == as_chat_template(tokenizer) is not None
    assert values["tokenizer.ggml.add_space_prefix"] is False  # which would follow each special token


def test_a_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path, byte_level):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    read = HuggingFaceModelTokenizer(tmp_path / "tokenizer.json", prompt_template=None)
    with pytest.raises(ConfigError, match="is WordLevel and not BPE over bytes"):
        write_vocabulary(read, 2)
