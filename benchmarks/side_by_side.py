"""Training steps of the same model on the same tokens, ours beside torchtune and transformers + PEFT, on a CPU.

    python benchmarks/side_by_side.py --torchtune PYTHON [--peft PYTHON] [--threads 1]

PYTHON has the peer installed (torchtune 0.6.1 runs with torchao 0.15; for PEFT the default is this one's; PEFT's QLoRA
needs bitsandbytes). A Llama shape of 111 or 168 million parameters, one of Qwen3 and one of Gemma 3, which torchtune's
release does not have, all with random weights; rank 8 on q, v, output and MLP, AdamW, 4 rows of 170 tokens of which a
share has labels. Each runs in processes of its own, in turns; printed are the
least time of a step, the peak of the process beyond what it held before the first step, the time from the start of
Python to the end of the first step, reading the weights included, that of writing the merged model and the adapter
to the disk (PEFT's QLoRA: the adapter alone), and how far the losses are apart.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

STEPS = 6
SIZES = dict(num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=16, hidden_size=1024)
SIZES |= dict(intermediate_size=2816, max_position_embeddings=512)
GEMMA3 = dict(num_attention_heads=4, num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=64)
GEMMA3 |= dict(rope_theta=1e6, rope_local_base_freq=1e4, tie_word_embeddings=True)
SHAPES: dict[str, dict[str, Any]] = {  # by model_type, the fields in which a shape differs from `SIZES`
    "llama": {},
    "qwen3": dict(num_key_value_heads=8, head_dim=128, rope_theta=1e6),
    "gemma3_text": GEMMA3,
}
TORCHTUNE = dict(num_hidden_layers="num_layers", num_attention_heads="num_heads", num_key_value_heads="num_kv_heads")
TORCHTUNE |= dict(hidden_size="embed_dim", intermediate_size="intermediate_dim", max_position_embeddings="max_seq_len")
TORCHTUNE |= dict(vocab_size="vocab_size", rms_norm_eps="norm_eps")  # keys of config.json → torchtune's sizes
ADAPTERS = {"lora_attn_modules": ["q_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True, "lora_rank": 8}


class Case(NamedTuple):
    """A row of the table; `share` of the tokens have a label."""

    method: str
    dtype: str
    share: float = 1.0
    checkpointing: bool = False
    words: int = 4000
    shape: str = "llama"


CASES = {
    "QLoRA, bf16": Case("qlora", "bfloat16"),
    "QLoRA, bf16, checkpointing": Case("qlora", "bfloat16", checkpointing=True),
    "QLoRA, bf16, 32,000 words": Case("qlora", "bfloat16", words=32_000),
    "QLoRA, bf16, 32,000 words, 30 % labels, checkpointing": Case("qlora", "bfloat16", 0.3, True, 32_000),
    "LoRA, bf16": Case("lora", "bfloat16"),
    "LoRA, bf16, 30 % labels": Case("lora", "bfloat16", 0.3),
    "LoRA, bf16, checkpointing": Case("lora", "bfloat16", checkpointing=True),
    "LoRA, bf16, 32,000 words": Case("lora", "bfloat16", words=32_000),
    "LoRA, bf16, 32,000 words, 30 % labels": Case("lora", "bfloat16", 0.3, words=32_000),
    "LoRA, fp32": Case("lora", "float32"),
    "LoRA, fp32, 32,000 words, 30 % labels": Case("lora", "float32", 0.3, words=32_000),
    **{
        f"{name}, {method}, bf16, 32,000 words": Case(method.lower(), "bfloat16", words=32_000, shape=shape)
        for name, shape in (("Qwen3's shape", "qwen3"), ("Gemma 3's shape", "gemma3_text"))
        for method in ("QLoRA", "LoRA")
    },
}
COLUMNS = {"seconds": "{:.2f} s", "peak": "{:,.0f} MiB", "first": "{:.1f} s", "save": "{:.2f} s"}

Contender = tuple[object, Callable[[object], object], Callable[[Path], None]]
"""A model, what gives a step's loss, and what saves the model."""


