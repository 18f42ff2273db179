"""One epoch of short samples, padded, joined and packed: ours beside torchtune's and TRL's, on a CPU.

    python benchmarks/packing.py --torchtune PYTHON --trl PYTHON [--threads 1] [--rounds 2]

PYTHON has the peer installed (torchtune 0.6.1 runs with torchao 0.15; TRL comes with transformers and PEFT). Samples
have lengths as those of Alpaca (log-normal, mean 138 tokens, at most 512), every token in the loss; the model is a
Llama shape of 69 million parameters with random weights in bf16, LoRA of rank 8 on q, v, output and the MLP, AdamW,
four samples or four packs of 512 tokens a step. Each way runs in processes of its own, in turns. Printed are the real
tokens (no padding) per second of the steps but the first, the share of positions that carry a token, the steps of the
epoch and the peak memory of the process.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

SIZES = dict(vocab_size=8000, num_layers=4, num_heads=16, num_kv_heads=16, embed_dim=1024, max_seq_len=512)
MLP, BATCH, PACK = 2816, 4, 512
ATTENTION = ["q_proj", "v_proj", "output_proj"]
WAYS = {
    "ours, padded": ("ours", {"collate": "padded"}),
    "ours, joined (the default)": ("ours", {}),
    "ours, packed": ("ours", {"packed": True}),
    "torchtune, padded": ("torchtune", {"packed": False}),
    "torchtune, packed": ("torchtune", {"packed": True}),
    "TRL, padded": ("trl", {"packed": False}),
    "TRL, packed (bfd)": ("trl", {"packed": True}),
}
Sample = dict[str, list[int]]


def make_samples(count: int) -> list[list[int]]:
    """Return the tokens of each sample."""
    rng = random.Random(0)
    lengths = [max(8, min(PACK, round(rng.lognormvariate(4.75, 0.6)))) for _ in range(count)]
    return [[rng.randrange(3, SIZES["vocab_size"]) for _ in range(n)] for n in lengths]


def timed(batches: Iterable, step: Callable[[object], tuple[int, int]]) -> dict:
    """Run a step on each batch, which returns its real tokens and positions."""
    seconds, counts = [], []
    for batch in batches:
        start = time.perf_counter()
        counts.append(step(batch))
        seconds.append(time.perf_counter() - start)
    tokens, positions = map(sum, zip(*counts, strict=True))
    speed = sum(count for count, _ in counts[1:]) / sum(seconds[1:])
    return {"speed": speed, "fill": tokens / positions, "steps": len(counts), "tokens": tokens}


def stepper(model: object, loss_mean: Callable[[object], object]) -> Callable[[object], None]:
    """Return what takes an optimizer step on a batch."""
    import torch

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step(batch: object) -> None:
        loss_mean(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(samples: list[list[int]], packed: bool = False, **how: str) -> dict:
    """Train our model on our batches, started as by `tune run`."""
    from torchtune_lite.cli.lazy_compiler import make_compiler_lazy

    make_compiler_lazy()
    import torch
    from torchtune_lite.models.llama2 import lora_llama2

    from torchtune_lite import data
    from torchtune_lite.modules.loss import LinearCrossEntropyLoss

    torch.set_default_dtype(torch.bfloat16)
    model = lora_llama2(
        **SIZES, intermediate_dim=MLP, lora_attn_modules=ATTENTION, apply_lora_to_mlp=True, lora_rank=8
    ).train()
    rows = [{"tokens": tokens, "labels": [*tokens[1:], -100]} for tokens in samples]
    dataset = data.PackedDataset(rows, PACK) if packed else rows
    batches = data.Batches(dataset, BATCH, seed=0, shuffle=True, pad_id=0, **how)
    loss = LinearCrossEntropyLoss()

    def mean(batch: dict) -> torch.Tensor:
        hidden = model(batch["tokens"], seq_lens=batch.get("seq_lens"), skip_output=True)
        return loss(model.output, hidden, batch["labels"]) / data.num_label_tokens([batch])

    step = stepper(model, mean)

    def counted(batch: dict) -> tuple[int, int]:
        step(batch)
        return data.num_real_tokens([batch], 0), BATCH * PACK if packed else batch["tokens"].numel()

    return timed(batches.epoch(0), counted)


def torchtune(samples: list[list[int]], packed: bool) -> dict:
    """Train torchtune's model on its batches."""
    import torch
    from torch.utils.data import DataLoader, Dataset
    from torchtune.data import padded_collate_packed, padded_collate_sft
    from torchtune.datasets import PackedDataset
    from torchtune.models.llama2 import lora_llama2
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    torch.set_default_dtype(torch.bfloat16)
    model = lora_llama2(**SIZES, intermediate_dim=MLP, lora_attn_modules=ATTENTION, apply_lora_to_mlp=True, lora_rank=8,
                        lora_alpha=16)  # fmt: skip
    set_trainable_params(model, get_adapter_params(model))
    loss = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss.num_output_chunks)

    class Rows(Dataset):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, i: int) -> dict:
            return {"tokens": samples[i], "labels": samples[i]}

    dataset = PackedDataset(Rows(), max_seq_len=PACK) if packed else Rows()
    torch.manual_seed(0)
    loader = DataLoader(
        dataset, BATCH, shuffle=True, collate_fn=padded_collate_packed if packed else padded_collate_sft
    )

    def mean(batch: dict) -> torch.Tensor:
        labels = batch["labels"]
        logits = model(batch["tokens"], mask=batch.get("mask"), input_pos=batch.get("input_pos"))
        shifted = torch.hstack((labels[..., 1:], torch.full((len(labels), 1), -100)))
        return loss(logits, shifted)

    step = stepper(model, mean)

    def counted(batch: dict) -> tuple[int, int]:
        step(batch)
        return int((batch["tokens"] != 0).sum()), batch["tokens"].numel()

    return timed(loader, counted)


