from pathlib import Path

import pytest
import torch

from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.checkpoint.sizes import check_sizes, grown_embeddings
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models import grow_embeddings
from torchtune_lite.models.builders import decoder
from torchtune_lite.modules import DecoderConfig

SIZES = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16, "vocab_size": 32}


def model(rows=0, **more):
    with torch.device("meta"):
        built = decoder(DecoderConfig(**SIZES | {"max_seq_len": 16} | more))
        grow_embeddings(built, built.config.vocab_size + rows)
    return built


def test_rows_that_were_added_are_the_mean_of_the_others():
    embedding = torch.randn(32, 16).bfloat16()
    weights = {"tok_embeddings.weight": Weight.of(embedding), "norm.scale": Weight.of(torch.ones(16))}
    assert grown_embeddings(weights, model(), SIZES) == {}
    [(name, grown)] = grown_embeddings(weights, model(rows=2), SIZES).items()
    assert name == "tok_embeddings.weight" and grown.shape == (34, 16)
    values = grown.read()
    assert torch.equal(values[:32], embedding)
    assert torch.equal(values[32:], embedding.float().mean(0).bfloat16().expand(2, -1))


def test_a_checkpoint_that_has_them_is_left_as_it_is():
    check_sizes(model(rows=2), SIZES | {"vocab_size": 34}, Path("x"))
    assert grown_embeddings({}, model(rows=2), SIZES | {"vocab_size": 34}) == {}


def test_any_other_size_is_an_error():
    check_sizes(model(rows=2), SIZES | {"max_seq_len": 99}, Path("x"))
    for rows, args in ((0, {"vocab_size": 30}), (2, {"vocab_size": 33}), (0, {"num_layers": 2})):
        with pytest.raises(CheckpointError, match="checkpoint x has (vocab_size|num_layers) .*, the model has"):
            check_sizes(model(rows), SIZES | args, Path("x"))
