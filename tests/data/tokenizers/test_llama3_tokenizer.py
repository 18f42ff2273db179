import base64
import json

import pytest
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.data.chats import TEMPLATES, marked, trained
from tests.data.tokenizers.test_chat_template import CHATS, by_transformers, dicts, messages
from torchtune_lite.data import Llama3Tokenizer, Message, PromptTemplate, TikTokenBaseTokenizer, load_tokenizer
from torchtune_lite.data.tokenizers.chat_template import ChatTemplate
from torchtune_lite.data.tokenizers.llama3_tokenizer import LLAMA3_PATTERN, llama3_special_tokens
from torchtune_lite.data.tokenizers.template_export import as_chat_template
from torchtune_lite.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A folder with a small file of ranks: the tokens of a byte-level tokenizer, in the order of its merges."""
    _, content, _ = trained("bytelevel")
    to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary = json.loads(content)["model"]["vocab"]
    words = [bytes(map(to_byte.get, word)) for word in vocabulary if set(word) <= set(to_byte)]
    words = [bytes([byte]) for byte in range(256)] + [word for word in words if len(word) > 1 and b"<" not in word]
    path = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    lines = [f"{base64.b64encode(word).decode()} {rank}" for rank, word in enumerate(words)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def theirs(ranks):
    """transformers' tokenizer of the ranks, with Llama 3's special tokens after them."""
    special = llama3_special_tokens(len(ranks.read_text().splitlines()))
    listed = {i: {"content": name, "special": True, "normalized": False} for name, i in special.items()}
    config = {"tokenizer_class": "TokenizersBackend", "added_tokens_decoder": listed}
    config |= {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "chat_template": marked(TEMPLATES["llama3"]),
    }
    (ranks.parent / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(ranks.parent)


def test_text_is_encoded_as_transformers_does(ranks, theirs):
    ours = load_tokenizer(ranks)
    assert type(ours) is Llama3Tokenizer and ours.vocab_size == len(theirs)
    for text in ("the quick brown fox", "  two  spaces\n\n\nand\tlines 12345 ", "é市𝄞 I'LL", "", "市場 wörld"):
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, add_bos=False, add_eos=False) == ids
        assert ours.decode([ours.bos_id, *ids, ours.eot_id, 100_000]) == text
        assert len(ids) <= ours.most_tokens(text)


@pytest.mark.parametrize("chat", [name for name in CHATS if name != "special tokens in the text"])
def test_a_chat_is_that_of_transformers(chat, ranks, theirs):
    """The header of an answer has a loss, as in torchtune; the mask is otherwise that of a marked template."""
    ours = Llama3Tokenizer(str(ranks))
    tokens, mask = ours.tokenize_messages(messages(chat))
    expected, expected_mask = by_transformers(theirs, dicts(messages(chat)), marked(TEMPLATES["llama3"]))
    assert tokens == expected
    asked = [Message("user", "")]
    header = ours.tokenize_messages(asked, add_eos=False)[0][len(ours.tokenize_messages(asked)[0]) :]
    for i in range(len(tokens)):
        if tokens[i : i + len(header)] == header:
            expected_mask[i : i + len(header)] = [False] * len(header)
    assert mask == expected_mask
    asked = messages(chat)[:-1]
    prompt = theirs.apply_chat_template(dicts(asked), add_generation_prompt=True, return_dict=False)
    assert ours.tokenize_messages(asked, add_eos=False)[0] == prompt
    assert ours.tokenize_messages([*asked, Message("assistant", "")], add_eos=False)[0] == prompt


def test_special_tokens_are_numbered_as_in_llama_3():
    special = llama3_special_tokens(128_000)
    assert len(special) == 256 and max(special.values()) == 128_255
    known = {"<|begin_of_text|>": 128_000, "<|end_of_text|>": 128_001, "<|finetune_right_pad_id|>": 128_004}
    known |= {"<|start_header_id|>": 128_006, "<|eom_id|>": 128_008, "<|eot_id|>": 128_009, "<|python_tag|>": 128_010}
    known |= {"<|reserved_special_token_3|>": 128_011, "<|reserved_special_token_247|>": 128_255}
    assert known.items() <= special.items()


def test_tool_calls_templates_and_cuts(ranks):
    ours = Llama3Tokenizer(str(ranks), prompt_template=PromptTemplate({"user": ["Q: ", "?"]}))
    special = ours.special_tokens
    chat = [Message("user", "the", True), Message("assistant", "x()", ipython=True, eot=False), Message("ipython", "1")]
    tokens, _ = ours.tokenize_messages(chat)
    assert ours.tt_model.decode(tokens) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ:the?<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\n<|python_tag|>x()<|eom_id|><|start_header_id|>ipython<|end_header_id|>\n\n1<|eot_id|>"
    )
    assert {ours.eos_id, special["<|eot_id|>"], special["<|eom_id|>"]} == set(ours.stop_tokens)
    sample = {"messages": chat}
    ours.max_seq_len = len(tokens) - 1
    assert ours(sample)["tokens"] == tokens[:-1] and ours(sample)["truncated"]
    ours.add_eos_when_cut = True
    assert ours(sample)["tokens"] == [*tokens[:-2], ours.eos_id]
    assert not ours.surely_whole(sample)
    ours.max_seq_len = 3 * 16 + 9 + sum(map(len, ("the", "x()", "1"))) + len("Q: ?")
    assert ours.surely_whole(sample) and not ours(sample)["truncated"]


def test_special_tokens_in_a_text_are_text(ranks):
    base = TikTokenBaseTokenizer(ranks, "t", LLAMA3_PATTERN, 900, 901, {"<b>": 900, "<e>": 901})
    assert base.encode("<b>", add_bos=True, add_eos=True) == [900, *b"<b>", 901]
    assert base.decode([900, *b"ab", 901, *b"c"]) == "<b>ab"
    assert base.decode([*b"ab", 901, *b"c"], truncate_at_eos=False) == "ab<e>c"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("IQ== 0\nnot base64! 1\n", r"line 2 is not a token and a rank; fetch the file again"),
        ("IQ== 0\nIg==", "line 2 is not a token and a rank"),
        ("IQ== 0\nIg== 1\n", "ranks or single bytes are missing"),
        ('{"version": "1.0"}', "is a JSON file, not a list of byte-pair ranks"),
        ("version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_refuses_a_file_that_is_no_list_of_ranks(text, said, tmp_path):
    (tmp_path / "tokenizer.model").write_text(text)
    with pytest.raises(DataError, match=said) as error:
        Llama3Tokenizer(str(tmp_path / "tokenizer.model"))
    assert "\n" not in str(error.value)


def test_what_it_is_not_for(ranks):
    with pytest.raises(ConfigError, match="chat_template_kwargs: Llama3Tokenizer has no chat template; leave it out"):
        load_tokenizer(ranks, chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(ConfigError, match="Llama3Tokenizer writes Llama 3's form itself"):
        Llama3Tokenizer(str(ranks), prompt_template="chat_template")
    with pytest.raises(ConfigError, match=r"special_tokens has no <\|end_of_text\|>, <\|finetune"):
        Llama3Tokenizer(str(ranks), special_tokens={"<|begin_of_text|>": 900})
    with pytest.raises(DataError, match="tiktoken cannot split a text of 3,000,000 characters"):
        Llama3Tokenizer(str(ranks)).encode(" " * 3_000_000)


@pytest.mark.parametrize("last", ["user", "assistant"])
def test_its_form_is_written_as_a_template_whose_text_has_the_same_tokens(last, ranks):
    ours = Llama3Tokenizer(str(ranks))
    turns = [Message("system", " be brief"), Message("user", "é市𝄞 <|eot"), Message("assistant", "the fox")]
    turns += [Message("user", "brown\n")][: last == "user"]
    text = ChatTemplate(as_chat_template(ours), {}).prompt(turns)
    tokens, places = ours.encode_chat(text)
    assert tokens == ours({"messages": turns}, inference=True)["tokens"]
    assert text[slice(*places[0])] == "<|begin_of_text|>" and places[-1][1] == len(text)
    assert as_chat_template(Llama3Tokenizer(str(ranks), prompt_template={"user": ["a", ""]})) is None
