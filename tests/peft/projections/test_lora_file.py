"""LoRA in PEFT's files: the adapters of a fused matrix as one. All else is tested with files, in tests/checkpoint."""

import torch
from torch import nn

from torchtune_lite.peft import FILES, LoRALinear, Projection


def test_the_parts_of_a_fused_matrix_are_one_adapter_with_the_blocks_of_b():
    q, v = (LoRALinear(6, 4, rank=rank, alpha=2 * rank) for rank in (2, 3))
    for part in (q, v):
        nn.init.normal_(part.lora_b.weight)
    fused = Projection("qkv_proj", (q, nn.Linear(6, 5), v))
    a, b = FILES["LORA"].tensors_of(fused).values()
    update = 2 * b @ a
    assert a.shape == (5, 6)
    torch.testing.assert_close(update[:4], q.merged_weight() - q.weight)
    torch.testing.assert_close(update[-4:], v.merged_weight() - v.weight)
    assert not update[4:9].any()
    fields = FILES["LORA"].fields([fused], ["qkv_proj"])
    assert (fields["r"], fields["lora_alpha"]) == (5, 10)
