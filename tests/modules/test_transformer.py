"""The decoder against transformers' Llama, and its caches and checkpointing against its own plain pass."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from torchtune_lite.models.builders import decoder, plain_linear
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.modules import CachedSequences, DecoderConfig, TransformerDecoder

TINY = {"vocab_size": 96, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 32, "max_seq_len": 16}


def gradients(model, tokens):
    """The gradient of a language-modelling loss by parameter name."""
    model.zero_grad()
    logits = getattr(out := model(tokens), "logits", out)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: param.grad.clone() for name, param in model.named_parameters()}


# --- the function ---


@pytest.mark.parametrize("num_kv_heads", [8, 2, 1])
@torch.no_grad()
def test_logits_and_hidden_states_are_those_of_transformers(llama, num_kv_heads):
    pair = llama(num_kv_heads)
    theirs = pair.theirs(pair.tokens, output_hidden_states=True)
    assert theirs.logits.abs().max() > 1
    assert_close(pair.ours(pair.tokens), theirs.logits, atol=1e-5, rtol=1e-5)
    hidden = pair.ours(pair.tokens, skip_output=True)
    assert_close(hidden, theirs.hidden_states[-1], atol=1e-5, rtol=1e-5)
    assert torch.equal(pair.ours.logits(hidden), pair.ours(pair.tokens))


def test_gradients_are_those_of_transformers(llama):
    pair = llama()
    ours, theirs = gradients(pair.ours, pair.tokens), gradients(pair.theirs, pair.tokens)
    assert {LLAMA.to_hf(name) for name in ours} == set(theirs)
    for name, gradient in ours.items():
        assert_close(gradient, theirs[LLAMA.to_hf(name)], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_positions_are_those_given(llama):
    pair = llama()
    positions = torch.stack([torch.arange(5, 29), torch.arange(0, 48, 2)])
    ours = pair.ours(pair.tokens, input_pos=positions)
    assert_close(ours, pair.theirs(pair.tokens, position_ids=positions).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[1], pair.ours(pair.tokens)[1], atol=1e-2)


@torch.no_grad()
def test_a_mask_hides_padding(llama):
    pair = llama()
    padding = torch.tensor([0, 7])
    real = torch.arange(24) >= padding[:, None]  # [b, s]
    mask = (torch.ones(24, 24).tril().bool() & real[:, None] | torch.eye(24).bool())[:, None]
    positions = (torch.arange(24) - padding[:, None]).clamp(min=0)
    ours = pair.ours(pair.tokens, input_pos=positions, mask=mask)
    assert_close(ours[1, 7:], pair.ours(pair.tokens[1:, 7:])[0], atol=1e-5, rtol=1e-5)
    assert_close(ours[0], pair.ours(pair.tokens[:1])[0], atol=1e-5, rtol=1e-5)


# --- the cache ---


@pytest.mark.parametrize("sizes", [[1] * 24, [10, 1, 1, 12], [24]])
@torch.no_grad()
def test_a_cached_pass_in_pieces_equals_the_whole(llama, sizes):
    pair = llama()
    whole = pair.ours(pair.tokens)
    pair.ours.setup_caches(3, 24)
    pieces, start = [], 0
    for piece in pair.tokens.split(sizes, dim=1):  # both rows as one
        size = piece.shape[1]
        sequences = CachedSequences([2, 0], [start, start], [size, size], piece.device)
        pieces.append(pair.ours(piece.flatten()[None], mask=sequences).view(2, size, -1))
        start += size
    assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    pair.ours.delete_caches()
    assert all(layer.attn.kv_cache is None for layer in pair.ours.layers)


def test_caches_are_set_up_in_the_dtype_of_the_model():
    model = decoder(DecoderConfig(**TINY)).bfloat16()
    model.setup_caches(3, 8)
    cache = model.layers[1].attn.kv_cache
    assert cache.k.shape == cache.v.shape == (3, 2, 8, 8)
    assert cache.k.dtype == torch.bfloat16


def test_more_tokens_than_positions_are_an_error():
    model = decoder(DecoderConfig(**TINY))
    model(torch.zeros(1, 16, dtype=torch.long))
    with pytest.raises(ValueError, match="17 tokens exceed max_seq_len 16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    model.setup_caches(1, 20)
    with pytest.raises(ValueError, match="17 tokens exceed max_seq_len 16"):
        sequences = CachedSequences([0], [10], [7], torch.device("cpu"))
        model(torch.zeros(1, 7, dtype=torch.long), mask=sequences)


# --- activation checkpointing ---


def test_activation_checkpointing_recomputes_each_layer_and_changes_no_gradient():
    torch.manual_seed(0)
    model = decoder(DecoderConfig(**TINY, attn_dropout=0.2)).train()
    tokens = torch.randint(0, 96, (2, 16))
    calls = []
    for layer in model.layers:
        layer.mlp.w1.register_forward_hook(lambda *_: calls.append(1))

    def run(checkpointing):
        model.activation_checkpointing = checkpointing
        calls.clear()
        torch.manual_seed(1)  # the same dropout
        return gradients(model, tokens), len(calls)

    plain, once = run(False)
    recomputed, twice = run(True)
    assert (once, twice) == (2, 4)
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


# --- the parameters ---


def test_a_meta_model_has_parameters_only_under_the_agreed_names():
    with torch.device("meta"):
        model = TransformerDecoder(DecoderConfig(**TINY | {"num_layers": 1}), plain_linear)
    assert list(model.buffers()) == []
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        "tok_embeddings.weight": (96, 32),
        "layers.0.sa_norm.weight": (32,),
        "layers.0.attn.q_proj.weight": (32, 32),
        "layers.0.attn.k_proj.weight": (16, 32),
        "layers.0.attn.v_proj.weight": (16, 32),
        "layers.0.attn.output_proj.weight": (32, 32),
        "layers.0.mlp_norm.weight": (32,),
        "layers.0.mlp.w1.weight": (256, 32),
        "layers.0.mlp.w2.weight": (32, 256),
        "layers.0.mlp.w3.weight": (256, 32),
        "norm.weight": (32,),
        "output.weight": (96, 32),
    }


def test_every_projection_is_made_by_the_factory():
    made = []

    def linear(name, in_dim, out_dim, bias=False):
        made.append((name, in_dim, out_dim, *["bias"] * bias))
        return plain_linear(name, in_dim, out_dim, bias)

    TransformerDecoder(DecoderConfig(**TINY | {"num_layers": 1, "biased": ["k_proj"]}), linear)
    assert made == [
        ("layers.0.attn.q_proj", 32, 32),
        ("layers.0.attn.k_proj", 32, 16, "bias"),
        ("layers.0.attn.v_proj", 32, 16),
        ("layers.0.attn.output_proj", 32, 32),
        ("layers.0.mlp.w1", 32, 256),
        ("layers.0.mlp.w2", 256, 32),
        ("layers.0.mlp.w3", 32, 256),
        ("output", 32, 96),
    ]


# --- documents in one row ---


@pytest.mark.parametrize("checkpointing", [False, True])
def test_documents_in_a_row_are_computed_as_if_alone(llama, checkpointing):
    """Logits and gradients of three documents in one row are those of each by itself."""
    model = llama().ours.double().train()
    model.activation_checkpointing = checkpointing
    torch.manual_seed(0)
    documents = [torch.randint(0, 96, (1, n)) for n in (5, 1, 11)]
    weights = [torch.randn(1, d.shape[1], 96, dtype=torch.float64) for d in documents]
    alone = [model(d) for d in documents]
    expected = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, alone, strict=True)), model.parameters())
    joined = model(torch.cat(documents, 1), seq_lens=[5, 1, 11])
    assert_close(joined, torch.cat(alone, 1), atol=1e-7, rtol=1e-7)
    found = torch.autograd.grad((torch.cat(weights, 1) * joined).sum(), model.parameters())
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(model(torch.cat(documents, 1)), joined, atol=1e-2)


def test_a_document_may_not_have_more_positions_than_the_model(llama):
    model = llama().ours
    limit = model.config.max_seq_len
    tokens = torch.zeros(1, limit + 3, dtype=torch.int64)
    model(tokens, seq_lens=[limit, 3])
    with pytest.raises(ValueError, match=f"^{limit + 2} tokens exceed max_seq_len {limit}$"):
        model(tokens, seq_lens=[1, limit + 2])
