import base64
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.data.chats import TEMPLATES, plain, write_folder
from tests.data.lookalikes import THINKS
from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.checkpoint import tokenizer as tokenizer_module
from torchtune_lite.checkpoint.tokenizer import TOKENIZER_FILES, copy_files, save_tokenizer
from torchtune_lite.data import ChatMLTemplate, Llama2ChatTemplate, Llama3Tokenizer, Message, load_tokenizer
from torchtune_lite.data.tokenizers.sentencepiece_export import as_tokenizer_json
from torchtune_lite.errors import DataError

CONVERSATION = [Message("user", "what is  it? "), Message("assistant", "42\nlines."), Message("user", "é市")]
DICTS = [{"role": message.role, "content": message.text_content} for message in CONVERSATION]
WARNING = "encodes differently from the run's"


@pytest.fixture
def save(tmp_path: Path):
    """Save a tokenizer into a folder that has the files of `base`."""

    def save(tokenizer, base: Path) -> Path:
        folder = tmp_path / "saved"
        folder.mkdir()
        for file in filter(Path.is_file, base.iterdir()):
            (folder / file.name).write_bytes(file.read_bytes())
        save_tokenizer(folder, tokenizer, base)
        return folder

    return save


@pytest.mark.parametrize("kind", ["bytelevel", "llama_json", "spm_plain"])
@pytest.mark.parametrize("template", [Llama2ChatTemplate(), "chat_template", {"user": ["Q: ", "\n"]}])
def test_transformers_encodes_a_chat_as_the_run_did(kind, template, save, tmp_path, caplog):
    base = write_folder(tmp_path / "base", kind, plain(TEMPLATES["zephyr"]))
    live = load_tokenizer(base, prompt_template=template)
    theirs = AutoTokenizer.from_pretrained(save(live, base))
    prompt = theirs.apply_chat_template(DICTS, add_generation_prompt=True, return_dict=False)
    assert prompt == live.tokenize_messages(CONVERSATION, add_eos=False)[0]
    assert not caplog.text


@pytest.mark.parametrize("kind", ["bytelevel", "llama_json"])
def test_tokens_that_the_run_has_added_are_saved(kind, save, tmp_path, caplog):
    listed = {"added_tokens_decoder": {"1": {"content": "<s>", "special": True}}}
    base = write_folder(tmp_path / "base", kind, plain(TEMPLATES["zephyr"]), **listed)
    live = load_tokenizer(base, prompt_template="chat_template", add_tokens=["<go>", "<s>"])
    folder = save(live, base)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == live.vocab_size == len(AutoTokenizer.from_pretrained(base)) + 1
    for text in ("a<go>b", "the <go>", "<s> quick"):
        assert theirs(text, add_special_tokens=False).input_ids == live.encode_chat(text)[0]
    again = load_tokenizer(folder, add_tokens=["<go>", "<s>"])
    assert again.added_ids == live.added_ids and again.vocab_size == live.vocab_size
    assert not caplog.text


def test_variables_and_the_date_of_the_run_make_no_difference(save, tmp_path, caplog):
    source = "{{ strftime_now('%d %b %Y') }}{{ '[thought]' if enable_thinking }}" + plain(TEMPLATES["zephyr"])
    base = write_folder(tmp_path / "base", "bytelevel", source)
    options = {"enable_thinking": True, "strftime_now": "2024-02-29"}
    live = load_tokenizer(base, prompt_template="chat_template", chat_template_kwargs=options)
    save(live, base)
    assert not caplog.text


def test_conversations_that_a_template_rewrites_are_compared_answer_by_answer(save, tmp_path, caplog):
    base = write_folder(tmp_path / "base", "bytelevel", plain(THINKS))
    live = load_tokenizer(base, prompt_template="chat_template")
    save(live, base)
    assert not caplog.text
    earlier = plain(THINKS).replace("{%- else -%}{{- text", "{%- else -%}{{- '!' + text")
    other = load_tokenizer(write_folder(tmp_path / "other", "bytelevel", earlier), prompt_template="chat_template")
    assert "it gives" in tokenizer_module.compare(live, other)