def problem(path: Path, words: int, shape: str) -> None:
    """Write sizes, adapters, tokens and labels, and beside it the base, in bf16, as a checkpoint folder."""
    import torch
    from safetensors.torch import save_file

    from torchtune_lite.models import FAMILIES, from_checkpoint

    torch.manual_seed(0)
    family = FAMILIES[shape]
    config = {"architectures": [family.architecture], "model_type": shape, "rms_norm_eps": 1e-6, "vocab_size": words}
    config |= SIZES | SHAPES[shape]
    model = from_checkpoint(**family.decoder_args(config), **ADAPTERS)
    state = model.state_dict()
    for name, value in state.items():
        if value.dim() == 2 and "lora" not in name:
            torch.nn.init.normal_(value, std=0.02)
    tokens = torch.randint(0, words, (4, 170))
    labels = {share: tokens.roll(-1, 1).masked_fill(torch.rand(4, 170) >= share, -100) for share in (1.0, 0.3)}
    adapters = {name: value for name, value in state.items() if "lora" in name}
    base = path.with_suffix("")
    torch.save({"adapters": adapters, "tokens": tokens, "labels": labels, "base": base}, path)
    base.mkdir()
    (base / "config.json").write_text(json.dumps(config))
    plain = {family.to_hf(name): value.bfloat16() for name, value in state.items() if "lora" not in name}
    save_file(plain, base / "model.safetensors", metadata={"format": "pt"})


def ours(given: dict, method: str, dtype: object, checkpointing: bool) -> Contender:
    """Build our model, as `tune run` would start it."""
    from torchtune_lite.cli.lazy_compiler import make_compiler_lazy

    make_compiler_lazy()
    import torch

    from torchtune_lite.checkpoint import FullModelHFCheckpointer
    from torchtune_lite.models import from_checkpoint
    from torchtune_lite.modules.loss import LinearCrossEntropyLoss

    checkpointer = FullModelHFCheckpointer(given["base"])
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args, **ADAPTERS, quantize_base=method == "qlora")
    checkpointer.load(model, device="cpu", dtype=dtype)
    for name, value in given["adapters"].items():
        model.get_parameter(name).data.copy_(value)
    model.activation_checkpointing = checkpointing
    loss = LinearCrossEntropyLoss()
    return (
        model,
        lambda labels: loss(model.output, model(given["tokens"], skip_output=True), labels),
        lambda folder: checkpointer.save(folder, model),
    )


def torchtune(given: dict, method: str, dtype: object, checkpointing: bool) -> Contender:
    """Build torchtune's, which reads and saves as its recipe does."""
    import torch
    from torchtune import training
    from torchtune.models.llama2 import lora_llama2
    from torchtune.modules import TransformerSelfAttentionLayer
    from torchtune.modules import peft as adapters
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    checkpointer = training.FullModelHFCheckpointer(
        str(given["base"]), ["model.safetensors"], "LLAMA2", str(given["base"].with_suffix(".torchtune"))
    )
    state = checkpointer.load_checkpoint()[training.MODEL_KEY]
    torch.set_default_dtype(dtype)
    config = json.loads((given["base"] / "config.json").read_text())
    sizes = {theirs: config[key] for key, theirs in TORCHTUNE.items()}
    model = lora_llama2(**sizes, **ADAPTERS, lora_alpha=16, quantize_base=method == "qlora")
    model.load_state_dict(state, strict=False)
    model.load_state_dict(given["adapters"], strict=False)
    adapters.set_trainable_params(model, adapters.get_adapter_params(model))
    if checkpointing:
        training.set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    loss = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss.num_output_chunks)

    def save(folder: Path) -> None:
        checkpointer._output_dir = folder
        state = model.state_dict()
        targets = [*ADAPTERS["lora_attn_modules"], "w1", "w2", "w3"]
        found = {
            training.ADAPTER_KEY: adapters.get_adapter_state_dict(state),
            training.MODEL_KEY: adapters.get_merged_lora_ckpt({k: v.cpu() for k, v in state.items()}, rank=8, alpha=16),
            training.ADAPTER_CONFIG: {"r": 8, "lora_alpha": 16, "target_modules": targets, "peft_type": "LORA"},
        }
        checkpointer.save_checkpoint(found, epoch=0)

    return model, lambda labels: loss(model(given["tokens"]), labels) * (labels != -100).sum(), save


