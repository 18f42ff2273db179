"""Run by each of two or four processes that share the weights: what they find, against a process of its own.

Prints one line of JSON, from the first process: by the name of a check what it found.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchtune_lite import checkpoint, config, peft
from torchtune_lite.checkpoint.formats import safetensors_stream
from torchtune_lite.errors import ConfigError, SaveError
from torchtune_lite.models import from_checkpoint
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.optim import CPUOffloadAdamW, MasterAdamW, PagedAdamW, StochasticAdamW
from torchtune_lite.training.environment import set_seed
from torchtune_lite.training.run.progress import Progress
from torchtune_lite.training.settings import Parallel
from torchtune_lite.training.sharded import Shards
from torchtune_lite.training.step.gradients import Gradients
from torchtune_lite.training.step.losses import summed_loss
from torchtune_lite.utils.sharding import is_sharded, local, rows, whole
from torchtune_lite.utils.world import World

CPU = torch.device("cpu")
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, "lora_alpha": 8}
QLORA = LORA | {"quantize_base": True}
METHODS = {"full": {}, "LoRA": LORA, "QLoRA": QLORA, "QDoRA": QLORA | {"use_dora": True}}
SAVED = {
    **METHODS,
    "QLoRA into the original": QLORA | {"merge_into": "original"},
    "IA3": {"target_modules": ["k_proj", "v_proj", "w2"], "adapter": peft.IA3()},
    "PiSSA": QLORA | {"init_lora_weights": "pissa"},
    "fewer rows than processes": LORA | {"lora_rank": 1},
    "phi3 QLoRA": QLORA,
    "phi3 QDoRA": METHODS["QDoRA"],  # of a fused matrix with a part that is not adapted
    "qwen2 full": {},  # tied, with biases
}
OTHERS = ("phi3", "qwen2")
"""Bases by the first word of a name."""
STEPS = 4


@dataclass(kw_only=True)
class Settings:
    base: str
    saved: str = ""
    out: str = ""
    fails: bool = False
    parallel: Parallel = config.mapping(Parallel)


def load(
    base: str, world: World, merge_into: str = "quantized", **arguments: Any
) -> tuple[checkpoint.FullModelHFCheckpointer, nn.Module]:
    """Read a model as a run does; the B of each adapter is not zero."""
    checkpointer = checkpoint.FullModelHFCheckpointer(base, merge_into=merge_into)
    checkpointer.world = world.writers
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args, **arguments)
    world.shard(model)
    set_seed(3)
    checkpointer.load(model, device=CPU, dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    for name, param in model.named_parameters():
        if "lora_b" in name:
            local(param.data).copy_(torch.randn(param.shape, generator=generator)[rows(param)] / 10)
    return checkpointer, model


def micro_batches() -> Iterator[list[dict[str, Any]]]:
    """Yield the four micro-batches of each step: documents, every fifth without a label."""
    generator, number = torch.Generator().manual_seed(5), 0
    for _ in range(STEPS):
        window = []
        for _ in range(4):
            lengths = torch.randint(3, 9, (3,), generator=generator).tolist()
            tokens = torch.randint(3, 90, (1, sum(lengths)), generator=generator)
            labels = tokens.roll(-1, 1) if number % 5 else torch.full_like(tokens, -100)
            window.append({"tokens": tokens, "labels": labels, "seq_lens": lengths})
            number += 1
        yield window


def train(
    model: nn.Module, world: World, build: Callable[..., Any] | None = None, in_backward: bool = False
) -> list[tuple[float, float]]:
    """Take a few steps; return the loss and the norm of each."""
    optimizer = (build or torch.optim.AdamW)([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    progress, loss_fn = Progress(seed=1), LinearCrossEntropyLoss()
    grads = Gradients(optimizer, progress, 1.0, in_backward=in_backward, world=world)
    model.train()
    found = []
    for window in micro_batches():
        tokens = sum((batch["labels"] != -100).sum().item() for batch in window)
        mine = window[world.rank :: world.size]
        grads.start(len(mine), tokens)
        total = torch.zeros(())
        for batch in mine:
            hidden = model(batch["tokens"], seq_lens=batch["seq_lens"], skip_output=True)
            loss = summed_loss(loss_fn, model.output, hidden, batch["labels"], batch)[0] / tokens
            grads.backward(loss)
            total += loss.detach()
        found.append(grads.clip(total))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.global_step += 1
    return found


def distance(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> float:
    """Return the largest difference of losses above 1 and of norms, relative to them, and of smaller losses."""
    pairs = zip(found, expected, strict=True)
    return max(max(abs(a - b) / max(b, 1.0), abs(x / y - 1)) for (a, x), (b, y) in pairs)


class Checks:
    """Everything that is looked at, in as few passes as it takes."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.world = cfg, Shards(CPU, cfg.parallel)
        self.found: dict[str, Any] = {}

    def note(self, name: str, value: Any) -> None:
        self.found[name] = value

    def losses(self, name: str, method: str, prepare: Callable[[nn.Module], None] = lambda model: None, **how) -> None:
        """Compare the steps of a method with those of one process."""
        both = []
        for world in (self.world, World(CPU)):
            _, model = load(base_of(self.cfg.base, name), world, **METHODS[method])
            prepare(model)
            both.append(train(model, world, **how))
        self.note(f"losses/{name}", distance(*both))

    def all_losses(self) -> None:
        for method in METHODS:
            self.losses(method, method)
        self.losses("qwen2 full", "full")
        self.losses("checkpointed", "QLoRA", lambda model: setattr(model, "activation_checkpointing", True))
        self.losses("in tiles", "LoRA", lambda model: [setattr(each.mlp, "tile", 5) for each in model.layers])
        self.losses("step in the backward pass", "full", in_backward=True)
        self.world.reshard_after_forward = False
        self.losses("layers kept", "full")
        self.world.reshard_after_forward = True

    def optimizers(self) -> None:
        for build in (torch.optim.SGD, MasterAdamW, PagedAdamW, CPUOffloadAdamW, StochasticAdamW):
            self.losses(build.__name__, "LoRA", build=build)
        self.losses("fused", "LoRA", build=lambda params, lr: torch.optim.AdamW(params, lr, fused=True))
        param = nn.Parameter(torch.zeros(2, 2))
        self.note("Adafactor", self.refusal(lambda: self.world.check_optimizer(torch.optim.Adafactor([param]))))

    def refusal(self, call: Callable[[], Any], kind: type[Exception] = ConfigError) -> str:
        try:
            call()
        except kind as error:
            return str(error)
        return "not refused"

    def averaging(self) -> None:
        """Negative control: FSDP's own division of the gradients."""

        def divide(model: nn.Module) -> None:
            for unit in getattr(self.world, "_units", []):
                unit.set_gradient_divide_factor(2.0)

        self.losses("averaged", "LoRA", divide)

    def output_resharded(self) -> None:
        """Negative control, which ends the run: the output's weight given up before the loss reads it."""

        def reshard(model: nn.Module) -> None:
            if hasattr(model, "set_reshard_after_forward"):
                model.set_reshard_after_forward(True, recurse=False)

        self.losses("output resharded", "full", reshard)

    def reading(self) -> None:
        """Count what is read of each file, and compare every bit of NF4 with one process."""
        read, original = [], safetensors_stream._read
        safetensors_stream._read = lambda *args: read.append(original(*args)) or read[-1]
        _, model = load(self.cfg.base, self.world, **QLORA)
        here = sum(tensor.numel() for tensor in read)
        read.clear()
        _, alone = load(self.cfg.base, World(CPU), **QLORA)
        safetensors_stream._read = original
        self.note("share read", here / sum(tensor.numel() for tensor in read))
        params, same, own_mean = dict(alone.named_parameters()), [], []
        for name, param in model.named_parameters():
            if not peft.is_quantized(param):
                continue
            own, ours, theirs = rows(param), peft.dequantize(param), peft.dequantize(params[name])
            same.append(torch.equal(ours, theirs[own]))
            if is_sharded(param):
                parts, others = peft.nf4_parts(param), peft.nf4_parts(params[name])
                same += [torch.equal(parts.scaler_mean, others.scaler_mean)]
                for a, b in zip(parts[:3], others[:3], strict=True):
                    same.append(torch.equal(a, b.chunk(self.world.size)[self.world.rank]))
                plain = load_plain(self.cfg.base, name)[own]
                own_mean.append(torch.equal(peft.dequantize(peft.quantize(plain)), theirs[own]))
        self.note("NF4 bits", [sum(same), len(same)])
        self.note("NF4 bits with a mean of its own", [sum(own_mean), len(own_mean)])
        self.note("adapters", all(torch.equal(whole(p), params[n]) for n, p in model.named_parameters() if "lora" in n))
        self.note(
            "bytes here",
            peft.num_bytes(model.layers[0].mlp.w1.weight) / peft.num_bytes(params["layers.0.mlp.w1.weight"]),
        )

    def saving(self) -> None:
        """Go on from what one process wrote, and write it again."""
        for method, arguments in SAVED.items():
            folder, out = Path(self.cfg.saved) / method, Path(self.cfg.out) / f"{self.world.size} {method}"
            again = save(base_of(self.cfg.base, method), self.world, arguments, folder, out)
            self.note(f"saved/{method}", again == digests(folder))

    def failing(self) -> None:
        """Have the second process meet a full disk, and a weight of its own be no number."""
        checkpointer, model = load(self.cfg.base, self.world, **LORA)
        out, update = Path(self.cfg.out) / "failed", safetensors_stream.disk.update

        def full(path: Path) -> Any:
            raise OSError(28, "No space left on device")

        safetensors_stream.disk.update = full if self.world.rank == 1 else update
        self.note("full disk", self.refusal(lambda: checkpointer.save(out, model), SaveError))
        safetensors_stream.disk.update = update
        if self.world.rank == 1:
            local(model.layers[0].mlp.w1.lora_b.weight.data)[-1] = float("nan")
        self.note("not finite", self.refusal(lambda: checkpointer.save(out, model), SaveError))
        self.note("left", [path.name for path in out.parent.iterdir() if "failed" in path.name])


