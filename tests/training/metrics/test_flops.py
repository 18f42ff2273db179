import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchtune_lite.models.llama2 import llama2, lora_llama2

from torchtune_lite.training.metrics.flops import PEAKS, peak_flops, step_flops

SIZES = {"vocab_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 32, "max_seq_len": 32}


@pytest.mark.parametrize("trained", ["all", "adapters"])
def test_is_what_torch_counts(trained):
    """Except for attention, which torch counts in full instead of its causal half."""
    lora = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 2, "fused_lora": False}
    model = llama2(**SIZES) if trained == "all" else lora_llama2(**SIZES, **lora)
    tokens = torch.randint(0, 64, (1, 24))
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    of_linears = {"mm", "addmm"}
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if op.__name__ in of_linears)
    ours = step_flops(model, [1] * 24, 24) - 24 * 6 * 2 * 32  # without attention
    missing = 0 if trained == "all" else 2 * 24 * 32 * (32 + 2 * 16 + 2 * 2)  # gradients of the first layer's input
    assert counted == ours - missing
    assert step_flops(model, [24], 24) - step_flops(model, [24], 14) == 10 * 32 * 64 * (6 if trained == "all" else 4)
    assert step_flops(model, [24], 0) - step_flops(model, [12, 12], 0) == 6 * 2 * 32 * (24**2 - 2 * 12**2)


def test_the_peak_is_that_of_the_most_particular_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names.pop())
    names = ["NVIDIA GeForce GTX 1080", "NVIDIA A10G", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3"]
    found = [peak_flops(torch.device("cuda")) for _ in range(4)]
    assert found == [PEAKS["H100"], PEAKS["H100 PCIe"], PEAKS["A10G"], None]
    names = [
        "NVIDIA RTX A4000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA GeForce RTX 4090",
    ]
    found = [peak_flops(torch.device("cuda")) for _ in range(4)]
    assert found == [PEAKS["RTX 4090"], PEAKS["A100"], None, None]  # an A4000 is no A40
    assert peak_flops(torch.device("cpu")) is None
