import builtins
import json

import pytest
from transformers import AddedToken, AutoTokenizer

from tests.data.chats import TEMPLATES, marked, plain, write_folder
from torchtune_lite.config import instantiate
from torchtune_lite.data import (
    HuggingFaceBaseTokenizer,
    HuggingFaceModelTokenizer,
    Llama2ChatTemplate,
    Message,
    PromptTemplate,
    QuestionAnswerTemplate,
    SentencePieceTokenizer,
    load_tokenizer,
    padded_collate_sft,
)
from torchtune_lite.data.labels import shifted_labels
from torchtune_lite.errors import ConfigError, DataError

TEXTS = ["the quick brown fox", "  two  spaces\n\nand\tlines ", "é市𝄞", "", " ", "</s>"]


@pytest.mark.parametrize("kind", ["bytelevel", "metaspace", "llama_json"])
def test_text_is_encoded_as_transformers_does(kind, tmp_path):
    folder = write_folder(tmp_path, kind)
    ours = HuggingFaceBaseTokenizer(folder / "tokenizer.json")
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, add_bos=False, add_eos=False) == ids
        assert ours.encode(text) == [theirs.bos_token_id, *ids, theirs.eos_token_id]
    assert ours.decode(ours.encode("the fox é") + [100_000]) == "the fox é"
    assert ours.vocab_size == len(theirs) and ours.bos_id == 1 and ours.eos_id == 2


BOS_FIRST = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}


@pytest.mark.parametrize("kind", ["bytelevel", "llama_json", "spm"])
@pytest.mark.parametrize("said", [True, False])
def test_bos_stands_before_a_text_where_transformers_puts_it(said, kind, tmp_path):
    """A tokenizer.json says so itself, a SentencePiece model in the file beside it."""
    folder = write_folder(tmp_path, kind, add_bos_token=said if kind == "spm" else not said)
    if kind != "spm":
        content = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(content | {"post_processor": BOS_FIRST if said else None}))
    ours, theirs = load_tokenizer(folder, prompt_template=None), AutoTokenizer.from_pretrained(folder)
    text = "the quick </s> fox"
    assert ours.adds_bos is said
    assert [ours.bos_id] * said + ours.encode_chat(text)[0] == theirs(text).input_ids


def test_torchtunes_name_and_arguments(tmp_path):
    folder = write_folder(tmp_path / "a", "bytelevel")
    (folder / "tokenizer_config.json").rename(tmp_path / "c.json")
    node = {
        "_component_": "torchtune.modules.transforms.tokenizers.HuggingFaceModelTokenizer",
        "tokenizer_json_path": str(folder / "tokenizer.json"),
        "tokenizer_config_json_path": str(tmp_path / "c.json"),
        "truncation_type": "right",
    }
    with pytest.raises(DataError, match="has none: no chat_template.jinja"):
        instantiate(node)
    assert instantiate({**node, "prompt_template": None}).eos_id == 2
    config = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps({**config, "chat_template": "{{ messages[0].content + eos_token }}"}))
    assert instantiate(node).prompt_template.render([Message("user", "x")]) == "x</s>"
    with pytest.raises(ConfigError, match="truncation_type='left' is not served"):
        instantiate({**node, "truncation_type": "left"})
    with pytest.raises(DataError, match="g.json is not a file"):
        instantiate({**node, "generation_config_path": str(tmp_path / "g.json")})


