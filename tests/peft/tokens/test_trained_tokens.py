"""Rows of tokens that are trained alone, against PEFT's numbers on the tiny Llama and against the whole matrix."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.peft.test_reference import CONFIG, TOKENS, filled, measured, wave
from torchtune_lite.generation.weights import inference_weights
from torchtune_lite.models.builders import decoder, lora_decoder
from torchtune_lite.modules.loss import LinearCrossEntropyLoss
from torchtune_lite.peft import adapter_modules, adapters_off, freeze_base, train_tokens

IDS = [5, 9, 31]


def trained(config=CONFIG, output=(), numbers=(0, 1)):
    """The tiny Llama of the reference, with trained rows that are waves."""
    model = filled(decoder(config))
    train_tokens(model, IDS, output)
    freeze_base(model)
    with torch.no_grad():
        for number, module in zip(numbers, adapter_modules(model).values(), strict=False):
            module.init_adapter()
            module.rows.copy_(wave(number, module.rows.shape, 0.2, 0.9))
    return model


def test_loss_logit_and_gradient_are_pefts():
    model = trained()
    values = measured(model)
    assert values == pytest.approx({"loss": 3.450997, "logit": 0.184298}, abs=1e-6)
    assert model.tok_embeddings.rows.grad.norm().item() == pytest.approx(0.869784, abs=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_is_that_of_the_rows_of_the_whole_matrix(tied):
    """With the loss that has the output inside it, as in training."""
    config = replace(CONFIG, tie_word_embeddings=tied)
    model = trained(config, () if tied else IDS)
    plain = decoder(config).double()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.endswith(".rows")})
    with torch.no_grad():
        for name, module in adapter_modules(model).items():
            plain.get_parameter(f"{name}.weight")[IDS] = module.rows
    losses = []
    for each in (model, plain):
        hidden = each(TOKENS, skip_output=True)
        loss = LinearCrossEntropyLoss(chunk_size=3)(each.output, hidden, TOKENS.roll(-1, 1))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    for name, module in adapter_modules(model).items():
        expected = plain.get_parameter(f"{name}.weight").grad[IDS]
        torch.testing.assert_close(module.rows.grad, expected, rtol=1e-6, atol=1e-9)
        assert torch.equal(module.merged_weight(), plain.get_parameter(f"{name}.weight"))


def test_generation_first_and_training_after_it_see_the_same_rows():
    model = trained(output=IDS)
    with torch.inference_mode(), inference_weights(model):
        answered = model(TOKENS)
    live = model(TOKENS)
    torch.testing.assert_close(live.detach(), answered)
    live.sum().backward()
    with adapters_off(model), torch.no_grad():
        torch.testing.assert_close(model(TOKENS), filled(decoder(CONFIG))(TOKENS), rtol=0, atol=0)


def test_tiles_are_those_of_the_merged_weight(monkeypatch):
    module = trained().tok_embeddings
    monkeypatch.setattr("torchtune_lite.kernels.nf4.linear.TILE", 5 * 16)
    tiles = list(module.merged_tiles())
    assert len(tiles) > 3
    assert torch.equal(torch.cat([values for _, values in tiles]), module.merged_weight().float())


def test_refuses_what_it_cannot_train():
    with pytest.raises(ValueError, match=r"the tokens \[5, 5\] are not different ones of 32"):
        train_tokens(decoder(CONFIG), [5, 5])
    with pytest.raises(ValueError, match="are not different ones of 32"):
        train_tokens(decoder(CONFIG), [32])
    on_output = {"lora_attn_modules": ["q_proj"], "apply_lora_to_output": True}
    with pytest.raises(ValueError, match="no row can be trained in an output projection that carries an adapter"):
        train_tokens(lora_decoder(CONFIG, **on_output), IDS, IDS)
    with pytest.raises(ValueError, match="train_embeddings: all cannot train an output projection that carries an ad"):
        lora_decoder(CONFIG, **on_output, train_embeddings="all")


def test_all_trains_both_matrices_and_nothing_else_of_the_base():
    model = filled(lora_decoder(CONFIG, lora_attn_modules=["q_proj"], train_embeddings="all"))
    F.cross_entropy(model(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    named = {name for name, param in model.named_parameters() if param.grad is not None and "lora" not in name}
    assert named == {"tok_embeddings.weight", "output.weight"}
    no_base = pytest.raises(ValueError, match="tok_embeddings.weight is trained itself, so that there is no base left")
    with no_base, adapters_off(model):
        pass
