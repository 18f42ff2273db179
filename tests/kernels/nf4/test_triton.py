"""The Triton kernel of NF4 against torchao, bit for bit: in Triton's interpreter, and on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4

from torchtune_lite.kernels.nf4 import triton as nf4_triton

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the extra `triton`")

COMPARE = """
import sys
import torch
from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4
from torchtune_lite.kernels.nf4 import codec
from torchtune_lite.kernels.nf4 import triton as nf4_triton

def ours(weight):
    return codec.encode(weight), codec.decode(codec.encode(weight), weight.shape)

def theirs(weight):
    quantized = to_nf4(weight)
    return [getattr(quantized, name) for name in codec.NF4Weight._fields], quantized.get_original_weight()

torch.manual_seed(0)
bf16, fp32, fp16 = torch.bfloat16, torch.float32, torch.float16
for dtype, quantise in ((bf16, theirs), (fp32, theirs), (fp16, theirs), (fp16, ours)):
    for shape, spans in {
        (128, 128): [(0, 256)],
        (3, 16384): [(0, 768), (0, 1), (767, 768), (5, 69), (63, 192), (199, 236)],
    }.items():
        weight = torch.randn(shape) / torch.rand(shape).clamp_(min=0.01)
        parts, expected = quantise(weight.to(dtype))
        expected = expected.view(-1, 64)
        for first, last in spans:
            around = torch.full((last - first + 2, 64), 9.0, dtype=dtype)
            nf4_triton.decode_(around[1:-1], *parts, first_block=first)
            same = torch.equal(around[1:-1], expected[first:last]) and around[[0, -1]].eq(9).all().item()
            print(dtype, shape, first, last, same)
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from torchtune_lite.kernels.nf4 import triton as nf4_triton

kernel, sizes = nf4_triton._kernel(), {"BLOCK": 64, "SCALER_BLOCK": 256, "BLOCKS": nf4_triton.BLOCKS}
for number, scale in {"bf16": "bf16", "fp32": "fp32", "fp16": "fp32"}.items():
    kinds = [f"*{number}", "*u8", "*i8", *[f"*{scale}"] * 2, f"*{number}", "i32", "i32", *["constexpr"] * 3]
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(6)}
    source = ASTSource(kernel, dict(zip(kernel.arg_names, kinds)), sizes, aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
    print("st.global.v4" in ptx)
"""


def run(code: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_triton
def test_values_are_those_of_torchao():
    lines = run(COMPARE, TRITON_INTERPRET="1")
    assert len(lines) == 4 * 7
    assert not [line for line in lines if not line.endswith("True")]


@needs_triton
def test_it_compiles_for_a_gpu_with_stores_of_16_bytes(tmp_path):
    assert run(COMPILE, TRITON_CACHE_DIR=str(tmp_path)) == ["True"] * 3


def test_triton_is_imported_only_where_it_is_used():
    assert run(
        "import sys; from torchtune_lite.kernels.nf4 import triton as nf4_triton; print('triton' in sys.modules)"
    ) == ["False"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_it_is_for_gpus(device):
    assert not nf4_triton.available(torch.device(device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_it_is_absent_without_a_word_where_there_is_no_gpu(capfd):
    assert not nf4_triton.available(torch.device("cuda"))
    assert capfd.readouterr() == ("", "")


def test_tensors_that_do_not_fit_are_refused():
    quantized = to_nf4(torch.randn(128, 128))
    codes, scalers, factor = quantized.quantized_data, quantized.quantized_scalers, quantized.quantization_factor
    rest = (quantized.scaler_mean, quantized.nf4)
    for out, first_block in (
        (torch.empty(65 * 64), 192),
        (torch.empty(64), -1),
        (torch.empty(63), 0),
        (torch.empty(64).bfloat16(), 0),
    ):
        with pytest.raises(AssertionError):
            nf4_triton.decode_(out, codes, scalers, factor, *rest, first_block)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_values_on_a_gpu_are_those_of_torchao(dtype):
    torch.manual_seed(0)
    quantized = to_nf4(torch.randn(2048, 11008, device="cuda").to(dtype) * 0.02)
    assert nf4_triton.available(torch.device("cuda"))
    out = torch.empty(2048, 11008, dtype=dtype, device="cuda")
    names = ("quantized_data", "quantized_scalers", "quantization_factor", "scaler_mean", "nf4")
    nf4_triton.decode_(out, *(getattr(quantized, name) for name in names), first_block=0)
    assert torch.equal(out, quantized.get_original_weight())
