"""Tokenizers trained on the spot, in folders that both this library and transformers read, and chat templates.

A template marks the model's text by ⟦ and ⟧; without the marks it is the template as models have it, and with
`{% generation %}` in their place transformers itself tells which tokens are the assistant's.
"""

import functools
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

TEMPLATES = {
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set sys = '<<SYS>>\n' + messages[0]['content'] + "
    "'\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}{% else %}{% set sys = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}{% if loop.index0 % 2 %}{{ raise_exception('turns must alternate')"
    " }}{% endif %}{{ bos_token + '[INST] ' + (sys if loop.first else '') + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}⟦{{ ' ' + m['content'] | trim + ' ' + eos_token }}⟧"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}",
    "llama3": "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|start_header_id|>' + m['role']"
    " + '<|end_header_id|>\n\n' }}{% if m['role'] == 'assistant' %}⟦{{ m['content'] | trim + '<|eot_id|>' }}⟧"
    "{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "chatml": "{%- for m in messages -%}\n    {{- '<|im_start|>' + m.role + '\n' -}}\n    {%- if m.role == 'assistant' "
    "-%}⟦{{- m.content + '<|im_end|>\n' -}}⟧{%- else -%}{{- m.content + '<|im_end|>\n' -}}{%- endif -%}\n{%- endfor -%}"
    "\n{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}⟦{{ m.content + eos_token }}⟧{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' }}{% if m.role == 'assistant' %}⟦{{ m.content | trim + '<end_of_turn>\n' }}⟧"
    "{% else %}{{ m.content | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "zephyr": "{% for m in messages %}\n{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}"
    "⟦{{ m.content + eos_token }}⟧{% else %}{{ m.content + eos_token }}{% endif %}\n{% if loop.last and "
    "add_generation_prompt %}\n{{ '<|assistant|>\n' }}{% endif %}\n{% endfor %}",
}
TOOL_TEMPLATES = {
    "llama3": r"""
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- set system = messages[0].content | trim if messages[0].role in ['system', 'developer'] else '' %}
{%- set turns = messages[1:] if messages[0].role in ['system', 'developer'] else messages %}
{%- if tools is not none %}{{- 'Environment: ipython\n' }}{% endif %}
{{- 'Today: ' + (date_string if date_string is defined else strftime_now('%d %b %Y')) + '\n\n' }}
{%- for tool in tools or [] %}{{- tool | tojson(indent=4) + '\n\n' }}{% endfor %}
{{- system + '<|eot_id|>' }}
{%- for m in turns %}
    {%- if m.role in ['tool', 'ipython'] %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
        {{- m.content | tojson if m.content is mapping or m.content is iterable else m.content }}
        {{- '<|eot_id|>' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}⟦
        {%- if 'tool_calls' in m %}
            {%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
            {%- set function = m.tool_calls[0].function %}
            {{- '{"name": "' + function.name + '", "parameters": ' + function.arguments | tojson + '}' }}
        {%- else %}
            {{- m.content | trim }}
        {%- endif %}
        {{- '<|eot_id|>' -}}⟧
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "qwen": r"""
{%- if tools %}
    {{- '<|im_start|>system\n' + (messages[0].content + '\n\n' if messages[0].role == 'system' else '') + '<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{% endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' -}}⟦
        {%- if m.reasoning_content is defined %}
            {{- '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}
        {%- endif %}
        {{- m.content }}
        {%- for call in m.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\n<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' -}}⟧
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' }}{{- m.content }}{{- '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}""",
    "hermes": r"""
{{- bos_token }}
{%- if tools %}{{- '<|im_start|>system\n<tools>' + tools | tojson + '</tools><|im_end|>\n' }}{% endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' -%}⟦
        {{- m.content + '\n' if m.content else '' }}
        {%- for call in m.tool_calls or [] %}
            {{- '<tool_call>' + call.function | tojson + '</tool_call>\n' }}
        {%- endfor %}
        {{- '<|im_end|>\n' -}}⟧
    {%- elif m.role == 'tool' %}
        {{- '<tool_response>' + (m.name or '?') + ': ' }}{{- m.content }}{{- '</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- (m.name + ': ' if m.name else '') + m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}""",
    "mistral": r"""
{{- bos_token }}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if tools and m == users[-1] %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined -%}⟦
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception('ids have 9 characters') }}
            {%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']') }}
        {%- endfor %}
        {{- eos_token -}}⟧
    {%- elif m.role == 'assistant' -%}⟦
        {{- ' ' + m.content + eos_token -}}⟧
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content | string + ', "call_id": "' + m.tool_call_id + '"}' }}
    {%- else %}
        {{- raise_exception('only user, assistant, tool') }}
    {%- endif %}
{%- endfor %}""",
    "parts": r"""
{%- macro text(content) %}
    {%- if content is string %}{{- content | trim }}
    {%- else %}{%- for part in content if part.type == 'text' %}{{- part.text | trim }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{{- bos_token }}
{%- for m in messages %}
    {{- '<start_of_turn>' + m.role + '\n' }}
    {%- if m.role == 'assistant' -%}⟦{{- text(m.content) + '<end_of_turn>\n' -}}⟧
    {%- else %}{{- text(m.content) + '<end_of_turn>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>assistant\n' }}{% endif %}""",
}
"""Templates like those of Llama 3.1, Qwen 3, Hermes, Mistral and Gemma 3, which read more than role and content."""

SPECIAL = ["<unk>", "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
TEXT = [
    "[INST] <<SYS>> be brief <</SYS>> the quick brown fox [/INST] jumps over the lazy dog",
    "what is the answer to this question? the answer is 42. user assistant system tool model",
    "héllo wörld, 市場 and  two  spaces\nand\n\nlines",
] * 4


def plain(template: str) -> str:
    """The template as models have it."""
    return template.replace("⟦", "").replace("⟧", "")


def marked(template: str) -> str:
    """The template that tells which text is the assistant's."""
    return template.replace("⟦", "{% generation %}").replace("⟧", "{% endgeneration %}")


def bytelevel(folder: Path) -> dict:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}}


def metaspace(folder: Path, scheme: str = "first", normalizer: bool = False) -> dict:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in TEXT], trainer)
    if normalizer:  # as Llama 2's file has it
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if "0x" not in token["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    return {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}


def llama_json(folder: Path) -> dict:
    return {"tokenizer_class": "LlamaTokenizer", **metaspace(folder, normalizer=True)}


def spm(folder: Path, control_symbols: Sequence[str] = tuple(SPECIAL[3:])) -> dict:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        control_symbols=list(control_symbols),
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}


def spm_plain(folder: Path) -> dict:
    return spm(folder, [])


def spm_legacy(folder: Path) -> dict:
    return {**spm(folder, []), "legacy": True}


FORMATS = {each.__name__: each for each in (bytelevel, metaspace, llama_json, spm, spm_plain, spm_legacy)}


@functools.cache
def trained(kind: str) -> tuple[str, bytes, dict]:
    """Train a tokenizer of a format once; return its file's name and content, and values for tokenizer_config.json."""
    with tempfile.TemporaryDirectory() as name:
        values = FORMATS[kind](Path(name))
        [file] = Path(name).iterdir()
        return file.name, file.read_bytes(), values


def write_folder(folder: Path, kind: str, template: str | None = None, **config) -> Path:
    """Write a tokenizer of the format, and a tokenizer_config.json with a chat template and other values."""
    name, content, values = trained(kind)
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    values = {**values, **({"chat_template": template} if template else {}), **config}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder
