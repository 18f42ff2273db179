"""AdamW whose state lies in host memory and passes through the device's, a bucket at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchtune_lite.optim.adamw import MasterAdamW, Piece
from torchtune_lite.optim.streams import copy_stream, host_copy


class PagedAdamW(MasterAdamW):
    """`MasterAdamW` with its state in page-locked host memory: 10 bytes a bfloat16 weight, 8 a float32 one.

    The state of the next bucket comes in while one is computed; three buckets at most are on the device. Not the
    managed memory of bitsandbytes' optimizer of this name, which moves only what does not fit.
    """

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """Make the state of a parameter in host memory."""
        like = super().new_state(torch.empty_like(param, device="cpu"))
        return {key: value if key == "step" else host_copy(value, device=param.device) for key, value in like.items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; the state is whole when it returns."""
        loss = super().step(closure)
        for device in {param.device for group in self.param_groups for param in group["params"]}:
            stream = copy_stream(device)
            stream.wait(stream.mark())
        return loss

    def fetch(self, bucket: list[Piece]) -> Any:
        """Start to copy the state of a bucket to the device of its weights."""
        device = bucket[0].weight.device
        with copy_stream(device).copies():
            states = [
                {key: value.to(device, non_blocking=True, copy=True) for key, value in piece.state.items()}
                for piece in bucket
            ]
        return bucket, states, copy_stream(device).mark()

    def finish(self, group: dict[str, Any], fetched: Any) -> None:
        """Compute a bucket, then starts to copy its state back."""
        bucket, states, mark = fetched
        stream = copy_stream(bucket[0].weight.device)
        stream.before_computing(mark)
        self.update(group, [piece._replace(state=state) for piece, state in zip(bucket, states, strict=True)])
        with stream.copies(of_results=True):
            for piece, state in zip(bucket, states, strict=True):
                for key, value in state.items():
                    piece.state[key].copy_(value, non_blocking=True)
