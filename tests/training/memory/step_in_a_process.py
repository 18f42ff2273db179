"""Take training steps and print, for each number of recomputed layers, the counted and the measured bytes (JSON).

    python step_in_a_process.py METHOD,DTYPE,COLLATE,NUMBER...

Each argument has a process of its own, forked from one that has done the imports, and a line of the output. The
measured peak is resident memory beyond that of an earlier small step, with a malloc that gives freed memory back.
"""

import ctypes
import gc
import json
import os
import sys

import torch
import torch._dynamo  # noqa: F401, which a step loads

from torchtune_lite.data import COLLATES
from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.training import peak_memory, reset_peak_memory
from torchtune_lite.training.memory.step_memory import count_step
from torchtune_lite.training.memory.usage import GIB

CPU = torch.device("cpu")
LOSS = LinearCrossEntropyLoss()


def build(method: str, num_layers: int) -> torch.nn.Module:
    """Build a model in training mode."""
    config = DecoderConfig(2000, num_layers, 8, 8, 512, 512, 1024)
    if method == "full":
        return decoder(config).train()
    attention = ["q_proj", "v_proj", "output_proj"]
    return lora_decoder(config, attention, apply_lora_to_mlp=True, quantize_base=method == "qlora").train()


def steps(model: torch.nn.Module, batch: dict) -> None:
    """Take two steps, the second with the optimizer's state."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    for _ in range(2):
        LOSS(
            model.output, model(batch["tokens"], seq_lens=batch.get("seq_lens"), skip_output=True), batch["labels"]
        ).backward()
        optimizer.step()
        optimizer.zero_grad()


def resident() -> float:
    """Return the peak since the last reset, in bytes."""
    return peak_memory(CPU)["peak_memory_resident"] * GIB


def main(method: str, dtype: str, collate: str, *numbers: str) -> None:
    """Print the pairs."""
    torch.set_default_dtype(getattr(torch, dtype))
    batch = COLLATES[collate]([{"tokens": [1] * n, "labels": [1] * n} for n in (512, 256, 256)])
    steps(build(method, 1), batch)  # so that kernels and tables are in memory
    gc.collect()
    reset_peak_memory(CPU)
    before = resident()
    model, pairs = build(method, 4), []
    for number in map(int, numbers):
        model.activation_checkpointing = range(number)
        reset_peak_memory(CPU)
        steps(model, batch)
        measured = resident() - before
        pairs.append((count_step(model, LOSS, batch).peak(number), measured))
    print(json.dumps(pairs), flush=True)


ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
torch.set_num_threads(1)
for case in sys.argv[1:]:
    if (child := os.fork()) == 0:
        main(*case.split(","))
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(case)
