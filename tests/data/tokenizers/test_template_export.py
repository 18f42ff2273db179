import jinja2
import pytest
from transformers import AutoTokenizer

from tests.data.chats import write_folder
from tests.data.tokenizers.test_chat_template import CHATS, dicts, messages
from torchtune_lite.data import (
    ChatMLTemplate,
    Llama2ChatTemplate,
    Message,
    MistralChatTemplate,
    PromptTemplate,
    QuestionAnswerTemplate,
    SummarizeTemplate,
    load_tokenizer,
)
from torchtune_lite.data.tokenizers.template_export import as_chat_template
from torchtune_lite.errors import DataError

TEMPLATES = {
    "llama2": Llama2ChatTemplate(),
    "mistral": MistralChatTemplate(),
    "chatml": ChatMLTemplate(),
    "question": QuestionAnswerTemplate(),
    "summarize": SummarizeTemplate(),
    "mapping": PromptTemplate({"system": ["", "\n"], "user": ["User: ", "\n"], "assistant": ["Écho: 'x' ", " \n"]}),
    "bare": PromptTemplate({}),
}
LEFT_OUT = {
    ("any", "chatml", "empty answer"),  # an empty last answer is a prompt there
    ("spm_plain", "any", "special tokens in the text"),  # in training they stay text
    ("spm_legacy", "any", "special tokens in the text"),
    ("llama_json", "any", "special tokens in the text"),
    ("spm_legacy", "bare", "empty answer"),  # no space before what follows an empty first message
}


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("kind", ["bytelevel", "llama_json", "spm_plain", "spm_legacy"])
def test_transformers_gives_the_tokens_of_training(kind, style, tmp_path):
    folder = write_folder(tmp_path, kind)
    ours = load_tokenizer(folder, prompt_template=TEMPLATES[style])
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = as_chat_template(ours)
    for chat in CHATS:
        conversation = messages(chat)
        if (kind, style, chat) in LEFT_OUT or ("any", style, chat) in LEFT_OUT or (kind, "any", chat) in LEFT_OUT:
            continue
        try:
            expected = ours.tokenize_messages(conversation)[0]
        except DataError:
            assert (style, chat) == ("mistral", "system")
            with pytest.raises(jinja2.TemplateError, match="system prompt"):
                theirs.apply_chat_template(dicts(conversation))
            continue
        assert theirs.apply_chat_template(dicts(conversation), return_dict=False) == expected, chat
        if style != "mapping":  # whose answers have a suffix, which would follow an empty one
            asked = conversation[:-1]
            prompt = theirs.apply_chat_template(dicts(asked), add_generation_prompt=True, return_dict=False)
            opening = [Message("assistant", "")] if style == "chatml" else []
            assert prompt == ours.tokenize_messages(asked + opening, add_eos=False)[0], chat
