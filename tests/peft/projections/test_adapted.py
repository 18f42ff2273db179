"""What all adapters of a projection share."""

import torch
from torch import nn

from torchtune_lite.peft.projections.adapted import AdaptedLinear


def test_weight_and_bias_are_taken_over_and_frozen():
    base = nn.Linear(4, 3)
    adapter = AdaptedLinear(base)
    assert adapter.weight is base.weight and adapter.bias is base.bias
    assert not any(param.requires_grad for param in adapter.parameters())
    assert (adapter.in_dim, adapter.out_dim) == (4, 3)
    assert torch.equal(adapter.start_from(base.weight), base.weight) and adapter.merged_bias() is base.bias