def peft(given: dict, method: str, dtype: object, checkpointing: bool) -> Contender:
    """Build transformers' model with PEFT's adapters."""
    import torch
    import torch.nn.functional as F
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(given["base"], dtype=dtype)
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if method == "qlora":
        from bitsandbytes.nn import Linear4bit

        for layer in model.model.layers:
            for name in targets:
                parent = layer.mlp if hasattr(layer.mlp, name) else layer.self_attn
                old = getattr(parent, name)
                new = Linear4bit(old.in_features, old.out_features, bias=False, quant_type="nf4", compute_dtype=dtype)
                new.load_state_dict({"weight": old.weight.data})
                setattr(parent, name, new.to("cpu"))
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets), autocast_adapter_dtype=False)
    adapters = {k.removesuffix(".weight"): v for k, v in given["adapters"].items()}
    theirs = dict(q_proj="q_proj", v_proj="v_proj", output_proj="o_proj", w1="gate_proj", w2="down_proj", w3="up_proj")
    for key, value in adapters.items():
        _, layer, part, name, which = key.split(".")
        module = getattr(model.base_model.model.model.layers[int(layer)], {"attn": "self_attn"}.get(part, part))
        factor = "lora_A" if which == "lora_a" else "lora_B"
        getattr(getattr(module, theirs[name]), factor).default.weight.data.copy_(value)
        getattr(getattr(module, theirs[name]), factor).to(dtype)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def total(labels: object) -> object:
        logits = model(given["tokens"], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")

    def save(folder: Path) -> None:
        model.save_pretrained(folder / "adapter")
        if method == "lora":
            model.merge_and_unload().save_pretrained(folder)

    torch.set_default_dtype(torch.float32)
    return model, total, save


def resident(reset: bool = False) -> int:
    """Return the process's peak of resident bytes since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def child(who: str, case: str, path: str) -> None:
    """Run the steps of one of them and print a line of JSON."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    row = CASES[case]
    given = torch.load(path, weights_only=False)
    model, loss_sum, save = globals()[who](given, row.method, getattr(torch, row.dtype), row.checkpointing)
    model.train()
    labels = given["labels"][row.share]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    for param in model.parameters():
        if type(param.data) is torch.Tensor:
            param.detach().view(-1)[::1024].sum()  # a page that is mapped from the checkpoint is not added memory
    ctypes.CDLL(None).malloc_trim(0)
    before = resident(reset=True)
    seconds, losses = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        loss = loss_sum(labels) / (labels != -100).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 1:
            first = time.time() - float(os.environ["STARTED"])
    found = {"seconds": min(seconds), "first": first, "peak": (resident() - before) / 2**20, "losses": losses}
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
        start = time.perf_counter()
        save(Path(folder, "saved"))
        os.sync()
        found["save"] = time.perf_counter() - start
    print(json.dumps(found))


def measure(python: str, who: str, case: str, path: Path) -> dict[str, Any]:
    """Run the steps of one of them in a process of its own."""
    env = os.environ | {"STARTED": str(time.time())}
    command = [python, __file__, "--child", who, case, str(path)]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{who}, {case}:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the least of each number of some runs, and the losses of the last."""
    return runs[-1] | {key: min(run[key] for run in runs) for key in COLUMNS}


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchtune", metavar="PYTHON")
    parser.add_argument("--peft", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", metavar="CASE", choices=list(CASES), help="this case alone")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1"}
    pythons = {"ours": sys.executable, "torchtune": args.torchtune, "peft": args.peft}
    pythons = {who: python for who, python in pythons.items() if python}
    print(f"Python {platform.python_version()}, {platform.machine()}, {args.threads} threads\n")
    print("| | " + " | ".join(pythons) + " | losses apart by at most |\n" + "|---" * (len(pythons) + 2) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for case, row in CASES.items():
            if args.only not in (None, case):
                continue
            path = Path(folder) / f"{row.shape}_{row.words}.pt"
            if not path.exists():
                problem(path, row.words, row.shape)
            shown = [who for who in pythons if who != "torchtune" or row.shape == "llama"]
            runs = [(who, measure(pythons[who], who, case, path)) for _ in range(args.rounds) for who in shown]
            found = {who: best([run for by, run in runs if by == who]) for who in shown}
            reference = found["ours"]
            cells = []
            for who in pythons:
                result = found.get(who)
                values = [how.format(result[key]) for key, how in COLUMNS.items()] if result else []
                if result and result is not reference:
                    ratios = [result[key] / reference[key] for key in COLUMNS]
                    values = [f"{value} (**{ratio:.2f}** ×)" for value, ratio in zip(values, ratios, strict=True)]
                cells.append(", ".join(values))
            apart = max(
                abs(a - b) for r in found.values() for a, b in zip(r["losses"], reference["losses"], strict=True)
            )
            print(f"| {case} | " + " | ".join(cells) + f" | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
