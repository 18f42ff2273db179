import pytest
import torch

from tests.models.tiny import TINY, config
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import CheckpointError
from torchtune_lite.export.gguf.architectures import architecture_of
from torchtune_lite.export.gguf.metadata import FACTORS, read_shape, rope_factors, write_shape
from torchtune_lite.models import FAMILIES
from torchtune_lite.modules import DecoderConfig, RopeScaling

COMPUTED_OTHERWISE = ("llama_dynamic", "mistral_v01", "ministral", "phi3")
"""What is left to the context, which ends where it begins to matter."""


def tensors_of(given):
    embedding = {"token_embd.weight": Weight.of(torch.empty(given.vocab_size, given.embed_dim, device="meta"))}
    output = {} if given.tie_word_embeddings else {"output.weight": embedding["token_embd.weight"]}
    return embedding | output | {name: Weight.of(values) for name, values in rope_factors(given).items()}


@pytest.mark.parametrize("name", TINY)
def test_a_shape_is_read_as_it_was_written(name):
    values = config(name).to_dict() | ({"query_pre_attn_scalar": 64} if name in ("gemma2", "gemma3") else {})
    values |= {"num_hidden_layers": 64} if name == "exaone4" else {}
    if name == "exaone4":
        values["layer_types"] = None
    family = FAMILIES[values["model_type"]]
    given = DecoderConfig(**family.decoder_args(values))
    architecture = architecture_of(family.model_type)
    metadata = {
        key: float(torch.tensor(value)) if isinstance(value, float) else value  # as float32 holds it
        for key, value in write_shape(architecture, given).items()
    }
    found = read_shape(architecture, metadata, tensors_of(given))
    differences = given.differences(found)
    if name in COMPUTED_OTHERWISE:
        differences = {
            key: v for key, v in differences.items() if key not in ("layer_kinds", "max_seq_len", "rope_scaling")
        }
    scaling = differences.pop("rope_scaling", None)
    assert differences == {}
    if scaling is not None:  # of which float32 has rounded some numbers
        ours, theirs = (vars(each) for each in scaling)
        assert ours["kind"] == theirs["kind"]
        for key in ("factor", "original_len", "amplitude", "long_factors", "short_factors", "query_beta"):
            assert torch.allclose(torch.tensor(ours[key]), torch.tensor(theirs[key]), rtol=1e-5)


def test_factors_that_are_not_llama_3_1_s_are_refused():
    architecture = architecture_of("llama")
    given = DecoderConfig(512, 2, 4, 4, 256, 512, rope_scaling=RopeScaling("llama3", 8.0, 64))
    metadata, tensors = write_shape(architecture, given), tensors_of(given)
    assert read_shape(architecture, metadata, tensors)["rope_scaling"] == given.rope_scaling
    tensors[FACTORS] = tensors[FACTORS].mapped(lambda factors: factors.sqrt())
    with pytest.raises(CheckpointError, match="rope_freqs.weight that are not those of Llama 3.1"):
        read_shape(architecture, metadata, tensors)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"llama.block_count": None}, "has no key llama.block_count"),
        ({"llama.attention.head_count_kv": [2, 2]}, "has a llama.attention.head_count_kv for each layer"),
        ({"llama.rope.scaling.type": "longrope"}, "scales its rotation as 'longrope'"),
    ],
)
def test_what_a_file_lacks_or_has_too_much_is_one_line(change, problem):
    architecture, given = architecture_of("llama"), DecoderConfig(512, 2, 4, 4, 256, 512)
    with pytest.raises(CheckpointError, match=problem):
        read_shape(architecture, write_shape(architecture, given) | change, tensors_of(given))
    with pytest.raises(CheckpointError, match="has no token_embd.weight"):
        read_shape(architecture, write_shape(architecture, given), {})
