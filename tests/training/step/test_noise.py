import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from torchtune_lite.models.builders import decoder
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.training.step.noise import add_neftune_noise

CONFIG = DecoderConfig(
    vocab_size=32, num_layers=1, num_heads=2, num_kv_heads=2, embed_dim=16, max_seq_len=64, intermediate_dim=32
)
TOKENS = torch.randint(0, 32, (1, 50), generator=torch.Generator().manual_seed(0))


def noise_of(model, **kwargs) -> torch.Tensor:
    """The noise that reaches the first layer [s, d], of a forward pass."""
    inputs = []
    handle = model.layers[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(TOKENS, **kwargs)
    handle.remove()
    return (inputs[0] - model.tok_embeddings.weight[TOKENS]).detach()[0]


def test_noise_is_uniform_up_to_the_bound_of_each_sequence():
    model = decoder(CONFIG)
    add_neftune_noise(model, 5)
    noise = noise_of(model)
    bound = 5 / math.sqrt(50 * 16)
    assert 0.95 * bound < noise.abs().max() <= bound + 1e-6
    assert noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    noise = noise_of(model, seq_lens=[10, 40])
    for part, length in ((noise[:10], 10), (noise[10:], 40)):
        bound = 5 / math.sqrt(length * 16)
        assert 0.9 * bound < part.abs().max() <= bound + 1e-6


def test_noise_has_the_scale_of_transformers():
    """The same draws, in the same order, as those of its hook."""
    from transformers.integrations.neftune import neftune_post_forward_hook

    theirs = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    embedding = theirs.get_input_embeddings().train()
    embedding.neftune_noise_alpha = 5
    torch.manual_seed(3)
    embedded = embedding(TOKENS)
    expected = neftune_post_forward_hook(embedding, (TOKENS,), embedded.clone()) - embedded
    model = decoder(CONFIG)
    add_neftune_noise(model, 5)
    torch.manual_seed(3)
    torch.testing.assert_close(noise_of(model), expected[0].detach(), rtol=0, atol=1e-6)


def test_there_is_none_in_validation_or_without_an_alpha():
    model = decoder(CONFIG)
    add_neftune_noise(model, None)
    assert noise_of(model).abs().max() == 0
    add_neftune_noise(model, 5)
    assert noise_of(model.eval()).abs().max() == 0
