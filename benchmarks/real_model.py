"""Take a real model from loading to saving, and compare each step with transformers, as `make test-real` does.

    python benchmarks/real_model.py FOLDER

FOLDER holds SmolLM2-135M-Instruct, or is where `smollm2.py` puts it. Where its package cannot be had, one line says so
and nothing is tested. Otherwise a line for each step, and exit code 1 with the first that fails.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import smollm2
import torch

from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.data import Message, load_tokenizer
from torchtune_lite.models import from_checkpoint

TOLERANCE = 1e-4  # of the largest logit, in fp32
TEXTS = [
    "The capital of France is Paris, and that of Italy",
    "def add(a, b):\n    return a + b\n",
    "\u9ad8\u96c4 2026-11-28",
]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Two lattes to go, please."}],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What colour is the sky?"},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "  And at night, 12:30?\n"},
    ],
]
QLORA = {
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
    "lora_rank": 16,
    "lora_alpha": 32,
    "quantize_base": True,
    "quantize_unsupported": "skip",
}
"""As in configs/demo/chat_qlora.yaml."""


def load(folder: Path, adapter: Path | None = None, **lora: Any) -> torch.nn.Module:
    """Load our model of a folder in fp32, with the adapter of another where it is given."""
    checkpointer = FullModelHFCheckpointer(folder, adapter_checkpoint=adapter)
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args, **lora)
    checkpointer.load(model, device="cpu", dtype=torch.float32)
    return model.eval()


def load_theirs(folder: Path) -> torch.nn.Module:
    """Load the same by transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def check(step: str, passed: bool, found: str) -> None:
    """Print what a step found; end the run where it failed."""
    print(f"{'ok' if passed else 'FAILED':8}{step}: {found}", flush=True)
    if not passed:
        sys.exit(1)


@torch.no_grad()
def compare_logits(step: str, ours: torch.nn.Module, theirs: torch.nn.Module, texts: list[list[int]]) -> None:
    """Compare the logits of some texts."""
    apart = 0.0
    for tokens in texts:
        expected = theirs(torch.tensor([tokens])).logits
        apart = max(apart, ((ours(torch.tensor([tokens])) - expected).abs().max() / expected.abs().max()).item())
    check(step, apart < TOLERANCE, f"logits of {len(texts)} texts are {apart:.1e} from those of transformers")


def finetune(base: Path, out: Path) -> None:
    """Take some steps of the chat demo's QLoRA through the command line, in fp32, and check that the loss falls."""
    words = ["lora_finetune_single_device", "--config", "demo/chat_qlora", f"checkpointer.checkpoint_dir={base}"]
    words += [f"output_dir={out}", "dtype=fp32", "batch_size=2", "max_steps_per_epoch=24"]
    done = subprocess.run([sys.executable, "-m", "torchtune_lite", "run", *words], capture_output=True, text=True)
    check("tune run", not done.returncode, f"exit code {done.returncode}" + (done.stderr if done.returncode else ""))
    [left] = re.findall(r"NF4 needs .*", done.stderr)
    print(f"        in NF4 is what it fits: {left}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    first, last = fmean(losses[:4]), fmean(losses[-4:])
    check("QLoRA", last < first / 2, f"the loss of {len(losses)} steps falls from {first:.2f} to {last:.2f}")


def journey(base: Path, work: Path) -> None:
    """Load, encode, train, save, and load what was saved."""
    from transformers import AutoTokenizer

    tokenizer, theirs = load_tokenizer(base, prompt_template="chat_template"), AutoTokenizer.from_pretrained(base)
    for chat in CHATS:
        ours = tokenizer({"messages": [Message(**turn) for turn in chat]}, inference=True)["tokens"]
        expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        check("template", ours == expected, f"the {len(expected)} tokens of a chat are those of transformers")
    texts = [theirs(text)["input_ids"] for text in TEXTS]
    model = load(base)
    check("load", True, f"{sum(param.numel() for param in model.parameters()):,} parameters")
    compare_logits("base", model, load_theirs(base), texts)
    finetune(base, work / "run")
    [saved] = (each for each in (work / "run").iterdir() if (each / "adapter").is_dir())
    merged = load_theirs(saved)
    compare_logits("saved", load(saved), merged, texts)
    compare_logits("adapter on NF4", load(base, saved / "adapter", **QLORA), merged, texts)


def main() -> None:
    """Run the journey, where the model can be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    base = parser.parse_args().folder
    try:
        smollm2.make(base)
    except ConnectionError as error:
        print(f"SKIPPED: no real model was tested: {error}")
        return
    with tempfile.TemporaryDirectory() as work:
        journey(base, Path(work))


if __name__ == "__main__":
    main()