@pytest.mark.parametrize(
    "config, other, expected",
    [
        ({}, {}, (1, 2, 2, [2])),
        ({"bos_token": None, "pad_token": "<unk>"}, {}, (None, 2, 0, [2])),
        (
            {"bos_token": None, "eos_token": None},
            {"generation_config": {"bos_token_id": 1, "eos_token_id": [5, 2]}},
            (1, 5, 5, [5, 2]),
        ),
        ({}, {"generation_config": {"bos_token_id": 0, "eos_token_id": [5, 2], "pad_token_id": 9}}, (1, 2, 9, [2, 5])),
        ({"eos_token": "<s>"}, {"special_tokens_map": {"eos_token": {"content": "<|eot_id|>"}}}, (1, 5, 5, [5])),
        ({"added_tokens_decoder": {}}, {"special_tokens_map": {"eos_token": "<|eot_id|>"}}, (1, 2, 2, [2])),
    ],
)
def test_special_tokens_are_those_that_the_files_name(config, other, expected, tmp_path):
    folder = write_folder(tmp_path, "bytelevel", **config)
    for name, values in other.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    ours = HuggingFaceBaseTokenizer(folder / "tokenizer.json")
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.stop_tokens) == expected
    if "generation_config" not in other:
        theirs = AutoTokenizer.from_pretrained(folder)
        assert (theirs.bos_token_id, theirs.eos_token_id) == expected[:2]


def test_eos_keeps_its_label_where_it_pads_too(tmp_path):
    tokenizer = HuggingFaceModelTokenizer(write_folder(tmp_path, "bytelevel") / "tokenizer.json", prompt_template=None)
    assert tokenizer.pad_id == tokenizer.eos_id
    made = [
        tokenizer.tokenize_messages([Message("user", "a", True), Message("assistant", t)]) for t in ("b", "the fox")
    ]
    samples = [{"tokens": tokens, "labels": shifted_labels(tokens, mask)} for tokens, mask in made]
    labels = padded_collate_sft(samples, padding_idx=tokenizer.pad_id)["labels"].tolist()
    assert [row.count(tokenizer.eos_id) for row in labels] == [1, 1]


@pytest.mark.parametrize(
    "config, said",
    [
        ({"eos_token": None}, "has no EOS token: set eos_token in .*tokenizer_config.json"),
        ({"eos_token": "<end>"}, "eos_token '<end>' is not in tokenizer.json"),
        ({"pad_token": "[PAD]"}, r"pad_token '\[PAD\]' is not in tokenizer.json"),
        ({"eos_token": 2}, "eos_token must be text or null, got 2"),
    ],
)
def test_no_special_token_is_guessed(config, said, tmp_path):
    with pytest.raises(DataError, match=said):
        HuggingFaceBaseTokenizer(write_folder(tmp_path, "bytelevel", **config) / "tokenizer.json")


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "No such file"),
        (b'{"version": "1.0", "model": {"vo', "is not a JSON file or is cut off .32 bytes.: Unterminated"),
        (b'{"bos_token": "<s>", "eos_token": "</s>"}', "with the keys bos_token, eos_token…, not a tokenizer.json"),
        (b'{"model": {"type": "New"}}', "is not a JSON file or is cut off"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"\n\x0e\n\x05<unk>\x15\x00", "is a SentencePiece model .*SentencePieceTokenizer"),
    ],
)
def test_refuses_a_file_that_is_no_tokenizer_json(content, said, tmp_path):
    folder = write_folder(tmp_path, "bytelevel")
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        HuggingFaceModelTokenizer(folder / "tokenizer.json")
    assert "tokenizer.path" in str(error.value) and "\n" not in str(error.value)


def test_a_text_template_gives_the_tokens_of_the_sentencepiece_model(tmp_path):
    """With the same vocabulary, which transformers converts."""
    folder = write_folder(tmp_path / "spm", "spm_plain")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "json")
    for template in (Llama2ChatTemplate(), QuestionAnswerTemplate(), None):
        spm = SentencePieceTokenizer(folder / "tokenizer.model", prompt_template=template)
        ours = HuggingFaceModelTokenizer(tmp_path / "json" / "tokenizer.json", prompt_template=template)
        for texts in (("what is it?", "42", "the", "fox"), (" the  fox ", "\n\nan ", "é市", " "), ("", "")):
            roles = ("user", "assistant") * 2
            chat = [Message(role, text, role == "user") for role, text in zip(roles, texts, strict=False)]
            assert ours.tokenize_messages(chat) == spm.tokenize_messages(chat)
            assert ours.tokenize_messages(chat[:-1], add_eos=False) == spm.tokenize_messages(chat[:-1], add_eos=False)


