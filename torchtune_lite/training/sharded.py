"""Processes each of which keeps some rows of every weight: torch's FSDP2, `fully_shard` (ZeRO-3).

A layer is gathered when it is computed, and given up after it; its gradients are summed on the way to those who keep
the rows. What stands beside the layers, embedding, last norm and output, is gathered from the forward pass of a
micro-batch to the end of its backward pass, as the loss reads the output's weight by itself.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchtune_lite import peft
from torchtune_lite.errors import ConfigError
from torchtune_lite.training.distributed import Processes
from torchtune_lite.training.settings import Parallel, TrainingSettings
from torchtune_lite.utils import counted, get_logger

T = TypeVar("T")

WHOLE_TENSORS = ("Adafactor", "LBFGS")
"""Optimizers of torch that compute with more than the rows here."""
OTHER_STATE = ("torchao", "bitsandbytes")
"""Packages whose optimizers keep a state that is not one value for each of a parameter's."""


class Shards(Processes):
    """One of several processes that share the weights, all of them or those of a replica (`parallel.data: hsdp`)."""

    def __init__(self, device: torch.device, parallel: Parallel) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(device, parallel.timeout)
        self.reshard_after_forward = parallel.reshard_after_forward
        replicas = self.on_main(lambda: self._replicas(parallel.data, parallel.replicas))
        shape = {"replicate": replicas, "shard": self.size // replicas} if replicas > 1 else {"shard": self.size}
        with self._meeting():
            self.mesh = init_device_mesh(device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
        self.num_shards = shape["shard"]
        get_logger().info("parallel.data: %s", " x ".join(f"{name} {number}" for name, number in shape.items()))

    def _replicas(self, data: str, given: int | None) -> int:
        """Return how many times the processes hold the whole model: with hsdp once on each node, unless it is said."""
        nodes = self.size // int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        replicas = given or (nodes if data in ("auto", "hsdp") else 1)
        if data == "fsdp" and replicas > 1:
            raise ConfigError("parallel.replicas is for parallel.data: hsdp; with fsdp all processes share one model")
        is_asked = data == "hsdp" or (given or 1) > 1
        if self.size % replicas or (is_asked and not 1 < replicas < self.size):
            raise ConfigError(
                f"parallel.data: {data} with {counted(replicas, 'replica')} of {self.size} processes is not served; "
                "replicas must divide the processes and have two or more each (parallel.replicas); fsdp has one, ddp "
                "one for each process"
            )
        return replicas if replicas < self.size else 1

    def shard(self, model: nn.Module) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        unshared = {
            each.peft_type for each in peft.adapter_modules(model).values() if not hasattr(each, "input_params")
        }
        if unshared:
            raise ConfigError(
                f"adapters of type {', '.join(sorted(unshared))} are not served where processes share the weights "
                "(parallel.data: fsdp); use LoRA, or parallel.data: ddp"
            )
        quantized = {name: param for name, param in model.named_parameters() if peft.is_quantized(param)}
        unsplit = {name: param for name, param in quantized.items() if not peft.shards(param, self.num_shards)}
        if unsplit:
            get_logger().info(
                "%s whole in each process, as the rows of %d do not fill blocks of NF4: %s",
                counted(len(unsplit), "weight is", "weights are"),
                self.num_shards,
                ", ".join(sorted({name.split(".")[-2] for name in unsplit})),
            )
        options = {"mesh": self.mesh, "ignored_params": set(unsplit.values())}
        for layer in model.layers:
            fully_shard(layer, reshard_after_forward=self.reshard_after_forward, **options)
        fully_shard(model, reshard_after_forward=False, **options)
        self._units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for unit in self._units:
            unit.set_gradient_divide_factor(1.0)  # a sum, as the loss is divided by the tokens of all
            unit.set_force_sum_reduction_for_comms(True)
        self._model, self._trains_all = model, all(param.requires_grad for param in model.parameters())

    def settle(self, model: nn.Module) -> None:
        for unit in self._units:
            unit.reshard()

    @property
    def writers(self) -> "Shards":
        return self

    def save(self, call: Callable[[], T]) -> T:
        return call()

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        kinds = type(optimizer).__mro__
        if any(kind.__name__ in WHOLE_TENSORS or kind.__module__.startswith(OTHER_STATE) for kind in kinds):
            raise ConfigError(
                f"optimizer: {type(optimizer).__name__} is not served where processes share the weights; use "
                "torch.optim.AdamW, torchtune_lite.optim.StochasticAdamW for memory, or parallel.data: ddp"
            )
        if any(kind.__name__ == "Muon" for kind in kinds):
            get_logger().warning("optimizer: Muon does not compute the same in several processes as in one")

    def before_backward(self, *, last: bool) -> None:
        """Sum the gradients of adapters once a step; those of all weights, each as large as the model, every time."""
        self._model.set_requires_gradient_sync(last or self._trains_all)

    def draw_alike(self, optimizer: torch.optim.Optimizer, seed: Callable[[], str]) -> None:
        """Let replicas draw the same for the same rows, and others for others."""
        position = self.mesh.get_local_rank(self.mesh.ndim - 1)
        super().draw_alike(optimizer, lambda: f"{seed()}/{position}")

    def spread(self, params: Iterable[Tensor]) -> None:
        """Do nothing: each has its rows of what all have read, or drawn from one seed."""

    def sum_gradients(self, params: Iterable[Tensor]) -> None:
        """Do nothing: the backward pass has summed them."""


def check_settings(cfg: TrainingSettings) -> None:
    """Raise ConfigError for a key that needs the whole model in a process."""
    everything = cfg.enable_activation_checkpointing or cfg.ac_mode == "full"
    refused: dict[str, tuple[Any, str]] = {
        "dataset_eval": (cfg.dataset_eval is not None, "leave it out, and score checkpoints by exact_match_eval"),
        "enable_async_checkpointing: True": (cfg.enable_async_checkpointing, "set it False"),
        "memory_budget": (cfg.memory_budget is not None, "set enable_activation_checkpointing: True"),
        "enable_activation_offloading: True": (
            cfg.enable_activation_offloading and not everything,
            "set enable_activation_checkpointing: True beside it",
        ),
    }
    for setting, (given, instead) in refused.items():
        if given:
            raise ConfigError(
                f"{setting} is not served where processes share the weights (parallel.data: fsdp); {instead}; or set "
                "parallel.data: ddp"
            )
