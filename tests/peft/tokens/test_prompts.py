"""Virtual tokens against PEFT's numbers on the tiny Llama, and their starts."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.peft.test_reference import CONFIG, TOKENS, wave
from torchtune_lite.errors import ConfigError
from torchtune_lite.models import fit_embeddings
from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.peft import PrefixTuning, PromptTuning, PTuning, adapter_state
from torchtune_lite.peft.tokens.virtual_tokens import Room

METHODS = {
    "prompt": PromptTuning(3),
    "prefix": PrefixTuning(3),
    "prefix, projected": PrefixTuning(3, prefix_projection=True, encoder_hidden_size=8),
    "P-tuning, MLP": PTuning(3, encoder_hidden_size=8),
    "P-tuning, LSTM": PTuning(3, "LSTM", encoder_hidden_size=8),
}
EXPECTED = {
    "prompt": (48, 3.605896, 0.640224, "embedding.weight", 1.445177),
    "prefix": (96, 3.452195, -0.255667, "embedding.weight", 0.135796),
    "prefix, projected": (384, 3.406726, -0.112540, "encoder.2.weight", 0.070130),
    "P-tuning, MLP": (400, 3.573739, 0.262801, "encoder.4.weight", 0.331036),
    "P-tuning, LSTM": (3920, 3.592316, 0.498495, "encoder.mlp_head.2.weight", 0.879733),
}


def filled(method):
    """The tiny Llama of the reference with virtual tokens, all parameters waves in the order of PEFT's names."""
    model = lora_decoder(CONFIG, adapter=method).double()
    own = sorted(adapter_state(model))
    base = sorted((n for n, _ in model.named_parameters() if "norm" not in n and n not in own), key=LLAMA.to_hf)
    with torch.no_grad():
        for names, scale, step in ((base, 0.25, 1.7), (own, 0.2, 0.9)):
            for number, name in enumerate(names):
                param = model.get_parameter(name)
                param.copy_(wave(number, param.shape, scale, step))
    return model


@pytest.mark.parametrize("name", METHODS)
def test_loss_logit_and_gradient_are_pefts(name, monkeypatch):
    """PEFT's loss has the first token of each text in it, which the last virtual token predicts."""
    model = filled(METHODS[name])
    count, loss, logit, param, norm = EXPECTED[name]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    before = 0
    if "prefix" not in name:
        monkeypatch.setattr(Room, "take", lambda self, x, dim: x)
        before = 3
    logits = model(TOKENS)
    labels = torch.cat([torch.full((2, before), -100), TOKENS], 1)
    found = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    found.backward()
    assert (found.item(), logits[1, -1, 0].item()) == pytest.approx((loss, logit), abs=2e-6)
    assert model.prompt.get_parameter(param).grad.norm().item() == pytest.approx(norm, abs=2e-6)


def started(method, tokenizer=None, tied=False):
    with torch.device("meta"):
        model = lora_decoder(CONFIG, adapter=method)
    if tokenizer is not None:
        fit_embeddings(model, tokenizer)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    torch.nn.init.normal_(model.tok_embeddings.weight, std=0.02)
    model.prompt.init_adapter(torch.float32)
    return model


def test_random_tokens_are_as_wide_spread_as_the_embedding():
    tokens = started(PromptTuning(40)).prompt()
    assert tokens.shape == (40, 16) and 0.017 < tokens.std() < 0.023
    drawn = started(PrefixTuning(40)).prompt()
    assert 0.9 < drawn.std() < 1.1  # as PEFT draws keys and values


@pytest.mark.parametrize(("tokens", "start"), [([4, 9], [4, 9, 4, 9, 4]), ([4, 9, 1, 7, 3, 2], [4, 9, 1, 7, 3])])
def test_a_text_is_repeated_or_cut_to_their_number(tokens, start, log_lines):
    said = []

    def encode(text, add_bos, add_eos):
        said.append((text, add_bos, add_eos))
        return tokens

    tokenizer = SimpleNamespace(encode=encode, adds_bos=True, vocab_size=32)
    model = started(PromptTuning(5, "TEXT", "Sort the words."), tokenizer)
    assert torch.equal(model.prompt(), model.tok_embeddings.weight[start])
    assert said == [("Sort the words.", True, False)]
    assert log_lines == ["prompt_tuning_init_text has 6 tokens, of which num_virtual_tokens: 5 are the start"] * (
        len(tokens) > 5
    )


def test_an_empty_text_is_refused():
    tokenizer = SimpleNamespace(encode=lambda text, add_bos, add_eos: [], adds_bos=False, vocab_size=32)
    with pytest.raises(ConfigError, match="prompt_tuning_init_text is empty"):
        started(PromptTuning(5, "TEXT", " "), tokenizer)


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        (PromptTuning, {"num_virtual_tokens": 0}, "num_virtual_tokens is 0; it must be a whole number of at least 1"),
        (PromptTuning, {"num_virtual_tokens": 2, "prompt_tuning_init": "SAMPLE_VOCAB"}, "allowed are RANDOM, TEXT"),
        (PromptTuning, {"num_virtual_tokens": 2, "prompt_tuning_init": "TEXT"}, "go together; set both or neither"),
        (PTuning, {"num_virtual_tokens": 2, "encoder_reparameterization_type": "GRU"}, "allowed are MLP, LSTM"),
        (PTuning, {"num_virtual_tokens": 2, "encoder_num_layers": 3}, "are for the LSTM; leave them out"),
        (PTuning, {"num_virtual_tokens": 2, "encoder_hidden_size": -4}, "encoder_hidden_size is -4; it must be at lea"),
        (
            PrefixTuning,
            {"num_virtual_tokens": 2, "prefix_projection": True, "encoder_hidden_size": 0},
            "encoder_hidden_size is 0; it must be at least 1, or null",
        ),
        (PrefixTuning, {"num_virtual_tokens": 2, "encoder_hidden_size": 8}, "is for prefix_projection, which is off"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(method, arguments, said):
    with pytest.raises(ValueError, match=said):
        method(**arguments)


def test_what_goes_together_with_nothing_is_refused_by_the_builder():
    with pytest.raises(ValueError, match="PromptTuning puts virtual tokens before each text and nothing on a project"):
        lora_decoder(CONFIG, lora_attn_modules=["q_proj"], adapter=PromptTuning(3))
    with pytest.raises(ValueError, match="lora_rank is for LoRA, and adapter puts PromptTuning in its place"):
        lora_decoder(CONFIG, lora_rank=4, adapter=PromptTuning(3))
    with pytest.raises(ValueError, match="num_virtual_tokens 63 leaves no room for a text: the model has 64 positions"):
        lora_decoder(CONFIG, adapter=PromptTuning(63))


def test_nothing_but_the_virtual_tokens_is_trained():
    model = filled(PTuning(3, encoder_hidden_size=8))
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert trained == set(adapter_state(model)) and all(name.startswith("prompt.") for name in trained)
    assert model.config.max_seq_len == decoder(CONFIG).config.max_seq_len - 3
