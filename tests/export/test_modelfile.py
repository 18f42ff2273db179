import pytest

from tests.export.models import BASE
from torchtune_lite.data import ChatTemplate, Message
from torchtune_lite.export import Options, export_model, open_source
from torchtune_lite.export.modelfile import GO, form_of
from torchtune_lite.models.llama import LLAMA3_CHAT
from torchtune_lite.models.phi import PHI4_CHAT

CHATML = r"""
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
USER_ONLY = """
{%- for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}
{% endfor %}"""
CHAT = [("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V")]


def texts(chat):
    return [Message(role, text) for role, text in chat]


@pytest.mark.parametrize(
    ("source", "bos"), [(CHATML, ""), (LLAMA3_CHAT, "<|begin_of_text|>"), (PHI4_CHAT, ""), (DEFAULT, "")]
)
def test_a_form_writes_the_chats_of_its_template(source, bos):
    template = ChatTemplate(source, {})
    form = form_of(template, bos)
    written = "".join(f"{form.around[role][0]}{text}{form.around[role][1]}" for role, text in CHAT)
    assert written + form.around["assistant"][0] == template.prompt(texts(CHAT)).removeprefix(bos)
    assert form.system == ("Be kind." if source == DEFAULT else None)


def test_roles_are_cut_where_they_start_alike():
    assert form_of(ChatTemplate(CHATML, {})).around == {
        role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")
    }
    assert GO.format(**form_of(ChatTemplate(CHATML, {})).around).startswith(
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n{{ else if'
    )


@pytest.mark.parametrize("source", [USER_ONLY, "{{ messages | length }}", "{{ messages[-1].content }}"])
def test_what_is_more_than_a_form_is_none(source):
    assert form_of(ChatTemplate(source, {})) is None


def test_a_modelfile_names_the_file_and_where_an_answer_ends(llama, tmp_path, caplog):
    (llama / "chat_template.jinja").write_text(CHATML.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>"))
    export_model(open_source(llama), "modelfile", tmp_path / "out", Options("tiny"))
    text = (tmp_path / "out/Modelfile").read_text()
    assert text.startswith('FROM ./tiny-q8_0.gguf\nTEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}')
    assert text.endswith('PARAMETER stop "</s>"\n')

    (llama / "chat_template.jinja").write_text("{{ messages[-1].content }}</s>")
    export_model(open_source(llama), "modelfile", tmp_path / "other", Options("tiny"))
    assert "cannot be written in Go's language" in caplog.text
    assert "TEMPLATE" not in (tmp_path / "other/Modelfile").read_text()


def test_a_model_without_a_template_has_none(tmp_path):
    export_model(open_source(BASE), "modelfile", tmp_path / "out", Options("demo"))
    assert (tmp_path / "out/Modelfile").read_text() == "FROM ./demo-q8_0.gguf\n"
