import gguf
import pytest

from tests.models.tiny import TINY, config
from torchtune_lite.errors import ConfigError
from torchtune_lite.export.gguf.architectures import ARCHITECTURES, architecture_of
from torchtune_lite.models import FAMILIES, SIZES
from torchtune_lite.modules import DecoderConfig, RopeScaling


def shape(name, **changes):
    values = config(name).to_dict()
    family = FAMILIES[values["model_type"]]
    return architecture_of(family.model_type), DecoderConfig(**family.decoder_args(values) | changes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_are_those_of_the_package_for_this_architecture(name):
    architecture = ARCHITECTURES[name]
    [kind] = [kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == name]
    known = {gguf.TENSOR_NAMES[tensor].format(bid=0) for tensor in gguf.MODEL_TENSORS[kind]}
    family = FAMILIES[architecture.model_types[0]]
    modules = {ours.rpartition(".")[0].format(0) for ours in family.hf_keys}
    modules -= set() if False in architecture.ties else {"output"}
    assert {architecture.module(ours) for ours in modules} <= known


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_modules_are_found_again_by_their_names(name):
    architecture = ARCHITECTURES[name]
    for ours in ("tok_embeddings", "layers.7.attn.k_proj", "layers.12.mlp.w3", "layers.0.mlp_norm"):
        assert ours in architecture.parts(architecture.module(ours))
    assert architecture.parts("blk.0.attn_sinks") == ()


def test_every_family_is_one_architecture_s():
    computed = [model_type for each in ARCHITECTURES.values() for model_type in each.model_types]
    assert sorted(computed) == sorted(FAMILIES)
    with pytest.raises(ConfigError, match="there is no GGUF for gpt_oss models here; export them with --to hf"):
        architecture_of("gpt_oss")


def test_every_published_size_is_computed():
    others = {"smollm2": "llama", "gemma3": "gemma3_text", "phi": "phi3", "granite4": "granitemoehybrid"}
    known = {name: name for name in FAMILIES} | others
    for name, size in SIZES.items():
        model_type = max((known[each] for each in known if name.startswith(each)), key=len, default="llama")
        architecture_of(model_type).check(size)


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("gemma2", {}, "scores scaled by 0.144338 instead of 0.125"),
        ("llama2", {"num_classes": 2}, "a classifier's output"),
        ("llama2", {"rotary_dim": 32}, "rotation of 32 of 64 dimensions"),
        ("llama2", {"rope_scaling": RopeScaling("yarn", 4.0, 64, truncate=False)}, "YaRN without truncate"),
        ("qwen3", {"rope_scaling": RopeScaling("llama3", 8.0, 64)}, "rope scaling of the kind llama3"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings: True"),
        ("smollm3", {"layer_kinds": ("full",)}, "layers of the kinds full, full, full, full"),
        ("exaone4", {}, "layers of the kinds sliding, sliding, sliding, nope"),
    ],
)
def test_what_the_code_does_not_compute_is_named(name, changes, problem):
    architecture, given = shape(name, **changes)
    with pytest.raises(ConfigError, match=f"llama.cpp has no {architecture.name} model with {problem}"):
        architecture.check(given)


@pytest.mark.parametrize("name", [name for name in TINY if name not in ("gemma2", "gemma3", "exaone4")])
def test_a_context_is_no_longer_than_a_window_that_is_not_computed(name):
    architecture, given = shape(name)
    architecture.check(given)
    lacking = "sliding" in given.layers and not architecture.has_windows(given.num_layers)
    assert architecture.context_length(given) == (given.window if lacking else given.max_seq_len)
