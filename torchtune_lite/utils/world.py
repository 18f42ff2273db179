"""The processes that train together, of which this is one: here the case that there is no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")


class World:
    """One process, which has nobody to wait for. Of several, each calls each of these methods, in the same order."""

    rank, size = 0, 1
    place = "the start of the run"  # where this process is, for a line about one that does not get there

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def sum(self, *values: float) -> list[float]:
        """Add up numbers over the processes."""
        return list(values)

    def gather(self, value: T) -> list[T]:
        """Return what each process gives, by rank."""
        return [value]

    def on_main(self, call: Callable[[], T]) -> T:
        """Return what `call` returns on rank 0, where alone it is called; the others wait, for hours if need be."""
        return call()

    def together(self, call: Callable[[], T]) -> T:
        """Return what `call` returns in this process; where it fails in one, or more, raise that `first` error in all.

        `call` itself must take part in whatever the others do in theirs, up to its end.
        """
        return call()

    def lead(self, call: Callable[[], T]) -> None:
        """Let rank 0 do something, and wait for it; raise in all processes what it raises."""
        call()

    def first(self, error: Exception | None) -> Exception:
        """Return the error that the run ends with where one process, or more, has one: that of the lowest rank."""
        return error

    def check_alike(self, what: dict[str, Any]) -> None:
        """Raise ConfigError with the first key under which a process has another value than rank 0."""

    def draw_apart(self, seed: int) -> None:
        """Let each process draw other random numbers from here on; rank 0 goes on as it would alone."""

    def draw_alike(self, optimizer: torch.optim.Optimizer, seed: Callable[[], str]) -> None:
        """Let all processes draw the same random numbers in a step of `optimizer`, by the `seed` of that step."""

    def shard(self, model: nn.Module) -> None:
        """Let each process keep its part of the weights of a `model` that has none yet."""

    def settle(self, model: nn.Module) -> None:
        """Let the parameters of `model`, whose last pass was forward, be those that the optimizer knows."""

    @property
    def writers(self) -> World:
        """The processes that write a checkpoint together; where each has the whole model, this one alone."""
        return self

    def save(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, a save; those who have no part in it wait, for hours if need be."""
        return call()

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise ConfigError where an optimizer can't step with the parameters as they lie here."""

    def before_backward(self, *, last: bool) -> None:
        """Prepare the backward pass of a micro-batch, the `last` of a step or another one."""

    def spread(self, params: Iterable[Tensor]) -> None:
        """Give each parameter the value that it has on rank 0."""

    def sum_gradients(self, params: Iterable[Tensor]) -> None:
        """Replace the gradient of each parameter by the sum over the processes; that of none counts as zero."""

    def close(self) -> None:
        """Take leave of the others, once all have come as far."""
