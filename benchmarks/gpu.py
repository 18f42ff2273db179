"""Training steps of Llama-2-7B and Llama-3.1-8B shapes with random weights, on a GPU.

    python benchmarks/gpu.py                                   every row that fits
    python benchmarks/gpu.py --rows 7b-qlora --compile
    python benchmarks/gpu.py --rows 8b-lora --by peft          transformers and PEFT, with bitsandbytes for QLoRA
    python benchmarks/gpu.py --device cpu --size tiny          the same code in small, to see that it runs

`benchmarks/gpu_session.sh` runs them all, each in a process of its own, and the tests that need a GPU.

Weights are made on the device, one tensor at a time, and quantised there as a checkpoint's are. Printed are the peaks
of the allocator after the model is made and in training, tokens per second, the model FLOPs per second as a share of
the GPU's data sheet (MFU), and what the step computes, recomputation included, as a share of a large bf16 product
measured in the same run. The published rows of torchtune are printed beside them.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from torchtune_lite import training
from torchtune_lite.models.builders import lora_decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.peft import is_quantized, quantize
from torchtune_lite.training.memory.offloading import offload_activations
from torchtune_lite.training.metrics.flops import peak_flops, step_flops

SIZES = {
    "7b": DecoderConfig(32_000, 32, 32, 32, 4096, 4096, intermediate_dim=11_008),
    "8b": DecoderConfig(128_256, 32, 32, 8, 4096, 8192, intermediate_dim=14_336, rope_base=500_000.0),
    "tiny": DecoderConfig(512, 2, 4, 2, 256, 256, intermediate_dim=256),
}
ADAPTED = ["q_proj", "v_proj", "output_proj"]  # and the MLP
QLORA = {"quantize_base": True, "quantize_frozen": True}  # all projections of the layers


class Row(NamedTuple):
    """A model, its batch, and how it keeps its activations."""

    size: str
    options: dict[str, Any]
    batch: int
    length: int
    checkpointing: bool = True
    offloading: bool = False  # on a GPU


ROWS = {
    "7b-qlora": Row("7b", QLORA, 2, 512),
    "7b-qlora-lean": Row("7b", {**QLORA, "mlp_tile": 256}, 2, 512, offloading=True),
    "7b-qlora-long": Row("7b", QLORA, 8, 2048),
    "7b-qlora-long-lean": Row("7b", {**QLORA, "mlp_tile": 1024}, 8, 2048, offloading=True),
    "7b-lora-long": Row("7b", {}, 8, 2048),
    "8b-qlora": Row("8b", QLORA, 2, 2048),
    "8b-qlora-kept": Row("8b", QLORA, 2, 2048, checkpointing=False),
    "8b-lora": Row("8b", {}, 2, 2048),
}
PUBLISHED = [
    ("torchtune's README: 8B QLoRA, batch 2, 2,048 tokens, compiled, RTX 4090", "7.4 GiB", "2,413"),
    (
        "torchtune's tutorial: 7B QLoRA, batch 2, 512 tokens, after the model is made / in training",
        "9.13 / 9.29 GB",
        "",
    ),
]


Contender = tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]
"""A model, and what gives a step's loss of `tokens [b, s]`, all of which have a label."""


def ours(row: Row, device: torch.device, compiled: bool) -> Contender:
    """Build our model; a batch is one row, as the default collate joins it."""
    model = build(sizes(row), row.options, device)
    model.activation_checkpointing = row.checkpointing
    if row.offloading and device.type == "cuda":
        offload_activations(model)
    if compiled:
        training.compile_layers(model, device)
    loss_fn = LinearCrossEntropyLoss()

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        hidden = model(tokens.view(1, -1), seq_lens=[row.length] * row.batch, skip_output=True)
        return loss_fn(model.output, hidden, tokens.view(1, -1).roll(-1, 1)) / tokens.numel()

    return model, loss


def peft(row: Row, device: torch.device, compiled: bool) -> Contender:
    """Build transformers' model with PEFT's adapters, in bitsandbytes' NF4 where the row is QLoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config, bf16 = sizes(row), torch.bfloat16
    their_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.embed_dim,
        intermediate_size=config.intermediate_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_seq_len,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(their_config).to(bf16)
    for name, module in list(model.named_modules()):
        if name == "model.rotary_emb":  # has buffers, which are computed
            model.model.rotary_emb = type(module)(their_config).to(device)
        for last, param in list(module.named_parameters(recurse=False)):
            value = random_weight(param.shape, device)
            if row.options.get("quantize_base") and name.endswith("_proj"):
                from bitsandbytes.nn import Linear4bit, Params4bit

                quantised = Linear4bit(*param.shape[::-1], bias=False, compute_dtype=bf16, device="meta")
                quantised.weight = Params4bit(value, requires_grad=False, quant_type="nf4", compress_statistics=True)
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, quantised.to(device))
            else:
                setattr(module, last, nn.Parameter(value, requires_grad=False))
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets), autocast_adapter_dtype=False)
    model.to(device)
    if row.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    forward = torch.compile(model) if compiled else model
    return model.train(), lambda tokens: forward(input_ids=tokens, labels=tokens, use_cache=False).loss


BY = {"ours": (ours, "torchtune_lite"), "peft": (peft, "transformers + PEFT")}


def sizes(row: Row) -> DecoderConfig:
    """Return the sizes of a row's model, with room for its samples."""
    return replace(SIZES[row.size], max_seq_len=max(SIZES[row.size].max_seq_len, row.length))


