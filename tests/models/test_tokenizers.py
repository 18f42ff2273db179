import json

import pytest
from transformers import AutoTokenizer

from tests.data.chats import plain, trained, write_folder
from tests.data.lookalikes import LOOKALIKES
from tests.data.tokenizers.test_llama3_tokenizer import ranks  # noqa: F401 (a fixture)
from torchtune_lite import config
from torchtune_lite.config.registry.lookup import find
from torchtune_lite.data import ChatTemplate, Llama2ChatTemplate, Llama3Tokenizer, Message, MistralChatTemplate
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.models import gemma, llama, phi, qwen, tokenizer_of_checkpoint

NAMES = [
    *("llama2.llama2", "llama3.llama3", "mistral.mistral", "phi3.phi3_mini", "phi4.phi4", "gemma.gemma"),
    *("gemma2.gemma", "gemma2.gemma2", "qwen2.qwen2", "qwen2_5.qwen2_5", "qwen3.qwen3"),
]
CHAT = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]


def built(name, path, **options):
    first = "vocab_path" if "phi4" in name else "path"
    return config.instantiate({"_component_": f"torchtune.models.{name}_tokenizer", first: str(path), **options})


@pytest.mark.parametrize("name", NAMES)
def test_torchtunes_builders_take_the_template_beside_the_file(name, tmp_path):
    folder = write_folder(tmp_path, "bytelevel", plain(LOOKALIKES["qwen3"]))
    options = {"max_seq_len": None, "prompt_template": "chat_template", "train_on": "last"}
    tokenizer = built(name, folder / "tokenizer.json", **options)
    conversation = [{"role": message.role, "content": message.text_content} for message in CHAT]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(conversation, return_dict=False)
    assert tokenizer({"messages": CHAT})["tokens"] == expected
    assert tokenizer.train_on == "last" and built(name, folder, max_seq_len=77).max_seq_len == 77
    of_its_own = isinstance(built(name, folder).prompt_template, Llama2ChatTemplate)
    assert of_its_own == (name == "llama2.llama2")
    assert built(name, folder, prompt_template=None).prompt_template is None
    with pytest.raises(ConfigError, match=r"tokenizer.truncation_type='left' is not served; only 'right' is"):
        built(name, folder, truncation_type="left")


FORMS = {
    "llama3.llama3": llama.LLAMA3_CHAT,
    "phi3.phi3_mini": phi.PHI3_CHAT,
    "phi4.phi4": phi.PHI4_CHAT,
    "gemma.gemma": gemma.GEMMA_CHAT,
    "qwen3.qwen3": qwen.CHATML,
}


@pytest.mark.parametrize("name", [*FORMS, "mistral.mistral"])
def test_without_a_template_the_familys_form_stands_in(name, tmp_path, log_lines):
    template = built(name, write_folder(tmp_path, "bytelevel")).prompt_template
    assert log_lines[0].endswith("has no chat template: conversations are written in the form of the model's family")
    if name == "mistral.mistral":
        assert isinstance(template, MistralChatTemplate)
    else:
        assert isinstance(template, ChatTemplate) and template.source == FORMS[name]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            llama.LLAMA3_CHAT,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦b<|eot_id|>⟧",
        ),
        (phi.PHI3_CHAT, "<|system|>\nS<|end|>\n<|user|>\na<|end|>\n<|assistant|>\n⟦b<|end|>\n⟧<|endoftext|>"),
        (
            phi.PHI4_CHAT,
            "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>a<|im_end|>"
            "<|im_start|>assistant<|im_sep|>⟦b<|im_end|>⟧",
        ),
        (
            gemma.GEMMA_CHAT,
            "<bos><start_of_turn>user\nS\n\na<end_of_turn>\n<start_of_turn>model\n⟦b<end_of_turn>\n⟧",
        ),
        (
            qwen.CHATML,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦b<|im_end|>\n⟧",
        ),
    ],
)
def test_the_forms_of_the_families(source, expected):
    template = ChatTemplate(source, {})
    text, spans = template.loss_spans([Message("system", "S"), *CHAT[:2]])
    [(start, end)] = spans
    assert f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}" == expected
    assert not template.may_rewrite


