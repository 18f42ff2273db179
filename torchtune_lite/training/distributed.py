"""The processes that train together, as torchrun starts them: what they tell each other, and their gradients.

Each holds the whole model and takes its share of the micro-batches; after the last backward pass of a step the
gradients are summed over all of them, so that each takes the same optimizer step. What is said besides are numbers in
host memory, through gloo, for which no GPU has to wait.

A process whose work fails ends at once (`worker.leave`), and the others learn of it from their next collective, which
is then a PeerError: not the reason why the run ends.
"""

import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from random import Random
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchtune_lite import worker
from torchtune_lite.errors import ConfigError, TuneError
from torchtune_lite.tracebacks import described
from torchtune_lite.training.environment import set_seed
from torchtune_lite.training.settings import TrainingSettings
from torchtune_lite.utils import counted, get_device, get_logger, silence
from torchtune_lite.utils.world import World

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long others wait for what the first process does alone: a save, above all."""
BUCKET = 2**26
"""Bytes of gradients that are sent at a time, and held twice for that."""


class PeerError(TuneError):
    """A collective that fails since another process is gone, or does not come to it."""

    exit_code = worker.PEER


class Processes(World):
    """One of several processes, whose collectives end with a PeerError after `timeout` seconds without the others."""

    def __init__(self, device: torch.device, timeout: float) -> None:
        super().__init__(device)
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        self._dist, self._store, self.timeout = dist, None, timedelta(seconds=timeout)
        self._count = 0  # of the collectives that this process has come to
        self.size = worker.num_processes()
        on_gpu = self.device.type == "cuda"
        with self._meeting():
            store, self.rank, self.size = next(rendezvous("env://", timeout=self.timeout))
        self._store = dist.PrefixStore("torchtune_lite", store)
        with self._meeting():
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.size,
                timeout=self.timeout,
                device_id=self.device if on_gpu else None,
            )
            self._control = dist.new_group(backend="gloo", timeout=self.timeout)
            self._patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        if self.rank:
            silence()
        get_logger().info("%s, rank 0 on %s", counted(self.size, "process", "processes"), self.device)

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Turn what a collective says of the others into a PeerError, which names those who are behind."""
        start = time.monotonic()
        try:
            self._count += 1
            self._tell_count()
            yield
        except RuntimeError as error:
            raise PeerError(self._absent(time.monotonic() - start)) from error

    def _tell_count(self) -> None:
        """Let the others know how far this process is, by the store that the launcher of the first node holds.

        Without that launcher the run is to stop, as by SIGTERM, and what remains until then needs no store.
        """
        try:
            if self._store is not None:
                self._store.set(f"count/{self.rank}", str(self._count))
        except RuntimeError:
            if not callable(signal.getsignal(signal.SIGTERM)):  # nobody would hear it
                raise
            self._store = None
            signal.raise_signal(signal.SIGTERM)

    def _absent(self, seconds: float) -> str:
        if seconds < 0.9 * self.timeout.total_seconds():
            return f"a process on another node has ended, or the network has failed, at {self.place}"
        behind = [rank for rank in range(self.size) if rank != self.rank and self._count_of(rank) < self._count]
        who = f"rank {', '.join(map(str, behind))}" if behind else "another process"
        return (
            f"{who} did not come to {self.place} in {seconds:.0f} s (parallel.timeout): it hangs, or does what takes "
            "longer"
        )

    def _count_of(self, rank: int) -> int:
        try:
            known = self._store.check([f"count/{rank}"])
            return int(self._store.get(f"count/{rank}")) if known else 0
        except (RuntimeError, AttributeError):  # the store is gone, with the node that held it, or was not there yet
            return 0

    def sum(self, *values: float) -> list[float]:
        total = torch.tensor([0.0, *values], dtype=torch.float64)
        with self._meeting():
            self._dist.all_reduce(total, group=self._control)
        return total[1:].tolist()

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with self._meeting():
            self._dist.all_gather_object(values, value, group=self._control)
        return values

    def on_main(self, call: Callable[[], T]) -> T:
        result = [call() if self.rank == 0 else None]
        with self._meeting():
            self._dist.broadcast_object_list(result, src=0, group=self._patient)
        return result[0]

    def together(self, call: Callable[[], T]) -> T:
        result = error = None
        try:
            result = call()
        except Exception as problem:
            error = problem
        return self._agreed(result, error)

    def lead(self, call: Callable[[], T]) -> None:
        self.together(call if self.rank == 0 else lambda: None)

    def _agreed(self, result: T, error: Exception | None) -> T:
        failed = torch.tensor(float(error is not None))
        with self._meeting():
            self._dist.all_reduce(failed, group=self._patient)
        if failed:
            raise self.first(error)
        return result

    @property
    def writers(self) -> World:
        alone = World(self.device)
        alone.rank = self.rank
        return alone

    def save(self, call: Callable[[], T]) -> T:
        return self.on_main(call)

    def first(self, error: Exception | None) -> Exception:
        known = isinstance(error, (TuneError, OSError))
        errors = self.gather(error if known or error is None else PeerError(f"rank {self.rank}: {described(error)}"))
        rank = next(rank for rank, each in enumerate(errors) if each is not None)
        return error if rank == self.rank else errors[rank]

    def check_alike(self, what: dict[str, Any]) -> None:
        first, *others = self.gather(what)
        for rank, theirs in enumerate(others, start=1):
            for key in [*first, *theirs]:
                if first.get(key) != theirs.get(key):
                    raise ConfigError(
                        f"rank {rank} has another {key} than rank 0: {theirs.get(key)}, not {first.get(key)}; "
                        "start all with the same files and arguments"
                    )

    def draw_apart(self, seed: int) -> None:
        if self.rank:
            set_seed((seed + self.rank) % 2**32)

    def draw_alike(self, optimizer: torch.optim.Optimizer, seed: Callable[[], str]) -> None:
        own: list[Any] = []

        def before(*args: Any) -> None:
            own.append(torch.random.fork_rng([self.device] if self.device.type == "cuda" else []))
            own[-1].__enter__()
            torch.manual_seed(Random(seed()).getrandbits(63))

        def after(*args: Any) -> None:
            own.pop().__exit__(None, None, None)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    def spread(self, params: Iterable[Tensor]) -> None:
        self.sum()
        for param in params:
            with self._meeting():
                self._dist.broadcast(param.detach(), src=0)

    @torch.no_grad()
    def sum_gradients(self, params: Iterable[Tensor]) -> None:
        self.sum()  # who is missing is found here, by gloo, which can say so; NCCL would wait, and then abort
        grads = []
        for param in params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            grads.append(param.grad)
        for bucket in buckets(grads, BUCKET):
            flat = torch.cat([grad.flatten() for grad in bucket])
            with self._meeting():
                self._dist.all_reduce(flat)
            for grad, total in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(total.view_as(grad))

    def close(self) -> None:
        self.on_main(lambda: None)
        self._dist.destroy_process_group()