def random_weight(shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Make a weight in bf16; that of a norm is 1."""
    value = torch.empty(shape, dtype=torch.bfloat16, device=device)
    return value.normal_(std=0.02) if value.dim() == 2 else value.fill_(1)


def build(config: DecoderConfig, options: dict, device: torch.device) -> nn.Module:
    """Make the model on the device, quantising one tensor after the other."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = lora_decoder(config, ADAPTED, apply_lora_to_mlp=True, lora_rank=8, **options)
    torch.set_default_dtype(torch.float32)
    for name, param in list(model.named_parameters()):
        value = random_weight(param.shape, device)
        value = quantize(value) if is_quantized(param) else value
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, nn.Parameter(value, requires_grad=param.requires_grad))
    return model.train()


def measured_peak(device: torch.device, size: int) -> float:
    """Return the FLOP/s of the best of some products of square bf16 matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device, 8))


def seconds(run: object, device: torch.device, times: int) -> list[float]:
    """Time several calls, each to its end."""
    found = []
    for _ in range(times):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return found


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device) -> float:
    """Return the peak of the allocator, or of the process, in GiB."""
    found = training.peak_memory(device)
    return found.get("peak_memory_alloc", found.get("peak_memory_resident"))


def measure(row: Row, by: str, device: torch.device, steps: int, compiled: bool) -> dict[str, float]:
    """Take the steps of one row."""
    training.reset_peak_memory(device)
    model, loss = BY[by][0](row, device, compiled)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    made = peak(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    tokens = torch.randint(0, SIZES[row.size].vocab_size, (row.batch, row.length), device=device)

    def step() -> None:
        loss(tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    first = seconds(step, device, 1)[0]
    training.reset_peak_memory(device)
    best = min(seconds(step, device, steps))
    lens = [row.length] * row.batch
    with torch.device("meta"):
        shapes = lora_decoder(sizes(row), ADAPTED, apply_lora_to_mlp=True, lora_rank=8)
    flops = step_flops(shapes, lens, tokens.numel())
    again = recomputed_flops(shapes, lens) if row.checkpointing else 0
    return {
        "made": made,
        "peak": peak(device),
        "first": first,
        "speed": tokens.numel() / best,
        "mfu": flops / best / (peak_flops(device) or float("nan")),
        "computed": (flops + again) / best,
    }


def recomputed_flops(model: nn.Module, lens: list[int]) -> float:
    """Count the FLOPs of the layers' forward pass, less the last product of each, which is not computed again."""
    weights = [p for layer in model.layers for name, p in layer.named_parameters() if name != "mlp.w2.weight"]
    config = model.config
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * sum(n * n for n in lens)
    return 2 * sum(p.shape.numel() for p in weights if p.dim() == 2) * sum(lens) + attention


def rows(names: list[str], size: str | None) -> Iterator[tuple[str, Row]]:
    """Yield the rows that are asked for; of another size, a sixteenth as long."""
    for name, row in ROWS.items():
        if not names or name in names:
            yield name, row if size is None else row._replace(size=size, length=row.length // 16)


HEAD = (
    "row",
    "by",
    "batch × tokens",
    "model built",
    "in training",
    "first step",
    "tokens/s",
    "MFU",
    "of a product's speed",
)


def main() -> None:
    """Print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], choices=list(ROWS))
    parser.add_argument("--by", choices=list(BY), default="ours")
    parser.add_argument("--size", choices=list(SIZES), help="in place of each row's own")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bare", action="store_true", help="the rows alone, without the lines around them")
    parser.add_argument("--head", action="store_true", help="the lines around them, without the rows")
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    gemm = measured_peak(device, 8192 if device.type == "cuda" else 512)
    if not args.bare:
        print(f"{name}, torch {torch.__version__}; a bf16 product reaches {gemm / 1e12:,.1f} TFLOP/s\n")
        print(f"| {' | '.join(HEAD)} |\n" + "|---" * len(HEAD) + "|")
    for label, row in () if args.head else rows(args.rows, args.size):
        cells = [label + ", compiled" * args.compile, BY[args.by][1], f"{row.batch} × {row.length:,}"]
        try:
            found = measure(row, args.by, device, args.steps, args.compile)
        except torch.OutOfMemoryError:
            cells += ["does not fit", *[""] * 5]
        else:
            cells += [f"{found['made']:.2f} GiB", f"{found['peak']:.2f} GiB", f"{found['first']:.1f} s"]
            cells += [f"{found['speed']:,.0f}", f"{found['mfu']:.1%}", f"{found['computed'] / gemm:.1%}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    for label, memory, speed in PUBLISHED if not args.bare else ():
        print(f"| {label} | torchtune | | | {memory} | | {speed} | | |")


if __name__ == "__main__":
    main()