def test_ranks_are_in_llama_3s_own_form(ranks, tmp_path):  # noqa: F811
    tokenizer = built("llama3_1.llama3", ranks)
    assert isinstance(tokenizer, Llama3Tokenizer) and tokenizer.prompt_template is None
    special = {"added_tokens": [{"content": name, "id": i} for name, i in tokenizer.special_tokens.items()][::-1]}
    (tmp_path / "special.json").write_text(json.dumps(special))
    again = built("llama3.llama3", ranks, special_tokens_path=str(tmp_path / "special.json"))
    assert again.special_tokens == tokenizer.special_tokens
    with pytest.raises(ConfigError, match="chat_template_kwargs: Llama3Tokenizer has no chat template"):
        built("llama3.llama3", ranks, chat_template_kwargs={"a": 1})


def test_of_a_pair_tokenizer_json_is_read_where_it_is_beside(tmp_path):
    folder = write_folder(tmp_path, "bytelevel", plain(LOOKALIKES["qwen3"]))
    (folder / "vocab.json").write_text("{}")
    tokenizer = built("qwen2.qwen2", folder / "vocab.json", merges_file=str(folder / "merges.txt"))
    assert tokenizer.path == str(folder / "tokenizer.json")
    tokenizer = built("phi4.phi4", folder / "vocab.json", merges_path=str(folder / "merges.txt"))
    assert tokenizer.path == str(folder / "tokenizer.json")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer.merges_file .*x.txt must be merges.txt in the folder of .*vocab"):
        built("qwen2.qwen2", folder / "vocab.json", merges_file=str(folder / "x.txt"))


def test_special_tokens_are_beside_the_file(tmp_path):
    folder = write_folder(tmp_path, "bytelevel", plain(LOOKALIKES["qwen3"]))
    with pytest.raises(ConfigError, match=r"special_tokens_path is for Llama 3's tokenizer.model; leave it out"):
        built("qwen3.qwen3", folder, special_tokens_path=str(folder / "tokenizer.json"))


COMPONENT = {"_component_": "torchtune_lite.models.tokenizer_of_checkpoint"}


@pytest.mark.parametrize("kind", ["bytelevel", "spm"])
def test_the_checkpoints_tokenizer_is_that_of_its_folder(kind, tmp_path):
    folder = write_folder(tmp_path, kind, plain(LOOKALIKES["qwen3"]))
    found = config.instantiate(
        COMPONENT | {"max_seq_len": 9, "chat_template_kwargs": {"enable_thinking": False}, "train_on": "last"},
        defaults={"path": folder},
    )
    assert found.path == str(folder / trained(kind)[0]) and (found.max_seq_len, found.train_on) == (9, "last")
    assert found.prompt_template.options == {"enable_thinking": False}
    other = write_folder(tmp_path / "other", kind)
    with pytest.raises(DataError, match="has none: no chat_template.jinja"):
        config.instantiate(COMPONENT | {"path": str(other)}, defaults={"path": folder})
    assert tokenizer_of_checkpoint(other, prompt_template=None).prompt_template is None


def test_without_a_checkpoint_its_tokenizer_needs_a_path():
    with pytest.raises(ConfigError, match="tokenizer.path is null; name a folder, or leave it out where"):
        config.instantiate(COMPONENT)


def test_a_config_may_name_the_builders_and_not_what_makes_them():
    assert find("torchtune.models.qwen3.qwen3_tokenizer") is qwen.TOKENIZERS["qwen3_tokenizer"]
    for path in ("models.tokenizers.tokenizer_builder", "models.llama3.tokenizer_builder", "models.qwen3.TOKENIZERS"):
        with pytest.raises(ConfigError, match="not an allowed component"):
            find(f"torchtune_lite.{path}")