def buckets(tensors: Iterable[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Yield tensors of one dtype and device in turn, of about `most` bytes together."""
    waiting: dict[Any, list[Tensor]] = defaultdict(list)
    sizes: Counter[Any] = Counter()
    for tensor in tensors:
        kind = tensor.dtype, tensor.device
        waiting[kind].append(tensor)
        sizes[kind] += tensor.nbytes
        if sizes[kind] >= most:
            yield waiting.pop(kind)
            del sizes[kind]
    yield from waiting.values()


def _device_of(device: str) -> torch.device:
    """Return the device of this process: the GPU of its number on this node, or the CPU that all share."""
    if ":" in device or device == "mps":
        raise ConfigError(f"device: {device} is one device, and several processes run; set device: cuda, cpu or auto")
    found, local = get_device(device), int(os.environ.get("LOCAL_RANK", 0))
    if found.type != "cuda":
        return torch.device("cpu")
    if local >= (gpus := torch.cuda.device_count()):
        here = os.environ.get("LOCAL_WORLD_SIZE", local + 1)
        raise ConfigError(
            f"--nproc_per_node {here}: this machine has {counted(gpus, 'GPU')}, one for each process; "
            "start as many, or set device: cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def init_world(cfg: TrainingSettings) -> World:
    """Join the processes that torchrun started together with this one; without it, this is the only one.

    ConfigError for what one process can do and several cannot.
    """
    size = worker.num_processes()
    if size == 1:
        return World(get_device(cfg.device))
    device = _device_of(cfg.device)
    if cfg.dtype == "fp16":
        raise ConfigError(
            f"dtype: fp16 is not served with {size} processes: it has a loss scale of one process; set dtype: bf16"
        )
    if cfg.parallel.data != "ddp":
        from torchtune_lite.training.sharded import Shards, check_settings  # of no use to other runs

        check_settings(cfg)
        return Shards(device, cfg.parallel)
    refused = {
        "optimizer_in_bwd: True": (cfg.optimizer_in_bwd, "steps before gradients are summed; set it False"),
        "memory_budget: auto": (
            device.type == "cpu" and cfg.memory_budget == "auto",
            "counts on all that is free; give GB",
        ),
        f"parallel.replicas: {cfg.parallel.replicas}": (
            cfg.parallel.replicas not in (None, size),
            "is for parallel.data: hsdp; with ddp each has the whole model",
        ),
    }
    for setting, (given, why) in refused.items():
        if given:
            raise ConfigError(f"{setting} is not served with {size} processes: it {why}")
    return Processes(device, cfg.parallel.timeout)