def base_of(base: str, name: str) -> str:
    first = name.split()[0]
    return str(Path(base).parent / first) if first in OTHERS else base


def load_plain(base: str, name: str) -> torch.Tensor:
    checkpointer = checkpoint.FullModelHFCheckpointer(base)
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args)
    return checkpointer.checked_weights(model)[name].read()


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def save(base: str, world: World, arguments: dict, resume_from: Path | None, out: Path) -> dict[str, str]:
    """Take two steps in one process, or go on from where `resume_from` is; save it all, verified, and hash it."""
    checkpointer, model = load(base, world, **arguments)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    progress = {"seed": 1, "global_step": 2}
    if resume_from is not None:
        progress = checkpoint.restore(resume_from, model, optimizer, None, size=world.size, rank=world.rank)
    else:
        for window in list(micro_batches())[:2]:
            hidden = model(window[1]["tokens"], seq_lens=window[1]["seq_lens"], skip_output=True)
            LinearCrossEntropyLoss()(model.output, hidden, window[1]["labels"]).backward()
            optimizer.step()
            optimizer.zero_grad()
    state = checkpoint.gather(model, optimizer, None, progress)
    checkpointer.save(out, model, state=state, verify=True)
    return digests(out)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Do the checks that a pair of processes is for, or with four those of replicas."""
    checks = Checks(cfg)
    if cfg.fails:
        checks.output_resharded()
    elif checks.world.size == 2:
        for check in (checks.all_losses, checks.optimizers, checks.averaging, checks.reading, checks.failing):
            check()
        checks.saving()
    else:
        for method in ("LoRA", "QLoRA"):
            checks.losses(method, method)
        checks.saving()
    found = checks.world.gather(checks.found)
    if checks.world.rank == 0:
        print(json.dumps(found))
    checks.world.close()


if __name__ == "__main__":
    sys.exit(recipe_main())
