import copy
import shutil
import sys

import pytest
import torch

from torchtune_lite.errors import ConfigError
from torchtune_lite.models.llama2 import lora_llama2
from torchtune_lite.training import compile_layers

attention = sys.modules["torchtune_lite.modules.attention"]
SIZES = {"vocab_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16, "max_seq_len": 64}


def test_compiled_layers_compute_the_same(monkeypatch):
    """Through the compiler's front end, with torch's own operators: what a C++ compiler makes of it is its affair."""
    monkeypatch.setattr(attention, "_one_by_one", attention._one_by_one)
    model = lora_llama2(**SIZES, lora_attn_modules=["q_proj"], lora_rank=2).train()
    plain = copy.deepcopy(model)
    calls = []
    compile_layer = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: calls.append(self) or compile_layer(self, backend="aot_eager")
    )
    compile_layers(model, torch.device("cpu"))
    assert calls == list(model.layers)
    for lengths in ([5, 9], [3, 1, 8], [4]):
        tokens = torch.randint(0, 64, (1, sum(lengths)))
        outputs = [each(tokens, seq_lens=lengths) for each in (model, plain)]
        torch.testing.assert_close(*outputs)
        found = [
            torch.autograd.grad(y.square().sum(), [p for p in each.parameters() if p.requires_grad])
            for y, each in zip(outputs, (model, plain), strict=True)
        ]
        torch.testing.assert_close(*found)


def test_no_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler for a CPU; install g\+\+, or set compile=False"):
        compile_layers(torch.nn.Module(), torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs Triton for a GPU"):
        compile_layers(torch.nn.Module(), torch.device("cuda"))


@pytest.mark.parametrize("quantize_base", [False, True])
def test_a_layer_is_one_graph_that_serves_all_layers_and_lengths(quantize_base):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    sizes = SIZES | {"num_layers": 5, "embed_dim": 128, "intermediate_dim": 256}
    model = lora_llama2(**sizes, lora_attn_modules=["q_proj", "v_proj"], apply_lora_to_mlp=True, lora_rank=2,
                        quantize_base=quantize_base).train()  # fmt: skip
    for layer in model.layers:
        layer.compile(backend="aot_eager", fullgraph=True)  # raises at a break
    for length in (16, 17, 23, 31):
        model(torch.randint(0, 64, (2, length))).sum().backward()
    kinds = 2  # the first layer's input needs no gradient
    lengths = 2  # the first, and any
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == kinds * lengths
