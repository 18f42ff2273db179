"""Codes and scales against torchao's, bit for bit, and the memory that they take."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchao.quantization import to_nf4

from torchtune_lite.kernels.nf4 import codec
from torchtune_lite.kernels.nf4.codec import NF4Weight, Tiles, decode, encode, thresholds

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(128, 128), (512, 96), (96, 512), (1024, 1040)]  # whole blocks in a row, or blocks over the ends of rows


@pytest.fixture(autouse=True, params=["tables", "compiled"])
def path(request, monkeypatch):
    """Every test goes through torch's operators and, where there is a compiler, through the compiled loops."""
    if request.param == "tables":
        monkeypatch.setenv("TORCHTUNE_LITE_NATIVE", "0")


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made, except for views of the `given` ones."""

    def __init__(self, *given):
        super().__init__()
        self.given, self.size = {t.untyped_storage().data_ptr() for t in given}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        storages = [t.untyped_storage() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.size = max([self.size, *(s.nbytes() for s in storages if s.data_ptr() not in self.given)])
        return result


def weight(shape, dtype, spread=0.02):
    torch.manual_seed(0)
    return (torch.randn(shape) * spread).to(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_gpu_codes_are_those_of_a_cpu(shape, dtype):
    here, there = encode(weight(shape, dtype)), encode(weight(shape, dtype).cuda())
    assert torch.equal(here.quantized_data, there.quantized_data.cpu())
    torch.testing.assert_close(decode(there, shape).cpu(), decode(here, shape))  # the mean of the scales may be rounded
    assert torch.equal(decode(NF4Weight(*(part.cuda() for part in here)), shape).cpu(), decode(here, shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_part_is_that_of_torchao(shape, dtype):
    theirs, ours = to_nf4(weight(shape, dtype)), encode(weight(shape, dtype))
    in_float32 = ("quantized_scalers", "quantization_factor", "scaler_mean") if dtype == torch.float16 else ()
    for name, part in ours._asdict().items():
        assert torch.equal(part, getattr(theirs, name)) or name in in_float32, name
    if not in_float32:
        assert torch.equal(decode(ours, shape), theirs.get_original_weight())


@pytest.mark.parametrize("spread", [10.0, 1.0, 0.02, 2e-3, 2e-4, 2e-5])
def test_small_weights_keep_their_scales_in_float16(spread):
    """Blocks of different sizes: their scales are lost if the factor of 256 of them is infinite."""
    values = weight((256, 1024), torch.float32, 1.0).view(-1, 64)
    values = (values * torch.linspace(0.5, 1.5, len(values))[:, None] * spread / 1.5).view(256, 1024).half()

    def error(restored: torch.Tensor) -> float:
        return ((restored.float() - values.float()).norm() / values.float().norm()).item()

    parts = encode(values)
    restored = decode(parts, values.shape)
    assert restored.dtype == torch.float16 and all(part.isfinite().all() for part in parts)
    assert error(restored) < 1.02 * error(decode(encode(values.float()), values.shape))
    tiles = torch.cat([tile.clone() for _, tile in Tiles(parts, 256).by_rows()])
    assert torch.equal(tiles, restored)
    theirs = error(to_nf4(values).get_original_weight())
    assert (theirs < 1.5 * error(restored)) == (spread > 0.01), "the control: where float16 does not do"


@pytest.mark.parametrize("dtype", DTYPES)
def test_heavy_tails_and_single_precision_steps_are_coded_alike(dtype):
    values = torch.distributions.StudentT(2.0).sample((256, 256)).to(dtype)
    assert torch.equal(encode(values).quantized_data, to_nf4(values).quantized_data)
    exact = thresholds(dtype, torch.device("cpu"))
    around = torch.cat([exact, torch.nextafter(exact, torch.tensor(-2.0, dtype=dtype)), -exact, exact.new_ones(19)])
    edges = around.repeat(256, 1)  # a block of 64 values with scale 1: each code's least value and the one below it
    assert torch.equal(encode(edges).quantized_data, to_nf4(edges).quantized_data)


def test_a_block_of_zeros_stays_zero_and_harms_no_other():
    values = weight((128, 256), torch.bfloat16)
    values.view(-1, 64)[::7] = 0
    restored = decode(encode(values), values.shape).view(-1, 64)
    assert (restored[::7] == 0).all()
    others = torch.arange(len(restored)) % 7 != 0
    assert torch.equal(restored[others], to_nf4(values).get_original_weight().view(-1, 64)[others])
    assert (decode(encode(torch.zeros(128, 128)), (128, 128)) == 0).all()


@pytest.mark.parametrize("value", [1.0, -0.25, 1e-30])
def test_a_constant_weight_is_kept(value):
    values = torch.full((128, 128), value, dtype=torch.bfloat16)
    parts = encode(values)
    assert all(part.isfinite().all() for part in parts)
    assert torch.equal(decode(parts, (128, 128)), values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_refused(value, dtype):
    values = weight((128, 128), dtype)
    values[100, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode(values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [64, 5000, 1 << 19])
def test_tiles_put_together_are_the_weight(shape, dtype, tile, monkeypatch):
    monkeypatch.setattr(codec, "TILE", tile)
    parts = encode(weight(shape, dtype))
    whole = decode(parts, shape)
    by_rows, by_cols = torch.empty_like(whole), torch.empty_like(whole)
    for rows, values in Tiles(parts, shape[0]).by_rows():
        by_rows[rows] = values
    for cols, values in Tiles(parts, shape[0]).by_cols():
        by_cols[:, cols] = values
    assert torch.equal(by_rows, whole) and torch.equal(by_cols, whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_of_the_weights_size_is_made_on_the_way(dtype):
    values = weight((4096, 2048), dtype)
    with Largest(values) as made:
        parts = encode(values)
    assert made.size == parts.quantized_data.nbytes  # the result
    with Largest(*parts) as made:
        for _ in Tiles(parts, 4096).by_cols():
            pass
    assert made.size <= codec.TILE * dtype.itemsize
    with Largest(values) as made:
        to_nf4(values)
    assert made.size >= values.nbytes


def test_a_blank_weight_has_the_sizes_of_a_quantised_one():
    for blank, part in zip(codec.blank(128 * 256, torch.bfloat16, torch.device("meta")),
                           encode(weight((128, 256), torch.bfloat16)), strict=True):  # fmt: skip
        assert (blank.shape, blank.dtype) == (part.shape, part.dtype)
    assert isinstance(encode(weight((128, 256), torch.float32)), NF4Weight)
