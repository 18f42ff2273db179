"""The compiled passes against the plain functions, and each row alone as in company, to the bit."""

import shutil

import pytest
import torch
from torch.testing import assert_close

from torchtune_lite.kernels.native import passes
from torchtune_lite.modules import CachedSequences, KVCache, kv_cache, norm, rope
from torchtune_lite.modules.rope import Rotation

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
CPU = torch.device("cpu")
COMPILERS = {"with AVX-512": "c++", "portable": "c++ -mno-avx512f"}
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2}}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(params=COMPILERS, autouse=True)
def built(request, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "extensions"))
    monkeypatch.delenv("TORCHTUNE_LITE_NATIVE", raising=False)
    monkeypatch.setenv("CXX", COMPILERS[request.param])
    passes._library.cache_clear()
    with torch.inference_mode():
        if not passes.takes(torch.ones(1)) and request.param == "portable":
            pytest.skip("the compiler knows no such option")
        assert passes.takes(torch.ones(1))
        torch.manual_seed(0)
        yield
    passes._library.cache_clear()


@each_dtype
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dim", [64, 21, 600])
def test_a_norm_is_the_plain_one(dim, offset, dtype):
    x, weight = (5 * torch.randn(2, 40, dim)).to(dtype), torch.randn(dim).to(dtype)
    expected = norm.rms_norm.plain(x, weight, 1e-5, offset)
    assert_close(passes.rms_norm(x, weight, 1e-5, offset), expected, **TOLERANCE[dtype])
    turned = x.transpose(0, 1)
    assert torch.equal(
        passes.rms_norm(turned, weight, 1e-5, offset), passes.rms_norm(turned.contiguous(), weight, 1e-5, offset)
    )


@each_dtype
@pytest.mark.parametrize("pairs", [32, 20, 8])
@pytest.mark.parametrize("shared", [False, True])
def test_a_rotation_is_the_plain_one(pairs, shared, dtype):
    x = torch.randn(1, 9, 5, 64).transpose(1, 2).to(dtype)
    rotation = Rotation(*(torch.randn(1, 1, 1 if shared else 9, pairs).to(dtype) for _ in range(2)))
    assert_close(passes.rotate(x, rotation), rope.rotate.plain(x, rotation), **TOLERANCE[dtype])


OPTIONS = [{}, {"window": 7}, {"softcap": 2.0}, {"scale": 0.1, "window": 5, "softcap": 30.0}]


@each_dtype
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("head_dim", passes.HEAD_DIMS)
@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 1, 9]])
def test_attention_to_a_cache_is_the_plain_one(sizes, head_dim, options, dtype):
    caches = [KVCache(4, 40, 2, head_dim, dtype, CPU) for _ in range(2)]
    caches[0].k.normal_(), caches[0].v.normal_()
    caches[1].k.copy_(caches[0].k), caches[1].v.copy_(caches[0].v)
    sequences = CachedSequences([2, 0, 3], [30, 0, 17], sizes, CPU)
    q, k, v = (torch.randn(1, sum(sizes), heads, head_dim).transpose(1, 2).to(dtype) for heads in (6, 2, 2))
    found = passes.cached_attention(q, k, v, caches[0], sequences, **options)
    expected = kv_cache.cached_attention.plain(q, k, v, caches[1], sequences, **options)
    assert_close(found, expected, **TOLERANCE[dtype])
    assert torch.equal(caches[0].k, caches[1].k) and torch.equal(caches[0].v, caches[1].v)


def test_a_token_attends_to_the_same_bits_in_any_company():
    cache = KVCache(5, 40, 2, 32, torch.float32, CPU)
    cache.k.normal_(), cache.v.normal_()
    q, k, v = (torch.randn(1, heads, 5, 32) for heads in (4, 2, 2))
    starts = [3, 30, 0, 17, 16]
    together = passes.cached_attention(q, k, v, cache, CachedSequences(range(5), starts, [1] * 5, CPU))
    for i in range(5):
        part = (x[:, :, i : i + 1] for x in (q, k, v))
        alone = passes.cached_attention(*part, cache, CachedSequences([i], [starts[i]], [1], CPU))
        assert torch.equal(alone, together[:, :, i : i + 1])


def test_what_the_loops_are_not_made_for_is_left_to_others():
    x = torch.randn(1, 2, 3, 64)
    rotation = Rotation(torch.randn(1, 1, 3, 32), torch.randn(1, 1, 3, 32))
    assert passes.rotate(x.expand(2, -1, -1, -1), rotation) is NotImplemented
    assert passes.rms_norm(x.double(), torch.ones(64).double(), 1e-5, 0.0) is NotImplemented
    assert passes.rms_norm(x, torch.ones(64).double(), 1e-5, 0.0) is NotImplemented
    odd, cache = torch.randn(1, 2, 3, 20), KVCache(3, 4, 2, 20, torch.float32, CPU)
    single, longer = CachedSequences([0, 1, 2], [0] * 3, [1] * 3, CPU), CachedSequences([0], [0], [3], CPU)
    assert passes.cached_attention(odd, odd, odd, cache, single) is NotImplemented
    assert passes.cached_attention(x, x, x, cache, longer) is NotImplemented
    with torch.inference_mode(False):
        assert passes.rms_norm(torch.ones(2, 64), torch.ones(64), 1e-5, 0.0) is NotImplemented
