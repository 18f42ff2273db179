"""Virtual tokens in joined rows, caches, windows, answers and recomputed layers: each text as if it were alone."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from tests.peft.test_reference import CONFIG, TOKENS
from tests.peft.tokens.test_prompts import METHODS, filled
from torchtune_lite.generation import Engine, Sampling
from torchtune_lite.kernels import plain
from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.modules import CachedSequences, RopeScaling
from torchtune_lite.peft import PrefixTuning, PromptTuning, adapters_off

KINDS = ["prompt", "prefix", "prefix, projected"]
CPU = torch.device("cpu")
WINDOWS = {"layer_kinds": ("sliding", "full"), "window": 4, "local_rope_base": 100.0}
DYNAMIC = {"rope_scaling": RopeScaling("dynamic", 4.0), "max_seq_len": 8 + 3}


def texts(*lengths):
    row = TOKENS.flatten().repeat(3)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [row[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def built(method, **fields):
    torch.manual_seed(0)
    model = lora_decoder(replace(CONFIG, **fields), adapter=method).double()
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("fields", [{}, WINDOWS, DYNAMIC], ids=["plain", "windows", "dynamic"])
@pytest.mark.parametrize("method", [PromptTuning(3), PrefixTuning(3)], ids=["prompt", "prefix"])
def test_every_text_of_a_joined_row_sees_them(method, fields):
    model = built(method, **fields)
    alone = texts(4, 7, 1, 3)
    row = torch.cat(alone)[None]
    logits, grads = [], []
    for compute in (
        lambda: model(row, seq_lens=[len(text) for text in alone])[0],
        lambda: torch.cat([model(text[None])[0] for text in alone]),
    ):
        model.zero_grad()
        logits.append(compute())
        logits[-1].square().sum().backward()
        grads.append(model.prompt.embedding.weight.grad.clone())
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    with adapters_off(model):
        assert (model(row, seq_lens=[len(text) for text in alone])[0] - logits[0]).abs().max() > 0.01


@pytest.mark.parametrize("name", KINDS)
def test_a_row_of_a_padded_batch_is_as_alone(name):
    model = filled(METHODS[name])
    batch = model(TOKENS)
    torch.testing.assert_close(batch, torch.cat([model(row[None]) for row in TOKENS]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_recomputed_layers_have_the_same_gradients(name):
    model = filled(METHODS[name])
    grads = []
    for recomputed in (False, True):
        model.zero_grad()
        model.activation_checkpointing = recomputed
        first = model(TOKENS[:, :5], seq_lens=None)
        second = model(TOKENS[:1], seq_lens=[3, 4])  # another forward pass before the backward one of the first
        (first.square().sum() + second.square().sum()).backward()
        grads.append([param.grad for param in model.parameters() if param.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fields", [{}, WINDOWS], ids=["plain", "windows"])
@pytest.mark.parametrize("method", [PromptTuning(3), PrefixTuning(3)], ids=["prompt", "prefix"])
@torch.no_grad()
def test_a_cache_counts_them_once(method, fields):
    model = built(method, **fields).eval()
    one, other, third = texts(6, 9, 4)
    whole = [model(text[None])[0] for text in (one, other, third)]
    model.setup_caches(3, 16)
    assert model.layers[0].attn.kv_cache.capacity == 16

    def cached(*parts):
        """Compute parts of texts, each with its slot and its place."""
        slots, texts, starts, ends = zip(*parts, strict=True)
        tokens = torch.cat([text[start:end] for text, start, end in zip(texts, starts, ends, strict=True)])
        lens = [end - start for start, end in zip(starts, ends, strict=True)]
        return model(tokens[None], mask=CachedSequences(slots, starts, lens, CPU))[0].split(lens)

    a, b = cached((0, one, 0, 4), (2, other, 0, 5))
    c, d = cached((0, one, 4, 5), (2, other, 5, 6))
    for layer in model.layers:
        layer.attn.kv_cache.grow(32)
    e, f, g = cached((0, one, 5, 6), (2, other, 6, 9), (1, third, 0, 4))
    torch.testing.assert_close(torch.cat([a, c, e]), whole[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.cat([b, d, f]), whole[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(g, whole[2], rtol=0, atol=1e-9)
    for layer in model.layers:
        layer.attn.kv_cache.copy(2, 1, 5)
    [again] = cached((1, other, 5, 9))
    torch.testing.assert_close(again, whole[1][5:], rtol=0, atol=1e-9)


def greedy(model, prompt, count):
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    return tokens[len(prompt) :]


@pytest.mark.parametrize("how", ["fast", "plain"])
@pytest.mark.parametrize("name", KINDS)
def test_the_engine_answers_as_the_model_does(name, how):
    model = built(METHODS[name]).float().eval()
    prompts = [[1, 5, 9, 14], [1, 5, 9, 14, 3, 7], [2, 2], [1, 5, 9, 14, 8]]
    expected = [greedy(model, prompt, 8) for prompt in prompts]
    with plain() if how == "plain" else nullcontext():
        engine = Engine(model, slots=2)
        assert engine.max_seq_len == CONFIG.max_seq_len - 3
        requests = [engine.submit(prompt, Sampling(max_new_tokens=8, temperature=0))[0] for prompt in prompts]
        engine.run()
        engine.close()
    assert [request.tokens for request in requests] == expected


def test_an_answer_may_fill_all_positions():
    model = built(PromptTuning(3), max_seq_len=16).float().eval()
    engine = Engine(model, slots=1)
    [request] = engine.submit([1, 5, 9], Sampling(max_new_tokens=50, temperature=0))
    engine.run()
    assert len(request.tokens) == 16 - 3 - 3
    with pytest.raises(ValueError, match="14 tokens exceed max_seq_len 13"):
        model(torch.ones(1, 14, dtype=torch.long))


@pytest.mark.parametrize("name", KINDS)
def test_switched_off_the_model_is_its_base_to_the_bit(name):
    model, base = filled(METHODS[name]), decoder(CONFIG).double()
    base.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("prompt.")})
    with adapters_off(model), torch.no_grad():
        assert torch.equal(model(TOKENS), base(TOKENS))
        assert torch.equal(model(TOKENS[:1], seq_lens=[3, 4]), base(TOKENS[:1], seq_lens=[3, 4]))
        assert torch.equal(model(TOKENS, input_pos=torch.arange(7)[None]), base(TOKENS))


def test_places_that_tell_no_beginning_are_refused():
    model = filled(METHODS["prompt"])
    with pytest.raises(ValueError, match="give seq_lens, not input_pos or a mask"):
        model(TOKENS, input_pos=torch.arange(7)[None])
    with pytest.raises(ValueError, match="give seq_lens, not input_pos or a mask"):
        model(TOKENS, mask=torch.ones(1, 1, 7, 7, dtype=torch.bool))


def test_over_nf4_every_projection_of_the_layers_is_quantised():
    sizes = {"embed_dim": 128, "intermediate_dim": 256, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32}
    model = lora_decoder(replace(CONFIG, **sizes), adapter=PromptTuning(3), quantize_base=True)
    kinds = {type(module).__name__ for layer in model.layers for module in (layer.attn.q_proj, layer.mlp.w2)}
    assert kinds == {"FrozenNF4Linear"}
    model(TOKENS, skip_output=True).square().sum().backward()
    assert model.prompt.embedding.weight.grad.abs().max() > 0
