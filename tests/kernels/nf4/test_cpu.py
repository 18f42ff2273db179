"""The compiled loops of NF4 against torchao and torch's own product, bit for bit, and the cases without them."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor, to_nf4

from torchtune_lite.kernels.nf4 import cpu as nf4_cpu
from torchtune_lite.utils import get_logger

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
COMPILERS = {"with the CPU's shuffles": "c++", "portable": "c++ -mno-ssse3"}
LEVELS = torch.tensor(
    [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
    + [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]
)


@pytest.fixture(scope="module")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture(autouse=True)
def fresh(build_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(build_folder))
    monkeypatch.delenv("TORCHTUNE_LITE_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    nf4_cpu._library.cache_clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    nf4_cpu._library.cache_clear()


@pytest.fixture(params=COMPILERS)
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", COMPILERS[request.param])
    if not nf4_cpu.available() and request.param == "portable":
        pytest.skip("the compiler knows no such option")
    assert nf4_cpu.available()


def product(codes: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
    each = torch.stack([codes >> 4, codes & 15], dim=-1).flatten(1).long()  # [rows, cols]
    return levels[each] * scales.repeat_interleave(64, dim=1)


def random_parts(rows: int, blocks: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randint(0, 256, (rows, blocks * 32), dtype=torch.uint8), torch.randn(rows, blocks).to(dtype)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (3, 7), (301, 17)])
def test_values_are_levels_times_scales(built, rows, blocks, dtype, threads):
    assert nf4_cpu.supports(dtype)
    torch.set_num_threads(threads)
    codes, scales = random_parts(rows, blocks, dtype)
    out = torch.full((rows, blocks * 64), 9.0, dtype=dtype)
    nf4_cpu.decode_(out, codes, scales, LEVELS.to(dtype))
    assert torch.equal(out, product(codes, scales, LEVELS.to(dtype)))
    assert nf4_cpu.PARALLEL <= 301 * 17 * 64  # the last shape is shared among the threads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_of_any_size_are_multiplied_as_torch_multiplies(built, dtype):
    scales = torch.tensor([[0.0, 1e-40, -2e-38, 1.00390625, 3e38, -3.3e38, torch.inf, torch.nan]]).to(dtype)
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256)  # each byte, over all of the scales
    for shift in range(8):
        turned, out = scales.roll(shift, dims=1), torch.empty(1, 512, dtype=dtype)
        nf4_cpu.decode_(out, codes, turned, LEVELS.to(dtype))
        assert_close(out, product(codes, turned, LEVELS.to(dtype)), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tile_of_columns_is_read_and_only_it_is_written(built, dtype):
    codes, scales = random_parts(40, 9, dtype)
    out = torch.full((40, 9 * 64), 9.0, dtype=dtype)
    nf4_cpu.decode_(out[5:20, 128:448], codes[5:20, 64:224], scales[5:20, 2:7], LEVELS.to(dtype))
    expected = torch.full_like(out, 9.0)
    expected[5:20, 128:448] = product(codes, scales, LEVELS.to(dtype))[5:20, 128:448]
    assert torch.equal(out, expected)


def test_other_dtypes_are_not_supported():
    assert not nf4_cpu.supports(torch.float16) and not nf4_cpu.supports(torch.float64)


def test_tensors_that_do_not_fit_are_refused():
    codes, scales = random_parts(4, 2, torch.bfloat16)
    levels, out = LEVELS.bfloat16(), torch.empty(4, 128, dtype=torch.bfloat16)
    for misfit in (
        (out[:3], codes, scales, levels),
        (out, codes[:, :-1], scales, levels),
        (out, codes, scales[:, :1], levels),
        (out, codes, scales.float(), levels),
        (out, codes, scales, levels[:15]),
        (torch.empty(128, 4, dtype=torch.bfloat16).t(), codes, scales, levels),
    ):
        with pytest.raises(AssertionError):
            nf4_cpu.decode_(*misfit)


@pytest.fixture(scope="module")
def table() -> Tensor:
    """Torchao's code of each bfloat16."""
    values = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    codes = [NF4Tensor.quantize_tensor_nearest(part, LEVELS.bfloat16()) for part in values.split(4096)]
    return torch.cat(codes).to(torch.uint8)


