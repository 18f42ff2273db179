"""Starts made of the base weight, against PEFT's numbers, and what a run over them reads, writes and goes on from."""

import math

import pytest
import torch

from torchtune_lite.peft import LoRALinear, dequantize, quantize
from torchtune_lite.peft.projections.initialisation import loftq, starting_factors

RANK, ALPHA = 2, 4
NUMBERS = {
    ("pissa", False): (1.081844, [0.057936, 0.144848, 0.138548], 1.113909, [-0.115871, -0.103772, 0.075964]),
    ("pissa", True): (0.764979, [0.040967, 0.102423, 0.097968], 1.113909, [-0.115871, -0.103772, 0.075964]),
    ("olora", False): (1.977691, [0.0, 0.185925, 0.253124], 2.433585, [0.0, -0.185925, -0.153189]),
    ("olora", True): (1.977691, [0.0, 0.185925, 0.253124], 3.884198, [0.0, -0.339950, -0.362884]),
}
"""Of W [6, 8], rank 2, alpha 4, in PEFT: |BA|, BA[0, :3], |W_res|, W_res[0, :3]."""


def wave(rows: int, columns: int, scale: float) -> torch.Tensor:
    i = torch.arange(rows * columns, dtype=torch.float64)
    return (scale * torch.sin(0.37 * i + 0.011 * i**2)).float().view(rows, columns)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("name", ["pissa", "pissa_niter_8", "olora"])
def test_the_start_and_the_rest_are_those_of_peft(name, use_rslora):
    weight = wave(6, 8, 0.5)
    projection = LoRALinear(8, 6, RANK, ALPHA, use_rslora=use_rslora, init_lora_weights=name)
    projection.weight.data = rest = projection.start_from(weight)
    projection.init_adapter()
    update = projection.lora_b.weight @ projection.lora_a.weight
    norm, row, rest_norm, rest_row = NUMBERS[name.partition("_")[0], use_rslora]
    exactly = 1e-2 if "niter" in name else 2e-6
    assert [update.norm().item(), rest.norm().item()] == pytest.approx([norm, rest_norm], abs=exactly)
    assert update[0, :3].tolist() == pytest.approx(row, abs=exactly)
    assert rest[0, :3].tolist() == pytest.approx(rest_row, abs=exactly)
    x = torch.randn(5, 8)
    torch.testing.assert_close(projection(x), x @ weight.t())


def test_the_columns_of_b_have_the_lengths_of_peft_s():
    _, b = starting_factors("pissa")(wave(6, 8, 0.5), RANK, ALPHA / RANK)
    assert b.norm(dim=0).tolist() == pytest.approx([0.952430, 0.767792], abs=1e-6)
    _, b = starting_factors("pissa")(wave(6, 8, 0.5), RANK, ALPHA / math.sqrt(RANK))
    assert b.norm(dim=0).tolist() == pytest.approx([0.800895, 0.645634], abs=1e-6)


def test_loftq_brings_the_quantised_weight_nearer():
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(256, 256)
    quantised = dequantize(quantize(weight))
    errors = {
        rank: ((quantised + b @ a - weight).norm() / weight.norm()).item()
        for rank, (a, b) in ((rank, loftq(weight, rank, 1.0)) for rank in (8, 32))
    }
    assert ((quantised - weight).norm() / weight.norm()).item() == pytest.approx(0.0920, abs=5e-4)
    assert errors == pytest.approx({8: 0.0866, 32: 0.0726}, abs=7e-4)  # PEFT's first round


def test_an_unknown_start_is_one_line():
    with pytest.raises(ValueError, match="init_lora_weights is 'pisa'; allowed are pissa, olora, loftq, pissa_niter_N"):
        starting_factors("pisa")
