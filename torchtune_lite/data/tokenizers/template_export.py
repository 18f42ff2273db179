"""Writes a text template as a chat template, so that a checkpoint's other readers prompt it as it was trained."""

import json
from typing import Any

from torchtune_lite.data.messages import TOOL_ROLES
from torchtune_lite.data.templates import ChatMLTemplate, Llama2ChatTemplate, MistralChatTemplate, PromptTemplate
from torchtune_lite.data.tokenizers.hf_tokenizer import HuggingFaceModelTokenizer
from torchtune_lite.data.tokenizers.llama3_tokenizer import Llama3Tokenizer
from torchtune_lite.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

EXPORTED = (PromptTemplate, ChatMLTemplate, MistralChatTemplate)

_PARTS = {
    Llama2ChatTemplate: """\
{%- if message.role == 'system' -%}
  {%- set ns.system = ['<<SYS>>\\n', message.content, '\\n<</SYS>>\\n\\n'] -%}
{%- elif message.role == 'user' -%}
  {%- set ns.parts = ['[INST] '] + ns.system + [message.content, ' [/INST] '] -%}
{%- else -%}
  {%- set ns.parts = [message.content + after_tool] -%}
{%- endif -%}
""",
    MistralChatTemplate: """\
{%- if message.role == 'system' -%}
  {{- raise_exception('there is no place for a system prompt') -}}
{%- endif -%}
""",
}
_AFFIXES = """\
{%- set affixes = around.get(message.role, ['', '']) -%}
{%- set text = message.content + (after_tool if affixes == ['', ''] else '') -%}
{%- set ns.parts = affixes[:1] * (affixes[0] != '') + [text] + affixes[1:] * (affixes[1] != '') -%}
"""
_BY_PARTS = """\
{%- set lead = ' ' if ns.starts or ns.space else '' -%}
{%- for part in ns.parts if part.rstrip(' ') -%}
  {%- set ns.text = ns.text + lead + part.rstrip(' ') -%}
{%- endfor -%}
{%- set ns.space = ns.parts[-1].endswith(' ') -%}
"""
_WHOLE = "{%- set ns.text = ns.text + ns.parts | join -%}\n"
_LLAMA3 = """\
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content.strip() + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""


def as_chat_template(tokenizer: Any) -> str | None:
    """Write the tokenizer's text template as Jinja that gives the same tokens; None where it cannot.

    It can for Llama2ChatTemplate, the mappings role → [prefix, suffix] and torchtune's templates made of one, with
    messages of one part, and for the form that Llama 3's own tokenizer writes without a template. A tokenizer that
    encodes part by part drops the spaces at each one's end and puts one before it, as
    `ModelTokenizer.tokenize_messages` says; so does the Jinja.
    """
    template = tokenizer.prompt_template
    if isinstance(tokenizer, Llama3Tokenizer):
        return _LLAMA3 if template is None else None
    is_llama2 = type(template) is Llama2ChatTemplate
    if not is_llama2 and type(template) not in EXPORTED:
        return None
    if isinstance(tokenizer, SentencePieceTokenizer):
        by_parts, name = True, tokenizer.piece
    elif isinstance(tokenizer, HuggingFaceModelTokenizer):
        by_parts, name = tokenizer.prefixes, tokenizer.tokenizer.id_to_token
    else:
        return None
    bos = "" if tokenizer.bos_id is None else name(tokenizer.bos_id)
    around = {} if is_llama2 else {role: list(affixes) for role, affixes in template.template.items()}
    write = _BY_PARTS if by_parts else _WHOLE
    parts = _PARTS.get(type(template), "") + ("" if is_llama2 else _AFFIXES)
    opening = around.get("assistant", [""])[0]
    return f"""\
{{%- set around = {json.dumps(around, ensure_ascii=False)} -%}}
{{%- set ns = namespace(text='', starts=true, space=false, system=[], parts=[]) -%}}
{{%- for message in messages -%}}
{{%- set after_tool = '\\n' if message.role in {list(TOOL_ROLES)} else '' -%}}
{parts}{"{%- if message.role != 'system' -%}" if is_llama2 else ""}
{{%- if ns.starts -%}}{{%- set ns.text = ns.text + {json.dumps(bos)} -%}}{{%- endif -%}}
{write}{{%- set ns.starts = message.role == 'assistant' -%}}
{{%- if ns.starts -%}}{{%- set ns.text = ns.text + {json.dumps(name(tokenizer.eos_id))} -%}}{{%- endif -%}}
{"{%- endif -%}" if is_llama2 else ""}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
{{%- set ns.parts = [{json.dumps(opening, ensure_ascii=False)}] -%}}
{write}{{%- set ns.text = ns.text.rstrip(' ') -%}}
{{%- endif -%}}
{{{{- ns.text -}}}}
"""