def test_a_text_template_is_encoded_whole_where_no_space_is_put_before_a_part(tmp_path):
    """The space at a prompt's end belongs to the answer, whose first token includes it."""
    path = write_folder(tmp_path, "bytelevel") / "tokenizer.json"
    ours = HuggingFaceModelTokenizer(path, prompt_template=PromptTemplate({"user": ["Q: ", "\nA: "]}))
    chat = [Message("user", "what", True), Message("assistant", "the answer"), Message("user", "x", True)]
    tokens, mask = ours.tokenize_messages(chat)
    assert tokens == ours.encode("<s>Q: what\nA: the answer</s><s>Q: x\nA: ", False, False)
    in_loss = [token for token, masked in zip(tokens, mask, strict=True) if not masked]
    assert ours.tokenizer.decode(in_loss, False) == " the answer</s>"
    prompt, _ = ours.tokenize_messages(chat[:1], add_eos=False)
    assert tokens[: len(prompt)] == prompt and ours.decode(prompt) == "Q: what\nA:"


def test_the_bound_of_tokens_holds(tmp_path):
    ours = HuggingFaceModelTokenizer(write_folder(tmp_path, "bytelevel") / "tokenizer.json", prompt_template=None)
    for text in TEXTS:
        assert len(ours.encode(text, False, False)) <= ours.most_tokens(text) < float("inf")
    assert ours.surely_whole({"messages": [Message("user", "a"), Message("assistant", "b")]})


def test_a_special_token_in_a_text_counts_as_in_transformers(tmp_path):
    folder = write_folder(tmp_path, "bytelevel", plain(TEMPLATES["zephyr"]))
    ours = HuggingFaceModelTokenizer(folder / "tokenizer.json")
    tokens, _ = ours.tokenize_messages([Message("user", "</s>", True), Message("assistant", "b")])
    assert tokens.count(ours.eos_id) == 3


@pytest.mark.parametrize("module", ["tokenizers", "jinja2"])
def test_names_the_extra_that_is_missing(module, tmp_path, monkeypatch):
    folder = write_folder(tmp_path, "bytelevel", marked(TEMPLATES["chatml"]))
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=f"{module}; pip install 'torchtune_lite.hf.'"):
        HuggingFaceModelTokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("kind", ["bytelevel", "llama_json"])
def test_added_tokens_are_those_of_transformers(kind, tmp_path):
    folder, new = write_folder(tmp_path, kind), ["<go>", "wörd", "<s>", "<go>"]
    ours, theirs = load_tokenizer(folder, add_tokens=new), AutoTokenizer.from_pretrained(folder)
    size = len(theirs)
    theirs.add_tokens([AddedToken(name, normalized=False) for name in new[:2]])
    assert ours.added_ids == [size, size + 1, 1] and ours.vocab_size == len(theirs)
    for text in ("a<go>b", "the wörd <go> and wörds", "<go><go> quick"):
        assert ours.encode_chat(text)[0] == theirs(text, add_special_tokens=False).input_ids
    assert "<go>" in ours.decode([size]) and ours.decode([1]) == ""
    again = load_tokenizer(folder, add_tokens=[])
    assert again.added_ids == [] and again.vocab_size == size


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("<go>", "tokenizer.add_tokens is '<go>'; it must be a list of texts that are not empty"),
        ([" "], "it must be a list of texts that are not empty"),
        ([7], "it must be a list of texts that are not empty"),
    ],
)
def test_refuses_added_tokens_that_are_no_texts(given, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        load_tokenizer(write_folder(tmp_path, "bytelevel"), add_tokens=given)


def test_other_formats_take_no_added_tokens(tmp_path):
    folder = write_folder(tmp_path, "spm_plain")
    with pytest.raises(ConfigError, match="tokenizer.add_tokens needs a tokenizer.json, not tokenizer.model; save one"):
        load_tokenizer(folder, add_tokens=["<go>"])
