"""The weights that a model answers with: adapters merged and NF4 decoded where memory allows, or all in int8."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from torchtune_lite.errors import ConfigError
from torchtune_lite.kernels.int8.codec import encode
from torchtune_lite.kernels.int8.linear import linear
from torchtune_lite.modules import TiedOutput, TransformerDecoder
from torchtune_lite.peft import Adapter, FrozenNF4Linear, dequantize
from torchtune_lite.utils import get_logger
from torchtune_lite.utils.machine import free_memory

PROJECTIONS = {"attn": ("q_proj", "k_proj", "v_proj", "output_proj"), "mlp": ("w1", "w2", "w3")}
SHARE = 0.8
"""How much of the free memory merged weights may take: keys and values need some, too."""


class Int8Linear(nn.Module):
    """A projection in int8, for inference; `softcap` c makes the outputs c · tanh(output / c)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, softcap: float | None = None) -> None:
        super().__init__()
        self.int8, self.softcap = encode(weight, bias), softcap

    def forward(self, x: Tensor) -> Tensor:
        """Map `x [..., in]` to `[..., out]`."""
        y = linear(x, self.int8)
        return y if self.softcap is None else self.softcap * torch.tanh(y / self.softcap)


@contextmanager
def inference_weights(model: TransformerDecoder, *, int8: bool = False) -> Iterator[None]:
    """Let `model` compute with merged adapters and decoded NF4 for a block of code; afterwards it is as it was.

    Merged weights lie beside the original ones; where memory does not allow it, the log says so and the model computes
    as in training. With `int8` every projection is rounded to int8 instead, a quarter of the bytes of float32, for
    which there are loops for a CPU. ConfigError for another device.
    """
    device = model.tok_embeddings.weight.device
    if int8 and device.type != "cpu":
        raise ConfigError(f"int8 is for a model on a CPU; this one is on {device}")
    places = _places(model)
    if not int8:
        places = [place for place in places if not isinstance(getattr(*place), nn.Linear | TiedOutput)]
        places = places if _fits([getattr(*place) for place in places], device) else []
    originals = [getattr(*place) for place in places]
    try:
        for place, original in zip(places, originals, strict=True):
            setattr(*place, _in_int8(original) if int8 else _merged(original))
        yield
    finally:
        for place, original in zip(places, originals, strict=True):
            setattr(*place, original)


def _places(model: TransformerDecoder) -> list[tuple[nn.Module, str]]:
    """List the projections that compute what their weight says, as attributes of modules."""
    places = [
        (getattr(layer, part), name) for layer in model.layers for part, names in PROJECTIONS.items() for name in names
    ]
    return [place for place in [*places, (model, "output")] if _is_plain(getattr(*place))]


def _is_plain(projection: nn.Module) -> bool:
    if isinstance(projection, Adapter):
        return projection.enabled
    return type(projection) in (nn.Linear, FrozenNF4Linear, TiedOutput)


def _weight(projection: nn.Module) -> Tensor:
    """Return the weight that a projection computes with."""
    module = projection.embedding if isinstance(projection, TiedOutput) else projection
    return (module.merged_weight() if isinstance(module, Adapter) else dequantize(module.weight)).detach()


def _bias(projection: nn.Module) -> Tensor | None:
    bias = projection.merged_bias() if isinstance(projection, Adapter) else getattr(projection, "bias", None)
    return bias if bias is None else bias.detach()


def _merged(projection: nn.Module) -> nn.Linear:
    weight = _weight(projection)
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight, linear.bias = (
        each if each is None else nn.Parameter(each, requires_grad=False) for each in (weight, _bias(projection))
    )
    return linear


def _in_int8(projection: nn.Module) -> Int8Linear:
    return Int8Linear(_weight(projection), _bias(projection), getattr(projection, "softcap", None))


def _fits(projections: list[nn.Module], device: torch.device) -> bool:
    """Return whether there is memory for the weights of these projections."""
    size = sum(each.weight.numel() * each.weight.itemsize for each in projections)
    free = free_memory(device)
    if free is None or size <= SHARE * free:
        return True
    get_logger().warning(
        f"adapters are not merged for answers, which are slower so: that takes {size / 2**30:.1f} GiB, "
        f"and {free / 2**30:.1f} GiB are free"
    )
    return False
