"""AdamW that is computed by the host: weights and gradients pass between it and the device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchtune_lite.optim.adamw import BucketedAdamW, Piece
from torchtune_lite.optim.streams import copy_stream, host_copy


class CPUOffloadAdamW(BucketedAdamW):
    """AdamW with float32 master weights and moments in host memory, 12 bytes a weight, and its arithmetic on the CPU.

    The gradients of the next bucket come in while one is computed; the device keeps weights and gradients only.
    """

    def new_state(self, param: Tensor) -> dict[str, Tensor]:
        """Make moments and `master`, the float32 weight, in host memory."""
        master = host_copy(param.detach().cpu(), torch.float32, param.device)
        return super().new_state(torch.empty_like(master)) | {"master": master}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient."""
        loss = super().step(closure)
        for device in {param.device for group in self.param_groups for param in group["params"]}:
            copy_stream(device).before_computing(copy_stream(device).mark())
        return loss

    def fetch(self, bucket: list[Piece]) -> Any:
        """Start to copy the gradients of a bucket to the host."""
        stream = copy_stream(bucket[0].weight.device)
        with stream.copies(of_results=True):
            here = [piece._replace(grad=host_copy(piece.grad)) for piece in bucket]
        return here, stream.mark()

    def finish(self, group: dict[str, Any], fetched: Any) -> None:
        """Compute a bucket, then starts to copy its weights back."""
        bucket, mark = fetched
        stream = copy_stream(bucket[0].weight.device)
        stream.wait(mark)
        self.update(group, bucket)
        with stream.copies():
            for piece in bucket:
                weight = host_copy(piece.state["master"], piece.weight.dtype, piece.weight.device)
                piece.weight.copy_(weight, non_blocking=True)

    def load(self, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
        """Take the master for the weight."""
        return piece.state["master"], piece.state["exp_avg"], piece.state["exp_avg_sq"]
