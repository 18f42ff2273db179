"""Short templates like those of the families, with ⟦…⟧ around the text in the loss."""

NOW = "{%- set today = date_string if date_string is defined else strftime_now('%d %b %Y') %}"

THINKS = r"""
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages if m.role == 'user' %}{% set ns.last = messages.index(m) %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}{{- '<|im_start|>user\n<tool>' + m.content + '</tool><|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set text, thoughts = m.content, m.reasoning_content or '' %}
        {%- if '</think>' in text %}
            {%- set thoughts = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and thoughts -%}
            ⟦{{- '<think>\n' + thoughts + '\n</think>\n\n' + text + '<|im_end|>\n' -}}⟧
        {%- elif loop.index0 > ns.last and loop.last -%}
            {{- '<think>\n\n</think>\n\n' -}}⟦{{- text + '<|im_end|>\n' -}}⟧
        {%- else -%}⟦{{- text + '<|im_end|>\n' -}}⟧
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

MODES = (
    NOW
    + r"""
{%- set thinks = enable_thinking is not defined or enable_thinking %}
{%- set rules = messages[0].content if messages[0].role == 'system' else 'You are helpful.' %}
{%- if '/no_think' in rules %}{% set thinks = false %}{% endif %}
{{- '<|im_start|>system\nToday: ' + today + '\nMode: ' + ('/think' if thinks else '/no_think') + '\n' + rules }}
{{- '<|im_end|>\n' }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' -%}
        {{- '<|im_start|>assistant\n' + ('' if thinks else '<think>\n\n</think>\n') -}}
        ⟦{{- m.content + '<|im_end|>\n' -}}⟧
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' + ('' if thinks else '<think>\n\n</think>\n') }}
{%- endif %}"""
)
MODES_MARKED = MODES.replace(
    "-%}\n        {{- '<|im_start|>assistant\\n' + ('' if thinks else '<think>\\n\\n</think>\\n') -}}\n        ⟦",
    "-%}\n        ⟦{{- '<|im_start|>assistant\\n' + ('' if thinks else '<think>\\n\\n</think>\\n') -}}",
)
"""The same with marks around the prompt, too, as SmolLM 3 has them."""

DATED = (
    NOW
    + r"""
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + today + '\n\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content | trim }}{% endif %}
{{- '<|eot_id|>' }}
{%- for m in messages if m.role != 'system' %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
    {%- if m.role == 'assistant' -%}⟦{{- m.content | trim + '<|eot_id|>' -}}⟧
    {%- else %}{{- m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
)

ALWAYS_ASKS = r"""
{%- for m in messages %}
    {{- (bos_token if loop.first else '') + '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
    {%- if m.role == 'assistant' -%}⟦{{- m.content | trim + '<|eot_id|>' -}}⟧
    {%- else %}{{- m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"""

NO_SYSTEM = r"""
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('no system role') }}{% endif %}
{%- for m in messages %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
    {%- if m.role == 'assistant' -%}⟦{{- m.content | trim + '<end_of_turn>\n' -}}⟧
    {%- else %}{{- m.content | trim + '<end_of_turn>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""

NO_NEWLINES = r"""
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '|' }}
    {%- if m.role == 'assistant' -%}⟦{{- m.content + '<|im_end|>' -}}⟧
    {%- else %}{{- m.content + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant|' }}{% endif %}"""

ENDS_ONCE = r"""
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' -%}⟦{{- m.content + '<|im_end|>\n' -}}{%- if loop.last %}{{- eos_token }}{% endif -%}⟧
    {%- else %}{{- m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""

RULES_LAST = r"""
{{- bos_token }}
{%- set rules = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '[INST] ' + (rules if m == users[-1] else '') + m.content + '[/INST]' }}
    {%- elif m.role == 'assistant' -%}⟦{{- ' ' + m.content + eos_token -}}⟧
    {%- endif %}
{%- endfor %}"""

LOOKALIKES = {
    "qwen3": THINKS,
    "smollm3": MODES,
    "llama3_1": DATED,
    "llama3": ALWAYS_ASKS,
    "gemma": NO_SYSTEM,
    "phi4": NO_NEWLINES,
    "phi3": ENDS_ONCE,
    "mistral_v0_3": RULES_LAST,
}
