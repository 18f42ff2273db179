import pytest
from torchtune_lite.models.llama2 import llama2_tokenizer

from tests.data.chats import TEMPLATES, plain, write_folder
from torchtune_lite.data import ChatTemplate, HuggingFaceModelTokenizer, SentencePieceTokenizer, load_tokenizer
from torchtune_lite.errors import DataError


@pytest.mark.parametrize(("kind", "cls"), [("bytelevel", HuggingFaceModelTokenizer), ("spm", SentencePieceTokenizer)])
def test_the_content_decides_not_the_name(kind, cls, tmp_path):
    folder = write_folder(tmp_path, kind, plain(TEMPLATES["zephyr"]))
    [file] = folder.glob("tokenizer.*")
    assert type(load_tokenizer(folder)) is cls
    file.rename(folder / "renamed.bin")
    tokenizer = llama2_tokenizer(str(folder / "renamed.bin"), 77, "chat_template")
    assert type(tokenizer) is cls
    assert isinstance(tokenizer.prompt_template, ChatTemplate) and tokenizer.max_seq_len == 77


def test_of_two_files_in_a_folder_it_is_the_one_that_transformers_takes(tmp_path):
    write_folder(tmp_path, "spm")
    assert type(load_tokenizer(write_folder(tmp_path, "bytelevel"))) is HuggingFaceModelTokenizer


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(DataError, match=r"is a folder without tokenizer.json or tokenizer.model; name the file"):
        load_tokenizer(tmp_path)
