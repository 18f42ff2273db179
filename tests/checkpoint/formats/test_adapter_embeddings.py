"""Embeddings that are trained, in transformers' and PEFT's files and back."""

import json

import peft
import pytest
import torch
import transformers

from torchtune_lite.checkpoint import FullModelHFCheckpointer, put_saved_adapters
from torchtune_lite.errors import CheckpointError, ConfigError
from torchtune_lite.export import open_source
from torchtune_lite.export.comparison import log_probs
from torchtune_lite.models import from_checkpoint, grow_embeddings
from torchtune_lite.peft import IA3, AdaLoRA, train_tokens

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 2}
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture
def base(tmp_path):
    """Write a tiny Llama, tied or not, and return its folder."""

    def write(tied):
        torch.manual_seed(0)
        sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
        config = transformers.LlamaConfig(**sizes, tie_word_embeddings=tied, initializer_range=0.3)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return write


def built(checkpointer, ids, size=32, **arguments):
    """A loaded model that trains rows of `ids`, or both matrices whole, of other values than they had."""
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args, **arguments)
        grow_embeddings(model, size)
        if ids:
            train_tokens(model, ids, () if model.config.tie_word_embeddings else ids)
    checkpointer.load(model, **CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.2 * torch.randn_like(param))
    return model


def theirs(base, size):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if size > 32:
        model.resize_token_embeddings(size, mean_resizing=False)
    return model


@pytest.mark.parametrize("size", [32, 34])
@pytest.mark.parametrize("kind", ["whole", "rows", "rows alone"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_transformers_peft_and_ours_compute_alike(tied, kind, size, base, tmp_path):
    folder, ids = base(tied), None if kind == "whole" else [5, 9] if size == 32 else [9, 32, 33]
    arguments = {} if kind == "rows alone" else LORA
    checkpointer = FullModelHFCheckpointer(folder)
    model = built(checkpointer, ids, size, **arguments, train_embeddings="all" if kind == "whole" else "new")
    tokens = torch.tensor([[1, 5, 9, size - 1, 31, 7, 2, 5]])
    live = model(tokens)
    checkpointer.save(tmp_path / "out", model, verify=True)
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert config["peft_type"] == ("TRAINABLE_TOKENS" if kind == "rows alone" else "LORA")

    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.config.vocab_size == size and merged.config.tie_word_embeddings is tied
    torch.testing.assert_close(merged(tokens).logits, live, rtol=0, atol=1e-5)
    adapted = peft.PeftModel.from_pretrained(theirs(folder, size), tmp_path / "out/adapter")
    torch.testing.assert_close(adapted(tokens).logits, live, rtol=0, atol=1e-5)
    assert (theirs(folder, size)(tokens).logits - live).abs().max() > 0.1

    adapted.save_pretrained(tmp_path / "theirs")
    other = FullModelHFCheckpointer(folder, adapter_checkpoint=tmp_path / "theirs")
    with torch.device("meta"):
        again = from_checkpoint(**other.decoder_args)
    put_saved_adapters(other, again)
    other.load(again, **CPU)
    assert torch.equal(again(tokens), live)

    source = open_source(tmp_path / "out/adapter", folder)
    with torch.device("meta"):
        plain = from_checkpoint(**vars(source.config)).eval()
    torch.testing.assert_close(log_probs(plain, source.weights, tokens), live.log_softmax(-1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_new_rows_are_the_mean_of_the_others(base):
    checkpointer = FullModelHFCheckpointer(base(False))
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args)
        grow_embeddings(model, 35)
    checkpointer.load(model, **CPU)
    for weight in (model.tok_embeddings.weight, model.output.weight):
        torch.testing.assert_close(weight[32:], weight[:32].mean(0).expand(3, -1))


def test_a_model_that_has_grown_unasked_is_not_loaded(base):
    checkpointer = FullModelHFCheckpointer(base(False))
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args | {"vocab_size": 35})
    with pytest.raises(CheckpointError, match="has vocab_size 32, the model has 35"):
        checkpointer.load(model, **CPU)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trainable_token_indices": [5, 8]}, r"trainable_token_indices is \[5, 8\], the model trains"),
        ({"trainable_token_indices": None}, "trainable_token_indices is None, the model trains"),
        ({"trainable_token_indices": [5, 5]}, r"is \[5, 5\], not a list of tokens, or those of embed_tokens and lm"),
        ({"trainable_token_indices": {"wte": [5]}}, "not a list of tokens"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\], the model's is None"),
        ({"modules_to_save": ["q_proj"]}, r"modules_to_save is \['q_proj'\], which is not served; merge it in PEFT"),
    ],
)
def test_a_config_of_something_else_is_refused(changes, said, base, tmp_path):
    folder = base(True)
    model = built(FullModelHFCheckpointer(folder), [5, 9], **LORA, train_embeddings="new")
    FullModelHFCheckpointer(folder).save(tmp_path / "out", model, adapter_only=True)
    path = tmp_path / "out/adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=said):
        FullModelHFCheckpointer(folder, adapter_checkpoint=path.parent).load(model, **CPU)


def test_a_tied_embedding_that_was_trained_apart_from_the_output_is_refused(base, tmp_path):
    folder = base(True)
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(theirs(folder, 32), peft.LoraConfig(**config, modules_to_save=["embed_tokens"]))
    adapted.save_pretrained(tmp_path / "theirs")
    checkpointer = FullModelHFCheckpointer(folder, adapter_checkpoint=tmp_path / "theirs")
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args)
    put_saved_adapters(checkpointer, model)
    with pytest.raises(CheckpointError, match="whose output is the embedding and was not trained with it"):
        checkpointer.load(model, **CPU)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_other_methods_have_whole_matrices_beside_them(tied, base, tmp_path):
    folder = base(tied)
    checkpointer = FullModelHFCheckpointer(folder)
    arguments = {"target_modules": ["k_proj", "v_proj"], "adapter": IA3(), "train_embeddings": "all"}
    model, tokens = built(checkpointer, None, **arguments), torch.tensor([[1, 5, 9, 31, 7, 2, 5]])
    checkpointer.save(tmp_path / "out", model, verify=True)
    adapted = peft.PeftModel.from_pretrained(theirs(folder, 32), tmp_path / "out/adapter")
    torch.testing.assert_close(adapted(tokens).logits, model(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_adalora_has_rows_beside_it_as_in_peft(tied, base, tmp_path):
    folder = base(tied)
    checkpointer = FullModelHFCheckpointer(folder)
    arguments = {"target_modules": ["k_proj", "v_proj"], "adapter": AdaLoRA(4, 2), "train_embeddings": "new"}
    model, tokens = built(checkpointer, [9, 32, 33], 34, **arguments), torch.tensor([[1, 33, 9, 31, 7, 32, 5]])
    checkpointer.save(tmp_path / "out", model, verify=True)
    adapted = peft.PeftModel.from_pretrained(theirs(folder, 34), tmp_path / "out/adapter")
    torch.testing.assert_close(adapted(tokens).logits, model(tokens), rtol=0, atol=1e-5)


def test_rows_beside_other_methods_are_refused(base):
    checkpointer = FullModelHFCheckpointer(base(True))
    arguments = {"target_modules": ["k_proj"], "adapter": IA3(), "train_embeddings": "new"}
    with pytest.raises(ConfigError, match="PEFT has no rows of new tokens beside IA3; use LoRA, or train_embeddings"):
        built(checkpointer, [5, 9], **arguments)
