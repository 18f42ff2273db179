import copy
import shutil

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torchtune_lite.models.llama2 import lora_llama2

from torchtune_lite.errors import ConfigError
from torchtune_lite.kernels import varlen_attention
from torchtune_lite.modules import attention
from torchtune_lite.peft import adapter_state
from torchtune_lite.training import compile_layers

SIZES = {"vocab_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16, "max_seq_len": 64}


@pytest.fixture
def front_end(monkeypatch):
    """Make `compile_layers` use the compiler's front end, with torch's own operators behind it, and end at a limit."""

    def use(backend="eager", **how):
        compile_layer = torch.nn.Module.compile
        monkeypatch.setattr(
            torch.nn.Module, "compile", lambda self, **given: compile_layer(self, backend=backend, **given, **how)
        )

    monkeypatch.setattr(attention, "packed_attention", attention.packed_attention)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield use
    torch._dynamo.reset()


def num_graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def documents(count):
    return [3 + count * i % 7 for i in range(count)]


LORA = {"lora_attn_modules": ["q_proj"], "lora_rank": 2}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"apply_lora_to_mlp": True, "quantize_base": True},
        {"apply_lora_to_mlp": True, "mlp_tile": 4},
        {"apply_lora_to_mlp": True, "lora_dropout": 1e-9},
        {"apply_lora_to_mlp": True, "use_dora": True},
        {"apply_lora_to_mlp": True, "biased": ("q_proj", "k_proj"), "qk_norm": "head"},
    ],
    ids=str,
)
def test_compiled_layers_compute_the_same(options, front_end):
    """A first layer, whose input needs no gradient, and others, whose input does."""
    front_end("aot_eager")
    torch.manual_seed(0)
    sizes = SIZES | {"num_layers": 1, "embed_dim": 128, "intermediate_dim": 128}
    model = lora_llama2(**sizes | LORA | options).train()
    model.tok_embeddings.requires_grad_(options != {})
    for param in adapter_state(model).values():
        torch.nn.init.normal_(param, std=0.05)
    plain = copy.deepcopy(model)
    compile_layers(model, torch.device("cpu"))
    for lengths in ([5, 9], [3, 1, 8], [4]):
        tokens = torch.randint(0, 64, (1, sum(lengths)))
        outputs = [each(tokens, seq_lens=lengths) for each in (model, plain)]
        torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)
        found = [
            torch.autograd.grad(y.square().sum(), [p for p in each.parameters() if p.requires_grad])
            for y, each in zip(outputs, (model, plain), strict=True)
        ]
        torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)