def trl(samples: list[list[int]], packed: bool) -> dict:
    """Train transformers' model with TRL's SFTTrainer."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    config = LlamaConfig(vocab_size=SIZES["vocab_size"], num_hidden_layers=SIZES["num_layers"], num_attention_heads=16,
                         hidden_size=1024, intermediate_size=MLP, max_position_embeddings=PACK)  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    vocabulary = {"<pad>": 0, "<eos>": 2, "<unk>": 1}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "<unk>")),
                                        pad_token="<pad>", eos_token="<eos>")  # fmt: skip
    seconds, counts = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            seconds.append(time.perf_counter() - self.start)

    class Counting(SFTTrainer):
        def training_step(self, model: object, inputs: dict, *args: object) -> object:
            positions = BATCH * PACK if packed else inputs["input_ids"].numel()
            counts.append((int((inputs["input_ids"] != 0).sum()), positions))
            return super().training_step(model, inputs, *args)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Counting(
            model=model,
            args=SFTConfig(
                output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, packing=packed,
                packing_strategy="bfd", max_length=PACK, gradient_checkpointing=False, use_cpu=True, bf16=False,
                report_to=[], save_strategy="no", logging_strategy="no", optim="adamw_torch_fused", disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": samples}),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=[
                "q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    tokens, positions = map(sum, zip(*counts, strict=True))
    speed = sum(count for count, _ in counts[1:]) / sum(seconds[1:])
    return {"speed": speed, "fill": tokens / positions, "steps": len(counts), "tokens": tokens}


def resident() -> int:
    """Return the process's peak of resident bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def child(way: str, path: str) -> None:
    """Run one way and print a line of JSON."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    who, how = WAYS[way]
    print(json.dumps(globals()[who](json.loads(Path(path).read_text()), **how) | {"peak": resident()}))


def rounds(pythons: dict[str, str], count: int, path: Path) -> Iterator[tuple[str, dict]]:
    """Yield the results of each way, in turns."""
    for _ in range(count):
        for way, (who, _) in WAYS.items():
            if who in pythons:
                result = subprocess.run(
                    [pythons[who], __file__, "--child", way, str(path)], capture_output=True, text=True
                )
                if result.returncode:
                    sys.exit(f"{way}:\n{result.stderr}")
                yield way, json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchtune", metavar="PYTHON")
    parser.add_argument("--trl", metavar="PYTHON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=120)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1"}
    pythons = {"ours": sys.executable, "torchtune": args.torchtune, "trl": args.trl}
    best: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.json"
        path.write_text(json.dumps(make_samples(args.samples)))
        for way, result in rounds({who: python for who, python in pythons.items() if python}, args.rounds, path):
            best[way] = max(best.get(way, result), result, key=lambda each: each["speed"])
    print(f"Python {platform.python_version()}, {platform.machine()}, {args.threads} threads\n")
    print("| | real tokens/s | ours, packed, is | positions with a token | steps | peak memory |\n" + "|---" * 6 + "|")
    fastest = best["ours, packed"]["speed"]
    for way, each in best.items():
        ratio = f"{fastest / each['speed']:.2f} × as fast"
        print(f"| {way} | {each['speed']:,.0f} | {ratio} | {each['fill']:.1%} | {each['steps']} | "
              f"{each['peak'] / 2**20:,.0f} MiB |")  # fmt: skip


if __name__ == "__main__":
    main()