def test_a_vocabulary_and_merges_are_saved_as_they_are(save, tmp_path, caplog):
    base = write_folder(tmp_path / "base", "bytelevel", plain(TEMPLATES["chatml"]), tokenizer_class="Qwen2Tokenizer")
    content, config = (json.loads((base / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    config["added_tokens_decoder"] = {each.pop("id"): each for each in content["added_tokens"]}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    (base / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (base / "merges.txt").write_text("\n".join(map(" ".join, content["model"]["merges"])))
    (base / "tokenizer.json").unlink()
    live = load_tokenizer(base, prompt_template="chat_template")
    theirs = AutoTokenizer.from_pretrained(save(live, base))
    prompt = theirs.apply_chat_template(DICTS, add_generation_prompt=True, return_dict=False)
    assert prompt == live.tokenize_messages(CONVERSATION, add_eos=False)[0]
    assert not caplog.text


def test_a_bare_sentencepiece_model_says_how_it_is_read(save, tmp_path):
    base = write_folder(tmp_path / "base", "spm_plain")
    (base / "tokenizer_config.json").unlink()
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    live = load_tokenizer(base, prompt_template=Llama2ChatTemplate())
    theirs = AutoTokenizer.from_pretrained(save(live, base))
    assert (
        theirs.apply_chat_template(DICTS, return_dict=False) == live.tokenize_messages(CONVERSATION, add_eos=False)[0]
    )
    assert theirs("the fox").input_ids == live.encode("the fox", add_eos=False)


def test_a_tokenizer_from_elsewhere_takes_the_place_of_the_bases(save, tmp_path, caplog):
    base = write_folder(tmp_path / "base", "bytelevel", plain(TEMPLATES["chatml"]))
    other = write_folder(tmp_path / "other", "spm_plain", plain(TEMPLATES["zephyr"]))
    (other / "tokenizer.model").rename(other / "mine.model")
    live = load_tokenizer(other / "mine.model", prompt_template="chat_template")
    folder = save(live, base)
    assert {path.name for path in folder.iterdir()} == {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"}
    assert load_tokenizer(folder, prompt_template="chat_template").encode("the fox") == live.encode("the fox")
    assert not caplog.text


def test_llama_3s_ranks_leave_the_bases_files(save, tmp_path, caplog):
    """The files are in original/, beside a tokenizer.json with the same tokens."""
    base = write_folder(tmp_path / "base", "bytelevel", plain(TEMPLATES["llama3"]))
    (base / "tokenizer.json").unlink()
    ranks = [base64.b64encode(bytes([byte])).decode() for byte in range(256)]
    (base / "original").mkdir()
    (base / "original" / "tokenizer.model").write_text("".join(f"{token} {i}\n" for i, token in enumerate(ranks)))
    tokenizer = Llama3Tokenizer(str(base / "original" / "tokenizer.model"))
    letters = {character: byte for byte, character in bytes_to_unicode().items()}
    model = Tokenizer(models.BPE(vocab=letters, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.add_special_tokens(["<s>", "</s>"])
    model.save(str(base / "tokenizer.json"))
    saved = save(tokenizer, base)
    assert {path.name for path in saved.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert not caplog.text


def test_a_lone_model_of_the_base_makes_place_for_a_tokenizer_json(save, tmp_path, caplog):
    base = write_folder(tmp_path / "base", "spm_plain")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "json")
    saved = save(load_tokenizer(tmp_path / "json"), base)
    assert (saved / "tokenizer.json").exists() and not (saved / "tokenizer.model").exists()
    assert not caplog.text


def test_warns_of_a_template_that_others_cannot_follow(save, tmp_path, caplog):
    """Tags that are special tokens of a SentencePiece model are text in training, and tokens for transformers."""
    base = write_folder(tmp_path / "base", "spm")
    save(load_tokenizer(base, prompt_template=ChatMLTemplate()), base)
    assert WARNING in caplog.text and "after ''" in caplog.text


def test_warns_of_a_template_that_cannot_be_written(save, tmp_path, caplog):
    class Mine:
        def __call__(self, messages):
            return messages

    base = write_folder(tmp_path / "base", "bytelevel")
    assert not (save(load_tokenizer(base, prompt_template=Mine()), base) / "chat_template.jinja").exists()
    assert "Mine cannot be written as a chat template" in caplog.text


@pytest.mark.parametrize("template", [None, Llama2ChatTemplate(), "chat_template"])
def test_a_tokenizer_json_of_another_vocabulary_than_the_model_of_the_run_is_written_anew(
    save, tmp_path, caplog, template
):
    base = write_folder(tmp_path / "base", "spm_plain", plain(TEMPLATES["zephyr"]))
    write_folder(tmp_path / "base", "bytelevel", plain(TEMPLATES["zephyr"]))
    live = load_tokenizer(base / "tokenizer.model", prompt_template=template)
    folder = save(live, base)
    assert load_tokenizer(folder).encode("the fox") == live.encode("the fox")
    assert not caplog.text


def test_warns_where_the_saved_files_are_not_those_of_the_run(save, tmp_path, caplog, monkeypatch):
    """As where the model cannot be written as tokenizer.json: the base's stays."""
    base = write_folder(tmp_path / "base", "spm_plain")
    write_folder(tmp_path / "base", "bytelevel")
    monkeypatch.setattr("torchtune_lite.checkpoint.tokenizer.as_tokenizer_json", lambda tokenizer: None)
    save(load_tokenizer(base / "tokenizer.model"), base)
    assert WARNING in caplog.text and "not a plain BPE model" in caplog.text


KINDS = ["bytelevel", "metaspace", "llama_json", "spm_plain", "spm_legacy", "spm"]
PROMPTS = [
    "",
    " ",
    "  ",
    " hi",
    "  two  spaces",
    "\n",
    "\n\nlines ",
    "\t tab",
    " \n x",
    "a\n b",
    "é市𝄞",
    " é市",
    "fox  ",
]
PLACES = ["beside the base", "a copy elsewhere", "a folder elsewhere"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_encodes_texts_as_the_run_did(kind, place, tmp_path, save, caplog):
    """For texts with any start; with a BOS if the base's own files had one, which a copy of the model must not lose."""
    base = write_folder(tmp_path / "base", kind, plain(TEMPLATES["zephyr"]))
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    own = AutoTokenizer.from_pretrained(base)
    path = base
    if place != PLACES[0]:
        path = write_folder(tmp_path / "elsewhere", kind)
    if place == PLACES[1] and kind.startswith("spm"):  # a tokenizer.json alone names no EOS
        (path / "tokenizer_config.json").unlink()
    live = load_tokenizer(path)
    folder = save(live, base)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in PROMPTS:
        assert theirs(text, add_special_tokens=False).input_ids == live.encode(text, False, False), text
        assert theirs(text).input_ids[: len(own("").input_ids)] == own("").input_ids
    assert theirs(" hi").input_ids[0] == live.bos_id or not kind.startswith("spm")
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>")
    if kind.startswith("spm"):
        assert (theirs.chat_template is None) == (place == PLACES[2]), "the run's own config has none"
    assert not caplog.text


def test_a_tokenizer_json_that_drops_the_space_before_a_text_is_written_anew_where_texts_are_trained_on(
    save, tmp_path, caplog
):
    """As in transformers, which a run with a chat template follows."""
    base = write_folder(tmp_path / "base", "spm_plain", plain(TEMPLATES["zephyr"]))
    chat = load_tokenizer(base, prompt_template="chat_template")
    (base / "tokenizer.json").write_text(json.dumps(as_tokenizer_json(chat)))
    saved = (save(chat, base) / "tokenizer.json").read_bytes()
    assert saved == (base / "tokenizer.json").read_bytes()
    (tmp_path / "saved").rename(tmp_path / "first")
    live = load_tokenizer(base / "tokenizer.model")
    theirs = AutoTokenizer.from_pretrained(save(live, base))
    assert (
        theirs(" hi").input_ids == live.encode(" hi", add_eos=False) != load_tokenizer(base).encode(" hi", True, False)
    )
    assert not caplog.text


def test_a_copy_of_a_model_that_cannot_be_converted_keeps_the_bases_config(char_model, save, tmp_path, caplog):
    """AutoTokenizer would otherwise forget BOS."""
    base = tmp_path / "base"
    base.mkdir()
    shutil.copyfile(char_model, base / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    folder = save(load_tokenizer(char_model), base)
    assert json.loads((folder / "tokenizer_config.json").read_text()) == config
    assert (folder / "tokenizer.model").read_bytes() == char_model.read_bytes()

    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(char_model, other / "tokenizer.model")
    (other / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": True}))
    (tmp_path / "saved").rename(tmp_path / "first")
    folder = save(load_tokenizer(other), base)
    assert json.loads((folder / "tokenizer_config.json").read_text())["legacy"], "read in training, so the run's own"


def test_a_tokenizer_that_is_gone_does_not_cost_the_checkpoint(tmp_path, save, caplog):
    base = write_folder(tmp_path / "base", "bytelevel")
    live = load_tokenizer(base)
    (base / "tokenizer.json").unlink()
    save(live, base)
    assert "tokenizer.json is gone" in caplog.text


def test_a_missing_extra_is_no_warning(save, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    base = write_folder(tmp_path / "base", "spm_plain")
    live = load_tokenizer(base, prompt_template=Llama2ChatTemplate())
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert (save(live, base) / "chat_template.jinja").is_file()
    [record] = caplog.records
    assert record.levelname == "INFO" and "not compared" in record.message and "torchtune_lite[hf]" in record.message


def test_what_is_no_tokenizer_of_ours_is_left_alone(tmp_path):
    save_tokenizer(tmp_path, object(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_save_brings_the_tokenizer_of_the_run(hf_base, build, tmp_path, caplog):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    tokenizer = load_tokenizer(write_folder(tmp_path / "own", "bytelevel"), 8, Llama2ChatTemplate())
    with pytest.raises(DataError, match="but the model embeds 96"):
        checkpointer.use_tokenizer(tokenizer, 96)
    checkpointer.use_tokenizer(tokenizer, 1000)
    assert "has BOS 1" not in caplog.text
    checkpointer.save(tmp_path / "out", build(checkpointer, dtype=torch.float32))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    assert "tokenizer.model" not in names and WARNING not in caplog.text


def test_the_next_save_has_the_same_files_without_making_them_again(hf_base, build, tmp_path, monkeypatch):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    checkpointer.use_tokenizer(load_tokenizer(write_folder(tmp_path / "own", "bytelevel")), 1000)
    model = build(checkpointer, dtype=torch.float32)
    checkpointer.save(tmp_path / "first", model)
    monkeypatch.setattr("torchtune_lite.checkpoint.tokenizer.save_tokenizer", None)  # would raise
    checkpointer.save(tmp_path / "second", model)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        for name in ("first", "second")
    )
    assert first.keys() == second.keys() > {"tokenizer.json", "model.safetensors", "config.json"}
    assert {name for name in first if first[name] != second[name]} <= {"manifest.json"}  # which has the time


def copied(source: Path, tmp_path: Path) -> dict[str, str]:
    """Return the names of the files that are copied from a folder."""
    (tmp_path / "draft").mkdir()
    copy_files(source, tmp_path / "draft", (*TOKENIZER_FILES, "LICENSE*"))
    return {path.name: path.read_text() for path in (tmp_path / "draft").iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A base's folder with a secret outside it."""
    (tmp_path / "secret.json").write_text("secret")
    source = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    source.mkdir(parents=True)
    (source / "vocab.json").write_text("vocab")
    return source


@pytest.mark.parametrize("up", ["../../../secret.json", "../secret.json"])
def test_a_link_that_leads_out_of_the_base_is_not_published(up, source, tmp_path, caplog):
    """Links to a file above it, or through a folder or link inside it."""
    (source.parent / "secret.json").write_text("secret")
    (source / "tokenizer.json").symlink_to(up)
    (source / "blobs").symlink_to(tmp_path)
    (source / "LICENSE.txt").symlink_to("blobs/secret.json")
    (source / "tokenizer_config.json").symlink_to("tokenizer.json")
    assert copied(source, tmp_path) == {"vocab.json": "vocab"}
    [record] = caplog.records
    assert record.message.startswith("not copied into the checkpoint: LICENSE.txt (a link to ")
    assert all(name in record.message for name in ("tokenizer.json (a link", "tokenizer_config.json (a link"))


def test_a_snapshot_in_the_cache_of_the_hub_is_copied_whole(source, tmp_path, caplog):
    """Each file there is a link to a blob; a link to a blob elsewhere is not followed."""
    blobs = source.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_text("a tokenizer")
    (blobs / "def").symlink_to(tmp_path / "secret.json")
    (source / "tokenizer.json").symlink_to("../../blobs/abc")
    (source / "merges.txt").symlink_to("../../blobs/def")
    link = tmp_path / "link"
    link.symlink_to(source)
    assert copied(link, tmp_path) == {"tokenizer.json": "a tokenizer", "vocab.json": "vocab"}
    assert "merges.txt (a link to" in caplog.text and "tokenizer.json" not in caplog.text


def test_a_link_within_the_folder_is_copied(source, tmp_path, caplog):
    (source / "tokenizer.json").symlink_to("vocab.json")
    assert copied(source, tmp_path) == {"tokenizer.json": "vocab", "vocab.json": "vocab"} and not caplog.text


def test_code_what_is_no_file_and_what_is_huge_are_not_copied(source, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "LARGEST", 1000)
    (source / "tokenizer.py").write_text("import os")
    (source / "tokenizer.pkl").write_text("")
    (source / "vocab.txt").write_text("a" * 1001)
    os.mkfifo(source / "tokenizer_config.json")
    (source / "chat_templates").mkdir()
    (source / "tokenizer.vocab").write_text("SentencePiece's")
    assert copied(source, tmp_path) == {"vocab.json": "vocab", "tokenizer.vocab": "SentencePiece's"}
    [record] = caplog.records
    for said in (
        *("tokenizer.py (code", "tokenizer.pkl (code", "tokenizer_config.json (not a regular file)"),
        "vocab.txt (too large for a tokenizer: 1,001 bytes)",
    ):
        assert said in record.message


def test_a_checkpoint_of_a_base_in_the_cache_of_the_hub_has_its_files(hf_base, build, tmp_path, caplog):
    """Files that a link brings in from elsewhere are not copied."""
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (hf_base.dir / "generation_config.json").write_text("{}")
    for number, file in enumerate(filter(Path.is_file, hf_base.dir.iterdir())):
        (repo / "blobs" / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "LICENSE").symlink_to(tmp_path / "secret")
    checkpointer = FullModelHFCheckpointer(snapshot)
    checkpointer.save(tmp_path / "out", build(checkpointer, dtype=torch.float32))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"generation_config.json", "config.json"} <= names and "LICENSE" not in names
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert "LICENSE (a link to" in caplog.text
