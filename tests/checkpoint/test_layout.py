"""Names and matrices of a checkpoint against our parameters; whole models of every family in tests/models."""

import pytest
import torch

from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import FAMILIES
from torchtune_lite.modules import DecoderConfig

CONFIG = DecoderConfig(10, 1, 4, 2, 16, 32, 24, head_dim=4)
QKV = "model.layers.0.self_attn.qkv_proj.weight"


def layout(family="phi3", within=False, **changes):
    return HFLayout(FAMILIES[family], DecoderConfig(**vars(CONFIG) | changes), within)


def weights(**tensors):
    return {name: Weight.of(tensor) for name, tensor in tensors.items()}


def test_a_fused_matrix_is_split_by_rows_and_joined_again():
    fused = torch.randn(16 + 8 + 8, 16)
    one = layout()
    ours = one.ours({QKV: Weight.of(fused)})
    assert {name: weight.shape for name, weight in ours.items()} == {
        "layers.0.attn.q_proj.weight": (16, 16),
        "layers.0.attn.k_proj.weight": (8, 16),
        "layers.0.attn.v_proj.weight": (8, 16),
    }
    assert torch.equal(ours["layers.0.attn.k_proj.weight"].read(), fused[16:24])
    back = one.theirs(ours)
    assert list(back) == [QKV] and back[QKV].shape == (32, 16) and torch.equal(back[QKV].read(), fused)


@pytest.mark.parametrize(("rows", "message"), [(31, r"has the shape \[31, 16\]; by config.json it has 32 rows")])
def test_a_fused_matrix_of_other_rows_is_refused(rows, message):
    with pytest.raises(CheckpointError, match=f"{QKV} {message}"):
        layout().ours({QKV: Weight.of(torch.zeros(rows, 16))})


def test_a_copy_of_the_embedding_is_left_out_and_another_output_is_an_error():
    one, embedding = layout("llama", tie_word_embeddings=True), torch.randn(10, 16)
    names = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    found = one.ours(weights(**names))
    assert list(found) == ["tok_embeddings.weight"]
    one.check_tied(found)
    names["lm_head.weight"] += 1
    with pytest.raises(CheckpointError, match="has lm_head.weight with other values than the embedding"):
        one.check_tied(one.ours(weights(**names)))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_what_a_larger_model_has_besides_is_carried_under_its_name(prefix):
    one = layout("llama", within=True)
    tensors = {f"{prefix}norm.weight": torch.ones(16), "vision_tower.x": torch.zeros(3)}
    ours = one.ours(weights(**tensors))
    assert list(ours) == ["norm.weight"] and list(one.carried) == ["vision_tower.x"]
    assert set(one.theirs(ours)) == set(tensors)
    assert one.module_path("norm.weight") == "model.language_model.norm"


def test_the_output_of_a_classifier_is_its_score():
    one = layout("llama", num_classes=2)
    assert one.our_name("score.weight") == "output.weight" and one.their_name("output.weight") == "score.weight"
    assert layout("llama").their_name("output.weight") == "lm_head.weight"
