"""Real tokenizers with their own templates, if `REAL` names a folder of their folders."""

import os
from pathlib import Path

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.tokenizers.test_answers import CHATS, samples
from torchtune_lite.data import load_tokenizer
from torchtune_lite.data.tokenizers.chat_template import find_chat_template
from torchtune_lite.data.tokenizers.files import read_json
from torchtune_lite.errors import DataError

REAL = "TORCHTUNE_LITE_REAL_TOKENIZERS"
FOLDERS = [
    file.parent
    for file in sorted(Path(os.environ.get(REAL, "nowhere")).glob("*/tokenizer_config.json"))
    if find_chat_template(file.parent, read_json(file))
]


@pytest.mark.skipif(not FOLDERS, reason=f"{REAL} names no folder of tokenizers")
@pytest.mark.parametrize("folder", FOLDERS or ["none"], ids=lambda folder: getattr(folder, "name", folder))
def test_samples_are_those_of_transformers(folder):
    """Each has a loss on its last answer up to its end, and on no token of the prompt."""
    ours = load_tokenizer(folder, prompt_template="chat_template")
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)  # the file as it is, where 5 splits text as GPT-2 does
    for name, chat in CHATS.items():
        try:
            theirs.apply_chat_template(chat, tokenize=False)
        except jinja2.TemplateError:
            with pytest.raises(DataError):
                samples(ours, chat, {})
            continue
        for count, tokens, mask in samples(ours, chat, {}):
            assert tokens == theirs.apply_chat_template(chat[:count], return_dict=False), name
            prompt = theirs.apply_chat_template(chat[: count - 1], add_generation_prompt=True, return_dict=False)
            last = max(i for i, masked in enumerate(mask) if not masked)
            first = max([i for i in range(last) if mask[i]], default=-1) + 1
            assert tokens[: len(prompt) - 1] == prompt[:-1] and first >= len(prompt) - 1, name  # one may hold both
            loss = ours.tokenizer.decode(tokens[first : last + 1], skip_special_tokens=False)
            answer = chat[count - 1]["content"].rpartition("</think>")[2].strip()
            assert any(loss.strip().endswith(answer + ours.tokenizer.id_to_token(stop)) for stop in ours.stop_tokens), (
                name
            )
            assert "<think>\n\n</think>" not in loss, name