def test_no_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler for a CPU; install g\+\+, or set compile=False"):
        compile_layers(torch.nn.Module(), torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs Triton for a GPU"):
        compile_layers(torch.nn.Module(), torch.device("cuda"))


KINDS = 3  # the first layer, whose input needs no gradient, the others, and validation


@pytest.mark.parametrize("quantize_base", [False, True])
def test_a_layer_is_one_graph_that_serves_all_layers_and_lengths(quantize_base, front_end):
    front_end(fullgraph=True)  # raises at a break
    sizes = SIZES | {"num_layers": 5, "embed_dim": 128, "intermediate_dim": 256}
    model = lora_llama2(**sizes, lora_attn_modules=["q_proj", "v_proj"], apply_lora_to_mlp=True, lora_rank=2,
                        quantize_base=quantize_base)  # fmt: skip
    compile_layers(model, torch.device("cpu"))
    for length in (16, 17, 23, 31):
        model.train()(torch.randint(0, 64, (2, length))).sum().backward()
        with torch.no_grad():
            model.eval()(torch.randint(0, 64, (2, length)))
    assert num_graphs() == KINDS


@pytest.mark.parametrize(("method", "recomputed"), [("qlora", True), ("dora", False)])
def test_with_a_kernel_for_documents_it_serves_any_number_of_them(
    method, recomputed, front_end, monkeypatch, default_dtype
):
    """With torch's own `varlen_attn`, on the meta device, which it knows, in place of a GPU."""
    monkeypatch.setattr(varlen_attention, "runs_flash", lambda device: device.type == "meta")
    monkeypatch.setattr(varlen_attention, "_kernels", {})
    front_end(fullgraph=True)
    sizes = SIZES | {"num_layers": 3, "num_heads": 4, "embed_dim": 128, "intermediate_dim": 256}
    with torch.device("meta"), default_dtype(torch.bfloat16):
        model = lora_llama2(**sizes, lora_attn_modules=["q_proj"], apply_lora_to_mlp=True, lora_rank=2,
                            quantize_base=method == "qlora", use_dora=method == "dora")  # fmt: skip
    model.activation_checkpointing = recomputed
    compile_layers(model, torch.device("meta"))
    for count in range(1, 12):
        tokens = torch.zeros(1, sum(documents(count)), dtype=torch.int64, device="meta")
        model.train()(tokens, seq_lens=documents(count), skip_output=True).sum().backward()
        with torch.no_grad():
            model.eval()(tokens, seq_lens=documents(count), skip_output=True)
    assert num_graphs() == KINDS


def test_a_graph_for_a_gpu_holds_nothing_of_the_cpu(front_end, monkeypatch, default_dtype):
    """Scaling and eps as tensors, for example, make torch's compiler call a C++ compiler."""
    monkeypatch.setattr(varlen_attention, "runs_flash", lambda device: device.type == "meta")
    monkeypatch.setattr(varlen_attention, "_kernels", {})
    devices = set()

    def record(graph, inputs):
        for node in graph.graph.nodes:
            if isinstance(value := node.meta.get("val", node.meta.get("example_value")), torch.Tensor):
                devices.add(value.device.type)
        return make_boxed_func(graph.forward)

    front_end(aot_autograd(fw_compiler=record, bw_compiler=record))
    with torch.device("meta"), default_dtype(torch.bfloat16):
        sizes = SIZES | {"num_layers": 1, "embed_dim": 128, "intermediate_dim": 128}
        model = lora_llama2(**sizes, **LORA, apply_lora_to_mlp=True)
    model.tok_embeddings.requires_grad_()  # as the input of a layer that is not the first
    model.activation_checkpointing = True
    compile_layers(model, torch.device("meta"))
    tokens = torch.zeros(1, 24, dtype=torch.int64, device="meta")
    model.train()(tokens, seq_lens=[12, 12], skip_output=True).sum().backward()
    assert devices == {"meta"}


def test_without_one_the_graphs_around_attention_do(front_end):
    front_end()
    model = lora_llama2(**SIZES | {"num_layers": 1}, lora_attn_modules=["q_proj"], lora_rank=2)
    compile_layers(model, torch.device("cpu"))
    counts = []
    for count in range(1, 12):
        tokens = torch.zeros(1, sum(documents(count)), dtype=torch.int64)
        model.train()(tokens, seq_lens=documents(count)).sum().backward()
        with torch.no_grad():
            model.eval()(tokens, seq_lens=documents(count))
        counts.append(num_graphs())
    assert len(set(counts)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("quantize_base", [False, True])
def test_on_a_gpu_a_layer_is_one_graph_and_computes_the_same(quantize_base, default_dtype):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    sizes = SIZES | {"num_heads": 4, "embed_dim": 256, "intermediate_dim": 512, "max_seq_len": 256}
    with default_dtype(torch.bfloat16):
        plain = lora_llama2(**sizes, lora_attn_modules=["q_proj", "v_proj"], apply_lora_to_mlp=True, lora_rank=4,
                            quantize_base=quantize_base)  # fmt: skip
    plain = plain.to("cuda").train()
    model = copy.deepcopy(plain)
    compile_layers(model, torch.device("cuda"))
    trained = [[p for p in each.parameters() if p.requires_grad] for each in (model, plain)]
    for count in (1, 2, 5, 9, 4):
        lengths = [20 + count * i % 7 for i in range(count)]
        tokens = torch.randint(0, 64, (1, sum(lengths)), device="cuda")
        losses = [each(tokens, seq_lens=lengths).float().square().mean() for each in (model, plain)]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=2e-2)
        gradients = [torch.autograd.grad(loss, params) for loss, params in zip(losses, trained, strict=True)]
        for mine, theirs in zip(*gradients, strict=True):
            assert (mine - theirs).float().norm() <= 5e-2 * theirs.float().norm()
    assert num_graphs() == KINDS - 1
