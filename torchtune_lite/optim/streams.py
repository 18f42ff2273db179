"""Copies between host and device that run beside the computation."""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class CopyStream:
    """A stream of a CUDA device for copies; on any other device they take place in order, and all this does nothing."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copies(self, *, of_results: bool = False) -> AbstractContextManager:
        """Enter the stream; copies `of_results` wait for what the device has been told to compute so far."""
        if self._stream is None:
            return nullcontext()
        if of_results:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return torch.cuda.stream(self._stream)

    def mark(self) -> "torch.cuda.Event | None":
        """Mark the copies so far, to be waited for."""
        return None if self._stream is None else self._stream.record_event()

    def before_computing(self, mark: "torch.cuda.Event | None") -> None:
        """Let what the device is told to compute from here on wait for the copies up to `mark`."""
        if mark is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(mark)

    def wait(self, mark: "torch.cuda.Event | None") -> None:
        """Let the host wait for the copies up to `mark`."""
        if mark is not None:
            mark.synchronize()


@functools.cache
def copy_stream(device: torch.device) -> CopyStream:
    """Return the one stream of a device."""
    return CopyStream(device)


def host_copy(values: Tensor, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """Copy `values` to host memory, page-locked where `device` (None: theirs) is CUDA's, so that nothing waits."""
    pinned = (device or values.device).type == "cuda"
    host = torch.empty(values.shape, dtype=dtype or values.dtype, device="cpu", pin_memory=pinned)
    return host.copy_(values, non_blocking=True)
