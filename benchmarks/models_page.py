"""Write docs/models.md: the supported architectures and sizes, and the memory that training takes.

    python benchmarks/models_page.py

The memory is counted by `training.memory.step_memory`, as `memory_budget` does, on the meta device: of one layer and
the loss, since all layers of a model have weights of the same shapes. Nothing is measured, and no weights are needed.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from torchtune_lite.models import FAMILIES, NOT_SERVED, SIZES
from torchtune_lite.models.builders import ATTN_MODULES, Builder, decoder, lora_decoder
from torchtune_lite.models.phi import phi4_mini
from torchtune_lite.modules import DecoderConfig, TransformerDecoder
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.peft import adapter_modules, is_quantized, num_bytes
from torchtune_lite.training.memory.step_memory import StepMemory, count_step
from torchtune_lite.utils import get_logger

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
ROWS, TOKENS, RANK = 4, 512, 8


class Architecture(NamedTuple):
    """The page's row about a `model_type`; the names of its sizes start with `sizes`."""

    models: str
    sizes: tuple[str, ...]
    template: str
    quirks: str


ARCHITECTURES = {
    "llama": Architecture(
        "Llama 2 to 3.3, Code Llama, SmolLM2, TinyLlama, R1-Distill-Llama",
        ("llama", "code_llama2", "smollm2", "tinyllama"),
        "`[INST]` (2, Code Llama); header tokens (3 on); ChatML (SmolLM2)",
        "RoPE scaling from 3.1 on; Meta's own files can be read, too",
    ),
    "qwen2": Architecture(
        "Qwen2, Qwen2.5, their Coder and Math editions, R1-Distill-Qwen",
        ("qwen2",),
        "ChatML, with a default system turn",
        "biases on q, k and v; tied embeddings in the small sizes",
    ),
    "qwen3": Architecture(
        "Qwen3, dense",
        ("qwen3",),
        "ChatML with `<think>`",
        "q and k normed per head; head width independent of the model's",
    ),
    "mistral": Architecture(
        "Mistral 7B, Nemo 12B, Small 3 24B",
        ("mistral",),
        "`[INST]`",
        "window of 4,096 tokens in 7B v0.1; independent head width in Nemo and Small",
    ),
    "ministral": Architecture("Ministral 8B (2410)", (), "`[INST]`", "a window in most layers"),
    "ministral3": Architecture(
        "Ministral 3, text part", ("ministral3",), "`[INST]`", "YaRN; queries scaled up with the position past 16,384"
    ),
    "phi3": Architecture(
        "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
        ("phi3", "phi4"),
        "`<|user|>` (3, 4-mini); `<|im_sep|>` (4)",
        "q, k, v and w1, w3 as one matrix each in files; LongRoPE; RoPE on 96 of 128 dimensions of a head in 4-mini",
    ),
    "gemma": Architecture("Gemma", ("gemma_",), "`<start_of_turn>`, no system turn", "norms add 1 to their weight"),
    "gemma2": Architecture(
        "Gemma 2",
        ("gemma2",),
        "`<start_of_turn>`, no system turn",
        "softcaps on scores and logits; a window in every second layer; norms before and after",
    ),
    "gemma3_text": Architecture(
        "Gemma 3, text part",
        ("gemma3",),
        "`<start_of_turn>`",
        "a window and another RoPE base in five of six layers; q and k normed",
    ),
    "smollm3": Architecture("SmolLM3", ("smollm3",), "ChatML with the date", "no RoPE in every fourth layer"),
    "olmo2": Architecture(
        "OLMo 2", ("olmo2",), "`<|user|>`", "norms only after attention and feed-forward; q and k normed across heads"
    ),
    "olmo3": Architecture("OLMo 3", ("olmo3",), "ChatML", "as OLMo 2, with a window in three of four layers; YaRN"),
    "exaone4": Architecture(
        "EXAONE 4", (), "`[|user|]`", "as OLMo 2, but q and k normed per head; no RoPE in full layers of the 32B"
    ),
    "granite": Architecture(
        "Granite 3",
        ("granite3",),
        "`<|start_of_role|>` with the date",
        "multipliers of embeddings, residuals, scores and logits; dropout in attention",
    ),
    "granitemoehybrid": Architecture(
        "Granite 4, dense", ("granite4",), "`<|start_of_role|>`", "as Granite 3; w1 and w3 as one matrix in files"
    ),
    "seed_oss": Architecture("Seed-OSS 36B", ("seed_oss",), "`<seed:bos>`", "biases on q, k and v"),
}

ADAPTERS = {"lora_attn_modules": ATTN_MODULES, "apply_lora_to_mlp": True, "lora_rank": RANK}
METHODS: dict[str, Builder] = {
    "full": decoder,
    "LoRA": partial(lora_decoder, **ADAPTERS),
    "QLoRA": partial(lora_decoder, **ADAPTERS, quantize_base=True, quantize_unsupported="skip"),
}

