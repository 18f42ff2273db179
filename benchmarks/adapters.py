"""Quality of the methods of adaptation, at equal steps and at equal time, on two tasks with answers that are exact.

    python benchmarks/adapters.py [--steps 150] [--rates 5] [--seeds 5] [--tasks addresses strings] [--plot FILE.png]

Each method adapts the embedded base model on all of its projections (IA3: keys, values and the feed-forward's last).
Its learning rate is the best of a grid, a factor of 3 apart around its own convention, by exact match on a validation
split; then fresh seeds are scored once on a test split. An answer counts if it is what the model would say, greedily,
to the last token. "Equal time" gives each method as many steps as take LoRA's CPU time. Intervals are of the difference
to LoRA: 95 % of paired bootstraps over seeds and items; 0 in it means: not told apart.

Tasks: an address to JSON, of 1,000 rows; and strings to reverse, sort, or take every second letter of.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_lite import checkpoint, data, optim, peft
from torchtune_lite.models import from_checkpoint, llama2
from torchtune_lite.modules.loss import LinearCrossEntropyLoss

ASSETS = Path(__file__).parents[1] / "torchtune_lite" / "assets"
BATCH, LENGTH = 16, 128
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALL = {"target_modules": "all-linear"}
LORA = ALL | {"lora_rank": 8, "lora_alpha": 16}


@dataclass(frozen=True)
class Method:
    """Arguments of the builder (None: every weight is trained) and the middle of the grid of learning rates."""

    rate: float
    arguments: dict[str, Any] | None = field(default_factory=dict)
    adapter: Any = None
    loraplus: float | None = None


METHODS = {
    "full": Method(1e-3, None),
    "LoRA r8": Method(4e-3, LORA),
    "LoRA r32": Method(4e-3, LORA | {"lora_rank": 32, "lora_alpha": 64}),
    "rsLoRA r32": Method(4e-3, LORA | {"lora_rank": 32, "lora_alpha": 11.3, "use_rslora": True}),
    "LoRA+ r8": Method(2e-3, LORA, loraplus=16),
    "DoRA r8": Method(4e-3, LORA | {"use_dora": True}),
    "PiSSA r8": Method(1e-3, LORA | {"init_lora_weights": "pissa"}),
    "OLoRA r8": Method(1e-3, LORA | {"init_lora_weights": "olora"}),
    "AdaLoRA r12 to 8": Method(1e-2, ALL, partial(peft.AdaLoRA, init_r=12, target_r=8, lora_alpha=24)),
    "VeRA r64": Method(2e-2, ALL, partial(peft.VeRA, r=64)),
    "IA3": Method(2e-2, {"target_modules": ["k_proj", "v_proj", "down_proj"]}, peft.IA3),
}


def string_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Make rows of strings to reverse, to sort, or to take every second letter of."""
    draw, rows = random.Random(seed), []
    changes = {"reverse": lambda s: s[::-1], "sort": lambda s: "".join(sorted(s)), "every second": lambda s: s[::2]}
    for _ in range(count):
        name, text = draw.choice(list(changes)), "".join(draw.choices(LETTERS, k=draw.randint(3, 6)))
        rows.append({"input": f"{name}: {' '.join(text)}", "output": " ".join(changes[name](text))})
    return rows


