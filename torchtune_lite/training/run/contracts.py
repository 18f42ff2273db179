"""The fine-tuning recipes' requirements on a user's components: their calls and their results.

docs/components.md is the same in words. b batch, s sequence, d embed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchtune_lite.errors import ConfigError
from torchtune_lite.peft import is_adapted


class Loss(Protocol):
    """The loss of a batch, summed over its label tokens: the recipe divides by those of the whole step."""

    def __call__(self, output: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return a scalar; `output` projects the hidden states `[b, s, d]` to logits, `labels [b, s]` has -100."""


class Tokenizer(Protocol):
    """A tokenizer of conversations."""

    vocab_size: int
    pad_id: int
    max_seq_len: int | None

    def __call__(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `tokens` and `mask` (True: no loss) of a sample with `messages`."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""


class Optimizer(Protocol):
    """An optimizer of torch's form, whose step needs no closure."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Update the parameters."""

    def zero_grad(self, set_to_none: bool) -> None:
        """Drop the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that."""


class Schedule(Protocol):
    """A learning-rate schedule of torch's form, stepped once per optimizer step."""

    def step(self) -> None:
        """Set the rate of the next step."""

    def get_last_lr(self) -> list[float]:
        """Return the rate of each group of parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that."""


class Model(Protocol):
    """A decoder as `models.builders` makes it."""

    config: Any
    layers: nn.ModuleList
    output: nn.Module
    tok_embeddings: nn.Module


class AdaptedModel(Model):
    """A decoder of which adapters are trained."""

    @staticmethod
    def problem(model: nn.Module) -> str:
        """Say that there is no adapter."""
        if is_adapted(model):
            return ""
        return (
            "has no adapter, and this recipe trains nothing else; use a lora_ builder, or "
            "'tune run full_finetune_single_device'"
        )


class WholeModel(Model):
    """A decoder of which every weight is trained."""

    @staticmethod
    def problem(model: nn.Module) -> str:
        """Say that there are adapters."""
        if not is_adapted(model):
            return ""
        return (
            "has adapters on a frozen base, and this recipe trains every weight; use a builder without lora_, or "
            "'tune run lora_finetune_single_device'"
        )


def checked_loss(loss: Any, loss_fn: Callable[..., Any]) -> Tensor:
    """Return what a `Loss` returned; ConfigError for anything but a scalar, which in training has a gradient."""
    problem = ""
    if not isinstance(loss, Tensor):
        problem = f"returned {type(loss).__name__}"
    elif loss.numel() != 1:
        problem = f"returned a tensor of shape {list(loss.shape)}"
    elif torch.is_grad_enabled() and not loss.requires_grad:
        problem = "returned a tensor without a gradient"
    if problem:
        name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        raise ConfigError(f"loss: {name} {problem}; it must return a scalar, the sum over the label tokens")
    return loss