TEXT = """\
# Models

*Made by `python benchmarks/models_page.py` from the tables in `torchtune_lite/models/`.*

Any checkpoint of these architectures works, whatever its size: `torchtune_lite.models.from_checkpoint` reads the
sizes from its `config.json`. Each architecture is compared with transformers
(`tests/models/test_against_transformers.py`). Of models that also see images, the text part is read. The tokenizer and
the chat template are the checkpoint's own; the table shows the usual form.

| architecture (`model_type`) | models | template | distinctive features |
|---|---|---|---|
{architectures}

Not supported, with an error before any weight is read: {not_served}.

## Sizes

Each size has three builders: `NAME` to train every weight, `lora_NAME` and `qlora_NAME` for adapters. They are for
configs that name a size; `from_checkpoint` does not need them.

Memory is in GB (10⁹ bytes), at the peak of a training step of {rows} × {tokens} tokens, all with labels, with
`enable_activation_checkpointing: True`, AdamW with both moments, and no accumulation.

- *full*: weights, gradients and moments in bf16.
- *LoRA*: rank {rank} on the seven projections of each layer, adapters in fp32 (`adapter_dtype`), the base in bf16.
- *QLoRA*: the same, with these projections in NF4; embedding and output stay in bf16.

The bytes are **counted** tensor by tensor, as `memory_budget` counts them, not measured. Leave a GB for the device's
own context and the kernels' own buffers. Attention is counted with all its scores, which the fused kernels of
a GPU do not keep; longer texts take more.

| size | architecture | parameters | full | LoRA | QLoRA |
|---|---|---|---|---|---|
{sizes}

\\* NF4 needs matrices with a multiple of 16,384 weights; with `quantize_unsupported: skip` these stay in bf16: {plain}.
"""


def configs() -> dict[str, DecoderConfig]:
    """Return the shape of each size; that of Phi-4-mini is not in `SIZES`, as its factors come from the checkpoint."""
    with torch.device("meta"):
        return SIZES | {"phi4_mini": phi4_mini().config}


def architecture_of(size: str) -> str:
    """Return the `model_type` of a named size."""
    [found] = [kind for kind, each in ARCHITECTURES.items() if each.sizes and size.startswith(each.sizes)]
    return found


def build(config: DecoderConfig, method: str) -> TransformerDecoder:
    """Build a model without weights: in bf16, its adapters in fp32."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = METHODS[method](config)
        for module in adapter_modules(model).values():
            module.init_adapter(torch.float32)
    torch.set_default_dtype(torch.float32)
    return model


def count(config: DecoderConfig, model: TransformerDecoder) -> StepMemory:
    """Count the memory of a step from a `model` of one layer."""
    memory, more = count_step(model, LinearCrossEntropyLoss(), batch()), config.num_layers - 1
    return replace(
        memory,
        num_layers=config.num_layers,
        weights=memory.weights + more * sum(map(num_bytes, model.layers[0].parameters())),
        gradients=memory.gradients + more * memory.layer_gradients,
    )


def batch() -> dict[str, torch.Tensor]:
    """Return the page's batch, with a label at every token."""
    return {name: torch.zeros(ROWS, TOKENS, dtype=torch.int64) for name in ("tokens", "labels")}


def plain_projections(model: TransformerDecoder) -> list[str]:
    """Return the names of the projections of attention whose weight is not in NF4."""
    return [name for name in ATTN_MODULES if not is_quantized(getattr(model.layers[0].attn, name).weight)]


def num_parameters(config: DecoderConfig) -> int:
    """Count the parameters, tied ones once."""
    with torch.device("meta"):
        return sum(param.numel() for param in decoder(config).parameters())


def render() -> str:
    """Return the text of the page."""
    architectures = [
        row(f"{FAMILIES[kind].architecture} (`{kind}`)", each.models, each.template, quirks(kind))
        for kind, each in ARCHITECTURES.items()
    ]
    sizes, plain = [], []
    order = list(ARCHITECTURES)
    for size, config in sorted(configs().items(), key=lambda item: order.index(architecture_of(item[0]))):
        models = {method: build(replace(config, num_layers=1), method) for method in METHODS}
        peaks = [f"{count(config, model).peak(config.num_layers) / 1e9:,.1f}" for model in models.values()]
        if names := plain_projections(models["QLoRA"]):
            peaks[-1] += " *"
            plain.append(f"{', '.join(names)} of `{size}`")
        sizes.append(row(f"`{size}`", f"`{architecture_of(size)}`", f"{num_parameters(config):,}", *peaks))
    reasons = {why: [f"`{kind}`" for kind, each in NOT_SERVED.items() if each == why] for why in NOT_SERVED.values()}
    return TEXT.format(
        architectures="\n".join(architectures),
        not_served="; ".join(f"{', '.join(kinds)} ({why})" for why, kinds in reasons.items()),
        rows=ROWS,
        tokens=TOKENS,
        rank=RANK,
        sizes="\n".join(sizes),
        plain="; ".join(plain),
    )


def row(*cells: str) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def quirks(kind: str) -> str:
    """Return the distinctive features of an architecture, with a note if its activations exceed float16."""
    return ARCHITECTURES[kind].quirks + ("" if FAMILIES[kind].fits_fp16 else "; no float16")


def main() -> None:
    """Write docs/models.md."""
    get_logger("ERROR")  # each projection that stays in bf16 is in the footnote
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