def read_task(name: str, tokenizer: Any, items: int) -> dict[str, Any]:
    """Return the samples of a task: to train on, to choose a rate by, and to test."""
    if name == "strings":
        rows = string_rows(3000, 0), string_rows(items // 2, 1), string_rows(items, 2)
    else:
        lines = [json.loads(line) for line in (ASSETS / "addresses_train.jsonl").read_text("utf-8").splitlines()]
        rows = lines[:1000], lines[1000 : 1000 + items // 2], lines[2000 : 2000 + items]
    to_messages = data.InputOutputToMessages(train_on_input=False)
    parts = [[tokenizer(to_messages(row)) for row in part] for part in rows]
    shifted = data.labels.shifted_labels
    samples = [[{"tokens": t["tokens"], "labels": shifted(t["tokens"], t["mask"])} for t in part] for part in parts]
    return dict(zip(("train", "val", "test"), samples, strict=True))


def build(method: Method) -> nn.Module:
    """Load the embedded base with the adapters of a method."""
    checkpointer = checkpoint.FullModelHFCheckpointer(ASSETS / "base")
    arguments = {} if method.arguments is None else dict(method.arguments)
    if method.adapter is not None:
        arguments["adapter"] = method.adapter()
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args, **arguments)
    checkpointer.load(model, device="cpu", dtype=torch.float32)
    return model


def run(method: Method, rate: float, steps: int, seed: int, task: dict[str, Any], split: str) -> dict[str, Any]:
    """Train a model for `steps` and score it on a split."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, loss_fn, draw = build(method), LinearCrossEntropyLoss(), random.Random(seed)
    trained = [param for param in model.parameters() if param.requires_grad]
    make = partial(torch.optim.AdamW, lr=rate, weight_decay=0.0)
    optimizer = peft.adapter_optimizer(model, make, method.loraplus)
    schedule = optim.get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=steps // 10, num_training_steps=steps)
    ranks = peft.rank_allocator(model, steps)
    start = time.process_time()
    for step in range(1, steps + 1):
        batch = data.padded_collate_sft(draw.sample(task["train"], BATCH))
        loss = loss_fn(model.output, model(batch["tokens"], skip_output=True), batch["labels"])
        (loss / (batch["labels"] >= 0).sum() + (ranks.penalty() if ranks else 0)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if ranks:
            ranks.step(step)
        optimizer.zero_grad()
        schedule.step()
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = sum(param.numel() for param in trained)
    return {"right": right(model, task[split]), "seconds": seconds, "trained": count, "memory": memory}


@torch.no_grad()
def right(model: nn.Module, samples: list[dict[str, list[int]]]) -> list[bool]:
    """Return for each sample whether the likeliest token is the label's at each position: the greedy answer."""
    model.eval()
    found: list[bool] = []
    for start in range(0, len(samples), 100):
        batch = data.padded_collate_sft(samples[start : start + 100])
        labels: Tensor = batch["labels"]
        said = model(batch["tokens"]).argmax(-1)
        found += ((said == labels) | (labels < 0)).all(dim=1).tolist()
    return found


def interval(ours: list[list[bool]], theirs: list[list[bool]], rounds: int = 1000) -> tuple[float, float]:
    """Return where 95 % of the paired bootstraps of the mean difference lie: seeds, then items of each."""
    differences = torch.tensor(ours).float() - torch.tensor(theirs).float()  # [seeds, items]
    generator = torch.Generator().manual_seed(0)
    seeds, items = differences.shape
    means = torch.stack([
        differences[torch.randint(seeds, (seeds,), generator=generator)][
            :, torch.randint(items, (items,), generator=generator)
        ].mean()
        for _ in range(rounds)
    ])  # fmt: skip
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def apart(*words: Any) -> dict[str, Any]:
    """Run in a process of its own, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, words)


def compare(name: str, task: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Choose each method's rate, score it with fresh seeds, print its row, and return all."""
    found: dict[str, dict[str, Any]] = {}
    base = right(build(Method(0.0, None)), task["test"])
    print(f"\n**{name}**, {args.steps} steps of {BATCH}; the base alone: {sum(base) / len(base):.1%}\n")
    print("| method | trained | rate | exact match | to LoRA r8 | at equal time | to LoRA r8 | s | MiB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for method_name in ["LoRA r8", *(each for each in args.methods if each != "LoRA r8")]:
        method = METHODS[method_name]
        rates = [method.rate * 3**power for power in range(-(args.rates // 2), args.rates - args.rates // 2)]
        trials = {
            rate: [run(method, rate, args.steps, seed, task, "val") for seed in range(args.tries)]
            for rate in (rates if args.rates > 1 else ())
        }
        rate = max(rates, key=lambda rate: sum(sum(each["right"]) for each in trials.get(rate, ())))
        tests = [apart(method, rate, args.steps, 100 + seed, task, "test") for seed in range(args.seeds)]
        seconds = min(each["seconds"] for each in tests)
        own = {"right": [each["right"] for each in tests], "seconds": seconds, "name": method_name, "task": name}
        own |= {"trained": tests[0]["trained"], "memory": max(each["memory"] for each in tests)}
        lora = found.get("LoRA r8", own)
        steps = round(args.steps * lora["seconds"] / seconds)
        own["timed"] = own["right"]
        if args.equal_time and method_name != "LoRA r8":
            timed = [run(method, rate, steps, 100 + seed, task, "test") for seed in range(args.seeds)]
            own["timed"] = [each["right"] for each in timed]
        found[method_name] = own
        cells = [method_name, f"{own['trained']:,}", f"{rate:.1e}"]
        for kind in ("right", "timed") if args.equal_time else ("right",):
            low, high = interval(own[kind], lora[kind])
            cells += [f"{share(own[kind]):.1%}", "" if own is lora else f"{100 * low:+.1f} to {100 * high:+.1f}"]
        cells += [] if args.equal_time else ["", ""]
        print("| " + " | ".join([*cells, f"{seconds:.1f}", f"{own['memory']:.0f}"]) + " |", flush=True)
    return list(found.values())


def share(right: list[list[bool]]) -> float:
    """Return the share of right answers."""
    return sum(map(sum, right)) / sum(map(len, right))


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Draw quality against trained parameters, time and memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(each["task"] for each in found))
    figure, axes = plt.subplots(len(tasks), 3, figsize=(12, 3.2 * len(tasks)), squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        for axis, (key, label) in zip(
            row, {"trained": "trained parameters", "seconds": "CPU s", "memory": "peak MiB"}.items(), strict=True
        ):
            for each in (each for each in found if each["task"] == task):
                axis.scatter(each[key], 100 * share(each["right"]), s=14)
                axis.annotate(each["name"], (each[key], 100 * share(each["right"])), fontsize=7)
            axis.set(xlabel=label, ylabel=f"{task}: exact match, %", xscale="log" if key == "trained" else "linear")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the tasks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=150, help="of each run")
    parser.add_argument("--rates", type=int, default=5, help="in the grid")
    parser.add_argument("--tries", type=int, default=1, help="seeds that choose a rate")
    parser.add_argument("--seeds", type=int, default=5, help="fresh ones, that are tested")
    parser.add_argument("--items", type=int, default=1000, help="of the test split; half as many choose the rate")
    parser.add_argument(
        "--equal-time", action=argparse.BooleanOptionalAction, default=True, help="too, not steps alone"
    )
    parser.add_argument("--tasks", nargs="+", default=["addresses", "strings"], choices=["addresses", "strings"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--plot", type=Path, help="a picture to draw")
    args = parser.parse_args()
    tokenizer = llama2.llama2_tokenizer(
        str(ASSETS / "base/tokenizer.model"), max_seq_len=LENGTH, prompt_template=llama2.Llama2ChatTemplate()
    )
    found = []
    start = time.process_time()
    for name in args.tasks:
        found += compare(name, read_task(name, tokenizer, args.items), args)
    if args.plot:
        plot(found, args.plot)
    print(
        f"\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"{(time.process_time() - start) / 60:.0f} CPU minutes besides the tests' own processes")


if __name__ == "__main__":
    main()