def unit_blocks() -> Tensor:
    """Blocks that start with 1 and hold each bfloat16 from -1 to 1."""
    bits = torch.arange(0x3F81, dtype=torch.int32)
    values = torch.cat([bits, bits + 0x8000]).to(torch.uint16).view(torch.bfloat16)
    blocks = torch.zeros(1024, 64, dtype=torch.bfloat16)
    blocks[:, 0] = 1
    at = torch.arange(values.numel())
    blocks[at // 63, at % 63 + 1] = values
    return blocks


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("source", ["every value", "normal", "heavy tails", "subnormal"])
def test_codes_are_those_of_torchao(built, table, source, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    normal = torch.randn(512, 1024)
    blocks = {
        "every value": unit_blocks(),
        "normal": (normal * 0.02).bfloat16().view(-1, 64),
        "heavy tails": (normal / torch.rand(512, 1024)).bfloat16().view(-1, 64),
        "subnormal": (normal * 1e-39).bfloat16().view(-1, 64),
    }[source]
    codes, absmax = nf4_cpu.encode(blocks, table)
    assert torch.equal(absmax, blocks.abs().amax(1))
    assert torch.equal(codes, to_nf4(blocks).quantized_data)
    assert normal.numel() >= nf4_cpu.PARALLEL


def test_a_block_of_zeros_gets_the_code_of_zero(built, table):
    blocks = torch.randn(3, 64).bfloat16()
    blocks[1] = torch.tensor([0.0, -0.0]).repeat(32)
    codes, absmax = nf4_cpu.encode(blocks, table)
    assert (codes.view(3, 32)[1] == 0x77).all() and absmax[1] == 0
    assert absmax[0] > 0 and LEVELS[7] == 0


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_block_that_is_not_finite_has_such_a_magnitude(built, table, value):
    blocks = torch.randn(3, 64).bfloat16()
    blocks[1, 17] = value
    assert nf4_cpu.encode(blocks, table)[1].isfinite().tolist() == [True, False, True]


def test_it_is_off_when_told_so(monkeypatch):
    assert nf4_cpu.available()
    monkeypatch.setenv("TORCHTUNE_LITE_NATIVE", "0")
    assert not nf4_cpu.available()


@pytest.mark.parametrize("obstacle", ["no compiler", "a compiler that fails", "no folder", "no such program"])
def test_it_is_absent_without_a_word_where_it_cannot_be_built(obstacle, tmp_path, monkeypatch, capfd):
    assert nf4_cpu.available()  # what was built before must not count
    nf4_cpu._library.cache_clear()
    failing = tmp_path / "failing"
    failing.write_text('#!/bin/sh\necho noise >&2\ncase "$*" in *-shared*) echo noise; exit 1; esac\nexec c++ "$@"')
    failing.chmod(0o700)
    name, value = {
        "no compiler": ("PATH", str(tmp_path)),
        "a compiler that fails": ("CXX", str(failing)),
        "no folder": ("TORCH_EXTENSIONS_DIR", "/dev/null/folder"),
        "no such program": ("CXX", "no-such-compiler"),
    }[obstacle]
    monkeypatch.setenv(name, value)
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append
    logger = get_logger()
    logger.addHandler(handler)
    level = logger.level
    try:
        assert not nf4_cpu.available()
        assert not said and capfd.readouterr() == ("", "")
        nf4_cpu._library.cache_clear()
        logger.setLevel("DEBUG")
        assert not nf4_cpu.available() and not nf4_cpu.available()
        assert len(said) == 1 and "\n" not in said[0].getMessage()
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def started(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_processes_may_build_at_once(tmp_path):
    waiting = tmp_path / "waiting"  # it compiles when two of its kind are there
    waiting.write_text(
        '#!/bin/sh\ncase "$*" in *-shared*) touch "$0.$$"; n=0\n'
        'while [ $(ls "$0".* | wc -l) -lt 2 ] && [ $n -lt 2400 ]; do sleep 0.05; n=$((n+1)); done;; esac\nexec c++ "$@"'
    )
    waiting.chmod(0o700)
    code = "from torchtune_lite.kernels.nf4 import cpu as nf4_cpu; print(nf4_cpu.available())"
    folder = tmp_path / "extensions"
    both = [started(code, CXX=str(waiting), TORCH_EXTENSIONS_DIR=str(folder)) for _ in range(2)]
    assert [process.communicate(timeout=300)[0] for process in both] == ["True\n", "True\n"]
    assert len(list(tmp_path.glob("waiting.*"))) == 2
    assert [path.suffix for path in (folder / "torchtune_lite").iterdir()] == [".so"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it runs on one thread")
def test_it_runs_on_the_threads_of_torch():
    code = """
import os, torch
from torchtune_lite.kernels.nf4 import cpu as nf4_cpu
torch.set_num_threads(3)
parts = torch.empty(512, 512, dtype=torch.uint8), torch.empty(512, 16), torch.empty(16)
def threads():
    return len(os.listdir("/proc/self/task"))
assert nf4_cpu.available()
alone = threads()
nf4_cpu.decode_(torch.empty(512, 1024), *parts)
print(threads() - alone)
torch.ones(1 << 20).exp()
print(threads() - alone)  # a second OpenMP would have made its own
"""
    assert started(code).communicate(timeout=300)[0] == "2\n2\n"
