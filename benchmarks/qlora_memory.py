"""QLoRA's memory, from loading to saving, beside the bytes that cannot be avoided.

    python benchmarks/qlora_memory.py                                  Llama-shaped, 119 million parameters, on the CPU
    python benchmarks/qlora_memory.py --size 7b --device cuda --frozen
    python benchmarks/qlora_memory.py --size 7b --arithmetic           the unavoidable bytes alone, without a run

Writes a base with random weights, tensor by tensor, into a temporary folder (13 GB for 7b), loads it with the library's
checkpointer, takes two training steps as the recipe does and saves a merged checkpoint. A peak is what a phase adds to
the memory before the run: of the device's allocator on a GPU; on a CPU of the process, mapped files included, with a
malloc that gives freed memory back at once (it keeps some otherwise: a run in practice shows up to twice as much).
"""

import argparse
import ctypes
import gc
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from torchtune_lite import checkpoint, training
from torchtune_lite.checkpoint.formats.files import write_json
from torchtune_lite.checkpoint.formats.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.models import FAMILIES, SIZES
from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.models.families import hf_config
from torchtune_lite.modules import DecoderConfig, TransformerDecoder
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.peft import adapter_state, is_quantized, num_bytes

MB = 1e6
SHAPES = {
    "119m": DecoderConfig(
        vocab_size=8000, num_layers=8, num_heads=16, num_kv_heads=16, embed_dim=1024, max_seq_len=4096,
        intermediate_dim=2816,
    ),
    **{size: SIZES[f"llama2_{size}"] for size in ("7b", "13b", "70b")},
}  # fmt: skip


def write_base(folder: Path, config: DecoderConfig) -> None:
    """Write a checkpoint of random weights, a file for each layer."""
    family = FAMILIES["llama"]
    with torch.device("meta"):
        params = dict(decoder(config).named_parameters())
    files: dict[str, dict[str, Weight]] = {}
    for name, param in params.items():
        shape = tuple(param.shape)
        make = partial(torch.normal, 0.0, 0.02, shape) if len(shape) == 2 else partial(torch.ones, shape)
        part = name.split(".")[1] if name.startswith("layers.") else "rest"
        files.setdefault(f"model-{part}.safetensors", {})[family.to_hf(name)] = Weight(
            torch.bfloat16, shape, lambda make=make: make().bfloat16()
        )
    for file, weights in files.items():
        write_safetensors(folder / file, weights)
    write_json(folder / "config.json", hf_config(family, config))
    weight_map = {name: file for file, weights in files.items() for name in weights}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


@contextmanager
def training_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` the one of new parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def build(config: DecoderConfig, args: argparse.Namespace) -> TransformerDecoder:
    """Build the model with adapters, in bf16 and without weights."""
    attn = ["q_proj", "v_proj", "output_proj"]
    with torch.device("meta"), training_dtype(torch.bfloat16):
        return lora_decoder(config, attn, apply_lora_to_mlp=True, lora_rank=args.rank, quantize_base=True,
                            quantize_frozen=args.frozen, quantize_output=args.output)  # fmt: skip


def unavoidable(model: TransformerDecoder, args: argparse.Namespace) -> dict[str, float]:
    """Return the bytes that each phase has to hold: weights; adapters four times; each layer's input; one tensor."""
    adapters = adapter_state(model).values()
    base = sum(num_bytes(p) for p in model.parameters()) - sum(num_bytes(p) for p in adapters)
    size = torch.finfo(training.get_dtype(args.adapter_dtype, torch.device("cpu"))).bits // 8
    config = model.config
    inputs = config.num_layers * args.batch_size * args.seq_len * config.embed_dim * 2
    trained = sum(p.numel() for p in adapters) * size
    largest = max(p.numel() for p in model.parameters()) * 2
    return {"load": base + trained, "step": base + 4 * trained + inputs, "save": base + 3 * trained + largest}


class Peaks:
    """Peaks of memory beyond what was held before the run."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0
        self.before = self.of(lambda: None)

    def _bytes(self) -> float:
        return training.peak_memory(self.device)[
            "peak_memory_alloc" if self.device.type == "cuda" else "peak_memory_resident"
        ] * 1024**3  # fmt: skip

    def of(self, phase: Callable[[], object]) -> float:
        """Return the peak while `phase` runs."""
        gc.collect()
        training.reset_peak_memory(self.device)
        phase()
        return self._bytes() - self.before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="119m", choices=SHAPES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--frozen", action="store_true", help="quantize_frozen: NF4 for k_proj too")
    parser.add_argument("--output", action="store_true", help="quantize_output: NF4 for the output projection too")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--adapter-dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--arithmetic", action="store_true", help="no run")
    args = parser.parse_args()
    if platform.system() == "Linux":
        ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: larger blocks are mapped, and unmapped when freed
    config, device = SHAPES[args.size], torch.device(args.device)
    model = build(config, args)
    floor = unavoidable(model, args)
    quantised = [p for p in model.parameters() if is_quantized(p)]
    per_weight = sum(map(num_bytes, quantised)) / sum(p.numel() for p in quantised)
    print(
        f"{args.size}, batch {args.batch_size}, {args.seq_len} tokens, rank {args.rank}, adapters {args.adapter_dtype}"
    )
    print(f"torch {torch.__version__}, {platform.machine()}, {args.device}")
    print(training.storage_summary(model))
    print(f"bytes per quantised weight {per_weight:.4f} ({8 * per_weight:.3f} bits)")
    peaks = {} if args.arithmetic else measure(model, config, device, args)
    print("\n| phase | unavoidable | peak |\n|---|---|---|")
    for phase, least in floor.items():
        print(f"| {phase} | {least / MB:,.0f} MB | {f'{peaks[phase] / MB:,.0f} MB' if peaks else ''} |")


def warm_up() -> None:
    """Take a step of a tiny model, so that code and tables are in memory."""
    config = DecoderConfig(128, num_layers=1, num_heads=1, num_kv_heads=1, embed_dim=128, max_seq_len=8)
    model = lora_decoder(config, ["q_proj"], quantize_base=True).bfloat16()
    model.activation_checkpointing = True
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    LinearCrossEntropyLoss()(model.output, model(tokens, skip_output=True), tokens).backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True).step()


def measure(
    model: nn.Module, config: DecoderConfig, device: torch.device, args: argparse.Namespace
) -> dict[str, float]:
    """Return the peaks of the phases, in bytes."""
    work = Path(tempfile.mkdtemp(prefix="qlora_memory_"))
    try:
        base = work / "base"
        base.mkdir()
        write_base(base, config)
        checkpointer = checkpoint.FullModelHFCheckpointer(base)
        dtypes = {"dtype": torch.bfloat16, "adapter_dtype": training.get_dtype(args.adapter_dtype, device)}
        model.activation_checkpointing = not args.no_checkpointing
        loss_fn = LinearCrossEntropyLoss()

        def steps() -> None:
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
            tokens = torch.randint(0, config.vocab_size, (args.batch_size, args.seq_len), device=device)
            for _ in range(2):
                loss = loss_fn(model.output, model(tokens, skip_output=True), tokens.roll(-1, 1)) / tokens.numel()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        warm_up()
        peaks = Peaks(device)
        return {
            "load": peaks.of(lambda: checkpointer.load(model, device=device, **dtypes)),
            "step": peaks.of(steps),
            "save": peaks.of(lambda: checkpointer.save(work / "out", model)),
        }
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
