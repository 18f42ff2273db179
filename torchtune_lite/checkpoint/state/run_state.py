"""The state to continue a run exactly: trained weights, optimizer, schedule, progress, random numbers.

In `resume/` of a checkpoint folder, without pickle: `optimizer.safetensors` has the optimizer's tensors as
`<parameter>/<key>`, in their own dtype (what a tensor of a class of torchao is made of as `<parameter>/<key>/<part>`),
`rng.json` the random states, `adapter.safetensors` what adapters need besides their file, `trainer.json` the rest. The
trained weights are the folder's `adapter/`, or for a model without adapters the folder's own weights, both in the dtype
of training.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchtune_lite.checkpoint.formats.files import write_json
from torchtune_lite.checkpoint.formats.safetensors_stream import read_safetensors, write_safetensors
from torchtune_lite.checkpoint.formats.tensor_classes import flatten_tensor
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.model_weights import listed
from torchtune_lite.checkpoint.state.rng import as_json, rng_state
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import Family
from torchtune_lite.peft import adapter_modules
from torchtune_lite.utils.sharding import is_sharded, local, written_rows

FORMAT = 1
OPTIMIZER, ADAPTER, TRAINER, RNG = "optimizer.safetensors", "adapter.safetensors", "trainer.json", "rng.json"


@dataclass(frozen=True)
class TrainingState:
    """The state of a run between two optimizer steps; `tensors` are the optimizer's own, live ones.

    `of_adapters` are what adapters need besides their file, as `<module>/<key>`.
    """

    tensors: dict[str, Weight]
    of_adapters: dict[str, Tensor]
    trainer: dict[str, Any]
    rng: list[dict[str, Any]]  # of each process

    @property
    def num_bytes(self) -> int:
        """The bytes of the tensors that are written."""
        return sum(each.num_bytes for each in self.tensors.values()) + sum(t.nbytes for t in self.of_adapters.values())

    def write(self, folder: Path, family: Family) -> None:
        """Write the state to a new folder, one tensor at a time."""
        self.write_rest(folder, family)
        write_safetensors(folder / OPTIMIZER, self.tensors)

    def write_rest(self, folder: Path, family: Family) -> None:
        """Make a folder with all but the tensors; `family` is that of the weights that lie beside it."""
        folder.mkdir()
        if self.of_adapters:
            write_safetensors(folder / ADAPTER, {name: Weight.of(each) for name, each in self.of_adapters.items()})
        write_json(folder / TRAINER, {"format": FORMAT, "family": family.model_type, **self.trainer})
        first, *others = map(as_json, self.rng)
        (folder / RNG).write_text(json.dumps({"processes": [first, *others]} if others else first))


def gather(
    model: nn.Module,
    optimizer: Optimizer,
    lr_scheduler: LRScheduler | None,
    progress: dict[str, Any],
    facts: dict[str, Any] | None = None,
    rng: list[dict[str, Any]] | None = None,
) -> TrainingState:
    """Collect the state of a run.

    `progress` is the recipe's, with `global_step`: the optimizer steps done, and `seed`. `facts` are `run_facts`, which
    a run that goes on is compared with. `rng` has the `rng_state` of each process; None: there is this one alone.
    """
    params = dict(model.named_parameters())
    names = {param: name for name, param in params.items()}
    entries = {
        f"{names[param]}/{key}": value for param, state in optimizer.state.items() for key, value in state.items()
    }
    tensors, classes = {}, {}
    for name, value in entries.items():
        if isinstance(value, Tensor):
            parts, about = flatten_tensor(value)
            param = params[name.rpartition("/")[0]]
            tensors |= {f"{name}/{part}" if part else name: _weight(tensor, param) for part, tensor in parts.items()}
            if about is not None:
                classes[name] = about
    return TrainingState(
        tensors=tensors,
        of_adapters={
            f"{name}/{key}": tensor
            for name, module in adapter_modules(model).items()
            for key, tensor in module.training_state().items()
        },
        trainer={
            "progress": progress,
            "facts": facts,
            "trained": trained_parameters(model),
            "optimizer": {
                "class": class_name(optimizer),
                "groups": [
                    {**options_of(group), "params": [names[param] for param in group["params"]]}
                    for group in optimizer.param_groups
                ],
                "tensors": dtypes_and_shapes(tensors),
                "values": {name: value for name, value in entries.items() if not isinstance(value, Tensor)},
                "classes": classes,
            },
            "lr_scheduler": {
                "class": class_name(lr_scheduler),
                "state": plain(lr_scheduler.state_dict()) if lr_scheduler is not None else None,
            },
        },
        rng=[rng_state()] if rng is None else rng,
    )


def _weight(tensor: Tensor, param: Tensor) -> Weight:
    """Return a tensor of the state of a parameter; of one that is sharded, it may be a plain one of its rows here."""
    if not is_sharded(param) or is_sharded(tensor) or tensor.shape != local(param).shape:
        return Weight.of(tensor)
    return Weight(tensor.dtype, tuple(param.shape), lambda: tensor).of_shards(written_rows(param, param))


def restore_adapters(model: nn.Module, folder: Path) -> None:
    """Give the adapters of `model`, whose file is loaded, what they need besides it to go on, as in `folder`."""
    needing = {name: module for name, module in adapter_modules(model).items() if module.training_state()}
    if not needing:
        return
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, weight in read_safetensors(folder / ADAPTER).items():
        module, _, key = name.partition("/")
        states[module][key] = weight.read()
    if states.keys() != needing.keys():
        wrong = listed(sorted(states.keys() ^ needing.keys()))
        raise CheckpointError(f"{folder / ADAPTER}: is not what was saved: {wrong} differ")
    for name, module in needing.items():
        module.restore_training(states[name])


def class_name(thing: object) -> str | None:
    """Name the class of an optimizer or schedule; None stays."""
    return None if thing is None else type(thing).__name__


def trained_parameters(model: nn.Module) -> dict[str, list]:
    """Say which parameters are trained, with dtype and shape."""
    return dtypes_and_shapes({name: param for name, param in model.named_parameters() if param.requires_grad})


def dtypes_and_shapes(tensors: Mapping[str, Tensor | Weight]) -> dict[str, list]:
    """Describe tensors as JSON can."""
    return {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}


def options_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return the options of an optimizer's parameter group as plain values."""
    return {key: plain(value) for key, value in group.items() if key != "params"}


def plain(value: Any) -> Any:
    """Return a value, or what a list or dict holds, with each tensor of one element as its number."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.item() if isinstance(value, Tensor) else value
