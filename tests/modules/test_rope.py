"""Rotary positions against their formula, and the scalings against transformers'."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from torchtune_lite import kernels
from torchtune_lite.modules import RopeScaling, RotaryPositionalEmbeddings
from torchtune_lite.modules.rope import rotate

ANY = torch.tensor([[1]])  # the length of a text, where it does not matter


@pytest.mark.parametrize("rotary_dim", [8, 6])
@pytest.mark.parametrize("path", ["plain", "with kernels"])
def test_each_pair_turns_by_its_angle_and_the_rest_stays(rotary_dim, path):
    head_dim, base = 8, 500.0
    x = torch.randn(1, 1, 5, head_dim, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 7, 63]])
    rotation = RotaryPositionalEmbeddings(rotary_dim, base)(positions, torch.float64, ANY)
    with kernels.plain(*["rotary"] * (path == "plain")) if path == "plain" else kernels.plain("rms_norm"):
        turned = rotate(x, rotation)[0, 0]
    half = rotary_dim // 2
    for row, position in enumerate(positions[0].tolist()):
        for i in range(half):
            angle = position * base ** (-2 * i / rotary_dim)
            a, b = x[0, 0, row, i].item(), x[0, 0, row, i + half].item()
            expected = (a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle))
            assert (turned[row, i].item(), turned[row, i + half].item()) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(turned[:, rotary_dim:], x[0, 0, :, rotary_dim:])


def test_angles_are_float32_in_a_bf16_model():
    rope = RotaryPositionalEmbeddings(64, 10_000.0)
    positions = torch.arange(4000, 4096)[None]
    ours, exact = rope(positions, torch.bfloat16, ANY), rope(positions, torch.float32, ANY)
    assert torch.equal(ours.cos, exact.cos.bfloat16()) and torch.equal(ours.sin, exact.sin.bfloat16())


SCALINGS = {
    "linear": ({"factor": 4.0}, RopeScaling("linear", 4.0)),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        RopeScaling("llama3", 8.0, 64),
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 64},
        RopeScaling("yarn", 4.0, 64, amplitude=0.1 * math.log(4) + 1),
    ),
    "yarn, bounds of its own": (
        {
            "factor": 32.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
            "attention_factor": 1.25,
        },
        RopeScaling("yarn", 32.0, 128, beta_fast=16.0, beta_slow=2.0, truncate=False, amplitude=1.25),
    ),
    "longrope": (
        {
            "original_max_position_embeddings": 64,
            "short_factor": [1.0 + i / 10 for i in range(16)],
            "long_factor": [1.0 + i for i in range(16)],
            "factor": 4.0,
        },
        RopeScaling(
            "longrope",
            4.0,
            64,
            amplitude=math.sqrt(1 + math.log(4) / math.log(64)),
            short_factors=[1.0 + i / 10 for i in range(16)],
            long_factors=[1.0 + i for i in range(16)],
        ),
    ),
    "dynamic": ({"factor": 4.0}, RopeScaling("dynamic", 4.0)),
}


@pytest.mark.parametrize("length", [40, 64, 65, 200])
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_and_amplitude_are_those_of_transformers(name, length):
    theirs, scaling = SCALINGS[name]
    kind = name.partition(",")[0]
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **theirs},
    )
    expected, amplitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
    rope = RotaryPositionalEmbeddings(32, 10_000.0, scaling, max_seq_len=64)
    found = rope.frequencies(torch.tensor([[float(length)]])).squeeze()
    assert_close(found, expected, rtol=2e-6, atol=0)
    assert scaling.amplitude == pytest.approx(amplitude)
    assert_close(
        rope(torch.tensor([[0]]), torch.float32, torch.tensor([[length]])).cos, torch.full((1, 1, 1, 16), amplitude)
    )


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_each_text_is_rotated_by_its_own_length(kind):
    """Two texts in a row, one on either side of the length from which frequencies change."""
    rope = RotaryPositionalEmbeddings(32, 10_000.0, SCALINGS[kind][1], max_seq_len=64)
    lengths = torch.tensor([40, 90])
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])[None]
    joined = rope(positions, torch.float32, lengths.repeat_interleave(lengths)[None])
    alone = [rope(torch.arange(n)[None], torch.float32, torch.tensor([[n]])) for n in lengths.tolist()]
    assert_close(joined.cos, torch.cat([each.cos for each in alone], dim=2), rtol=0, atol=1e-5)
    wrong = rope(positions, torch.float32, torch.tensor([[90]]))
    assert not torch.allclose(joined.cos, wrong.cos, atol=1e-2)


def test_queries_may_grow_with_their_position():
    """Ministral 3: 1 + beta · ln(1 + ⌊position / original_len⌋)."""
    scaling = RopeScaling("yarn", 16.0, 10, query_beta=0.1)
    scale = RotaryPositionalEmbeddings(8, 100.0, scaling)(
        torch.tensor([[0, 9, 10, 25]]), torch.float32, ANY
    ).query_scale
    assert scale.flatten().tolist() == pytest.approx([1, 1, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3)])


def test_texts_turn_alike_unless_their_lengths_have_other_frequencies():
    plain = RotaryPositionalEmbeddings(8, 1e4, RopeScaling("linear", factor=4.0), 64)
    factors = {"short_factors": [1.0] * 4, "long_factors": [2.0] * 4}
    long = RotaryPositionalEmbeddings(8, 1e4, RopeScaling("longrope", original_len=32, **factors), 64)
    dynamic = RotaryPositionalEmbeddings(8, 1e4, RopeScaling("dynamic", factor=2.0), 64)
    for rope, expected in ((plain, [True, True]), (long, [True, False]), (dynamic, [True, True])):
        assert [rope.turns_alike(20, other) for other in (32, 33)] == expected
    assert not dynamic.turns_alike(64, 65)
