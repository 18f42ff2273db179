"""Keys and values of the tokens already seen, so that generation computes each token once."""

import torch
from torch import Tensor


class KVCache:
    """A fixed buffer for one layer's keys and values, `[batch_size, num_kv_heads, max_seq_len, head_dim]` each."""

    def __init__(
        self,
        batch_size: int,
        max_seq_len: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (batch_size, num_kv_heads, max_seq_len, head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.length, self.max_seq_len = 0, max_seq_len

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append `k, v [b, k, s, e]` and return views of all keys and values so far, `[b, k, length, e]`."""
        start, end = self.length, self.length + k.shape[2]
        if end > self.k.shape[2]:
            raise ValueError(f"the KV cache holds {self.k.shape[2]} positions, {end} are needed; set it up longer")
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]
