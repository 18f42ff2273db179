"""Every family against transformers and PEFT, on the models of `tiny`."""

import dataclasses
import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.models import tiny
from torchtune_lite import kernels
from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.checkpoint.formats.adapter import write_adapter
from torchtune_lite.models import FAMILIES, from_checkpoint
from torchtune_lite.models.builders import decoder
from torchtune_lite.modules import CachedSequences, DecoderConfig, transformer
from torchtune_lite.peft import dequantize, is_quantized

ALL = ["q_proj", "k_proj", "v_proj", "output_proj"]
LORA = {"lora_attn_modules": ALL, "apply_lora_to_mlp": True, "lora_rank": 8, "lora_alpha": 16}
HF_TARGETS = ["q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"]
HF_TARGETS += ["input_linear", "output_linear"]
LENGTHS = [20, 5, 23]
every_family = pytest.mark.parametrize("name", tiny.TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a tiny model."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def of(name):
        if name not in made:
            made[name] = root / name
            tiny.make(name).save_pretrained(made[name])
        return made[name]

    return of


def load(folder, dtype=torch.float32, **changes):
    """Our model of a folder, as a recipe loads it."""
    checkpointer = FullModelHFCheckpointer(folder)
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args | changes)
    checkpointer.load(model, device="cpu", dtype=dtype)
    return model.eval(), checkpointer


def error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def tokens_of(length, batch=2):
    return torch.randint(3, 512, (batch, length), generator=torch.Generator().manual_seed(length))


def test_each_kind_of_layer_is_among_the_models():
    kinds = {kind for name in tiny.TINY for kind in DecoderConfig(**args_of(name)).layers}
    assert kinds == {"full", "sliding", "nope"}
    assert {tiny.config(name).model_type for name in tiny.TINY} == set(FAMILIES)


def args_of(name):
    config = tiny.config(name).to_dict()
    return FAMILIES[config["model_type"]].decoder_args(config)


@every_family
@torch.no_grad()
def test_logits_are_those_of_transformers(name, folder):
    """With the fast paths and without, for texts shorter and longer than windows and original lengths."""
    ours, _ = load(folder(name), max_seq_len=256)
    for length in (24, 48, 100):
        if name == "llama_dynamic" and length > 32:  # of which ours depends on the length that the file says
            ours, _ = load(folder(name))
            object.__setattr__(ours.config, "max_seq_len", 256)
        expected = tiny.make(name)(tokens_of(length)).logits
        assert error(ours(tokens_of(length)), expected) < 1e-5
        with kernels.plain():
            assert error(ours(tokens_of(length)), expected) < 1e-5


@every_family
@torch.no_grad()
def test_packed_sequences_and_cached_keys_compute_the_same(name, folder):
    ours, _ = load(folder(name))
    object.__setattr__(ours.config, "max_seq_len", 256)
    texts = [tokens_of(length, 1) for length in LENGTHS]
    alone = torch.cat([ours(text) for text in texts], 1)
    assert error(ours(torch.cat(texts, 1), seq_lens=LENGTHS), alone) < 1e-5
    tokens = tokens_of(48)
    whole = ours(tokens)
    ours.setup_caches(2, 48)
    pieces = []
    for start, end in ((0, 20), *((i, i + 1) for i in range(20, 48))):
        sequences = CachedSequences([0, 1], [start] * 2, [end - start] * 2, tokens.device, [48, 48])
        pieces.append(ours(tokens[:, start:end].flatten()[None], mask=sequences).view(2, end - start, -1))
    assert error(torch.cat(pieces, 1), whole) < 1e-5


@every_family
def test_a_checkpoint_is_written_as_it_was_read(name, folder, tmp_path):
    ours, checkpointer = load(folder(name))
    checkpointer.save(tmp_path / "out", ours, verify=True)
    theirs, mine = (load_file(each / "model.safetensors") for each in (folder(name), tmp_path / "out"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    configs = [tiny.read_config(each) for each in (folder(name), tmp_path / "out")]
    assert {key for key in configs[1] if configs[0].get(key) != configs[1][key]} <= {"dtype", "torch_dtype"}


def peft_model(name):
    """The model of transformers with adapters of PEFT on all projections, their factors random."""
    theirs = tiny.make(name)
    every = {path.rpartition(".")[2] for path, _ in theirs.named_modules()}
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=[each for each in HF_TARGETS if each in every])
    model = peft.get_peft_model(theirs, config).eval()
    generator = torch.Generator().manual_seed(1)
    for param_name, param in model.named_parameters():
        if "lora_" in param_name:
            param.data = 0.05 * torch.randn(param.shape, generator=generator)
    return model


@every_family
def test_adapters_of_peft_compute_the_same_and_have_its_gradients(name, folder, tmp_path):
    theirs = peft_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    checkpointer = FullModelHFCheckpointer(folder(name), adapter_checkpoint=tmp_path / "theirs")
    with torch.device("meta"):
        ours = from_checkpoint(**checkpointer.decoder_args | LORA)
    checkpointer.load(ours, device="cpu", dtype=torch.float32)
    ours.eval()
    tokens = tokens_of(30)
    expected, found = theirs(input_ids=tokens).logits, ours(tokens)
    assert error(found, expected) < 1e-5
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * probe).sum().backward()
    (found * probe).sum().backward()
    grads = {key.replace(".default", ""): param.grad for key, param in theirs.named_parameters() if "lora_" in key}
    for key, grad in _by_peft_name(ours, checkpointer.layout).items():
        assert error(grad, grads.pop(key)) < 1e-4, key
    assert grads == {}

    write_adapter(tmp_path / "ours", ours, checkpointer.layout, folder(name))
    again = peft.PeftModel.from_pretrained(tiny.make(name), tmp_path / "ours").eval()
    assert error(again(input_ids=tokens).logits, expected) < 1e-5


def _by_peft_name(model, layout):
    """Our gradients in PEFT's form: for a fused matrix, whose parts here got the same A, the sum of those of A."""
    from torchtune_lite.checkpoint.formats.adapter_config import projections

    found = {}
    for each in projections(model, layout):
        prefix = f"base_model.model.{each.path}"
        found[f"{prefix}.lora_A.weight"] = sum(part.lora_a.weight.grad for part in each.adapters)
        found[f"{prefix}.lora_B.weight"] = torch.cat([part.lora_b.weight.grad for part in each.adapters])
    return found


@every_family
def test_fused_products_have_the_gradients_of_plain_ones(name, folder):
    grads = []
    for fused in (True, False):
        ours, _ = load(folder(name), **LORA, fused_lora=fused)
        generator = torch.Generator().manual_seed(1)
        for param in ours.parameters():
            if param.requires_grad:
                param.data = 0.05 * torch.randn(param.shape, generator=generator)
        loss = ours.train()(tokens_of(30)).square().mean() if fused else ours.eval()(tokens_of(30)).square().mean()
        grads.append(torch.autograd.grad(loss, [param for param in ours.parameters() if param.requires_grad]))
    if ours.config.attn_dropout == 0:
        assert all(error(one, other) < 1e-4 for one, other in zip(*grads, strict=True))


@every_family
@torch.no_grad()
def test_nf4_computes_what_its_values_say(name, folder):
    ours, _ = load(folder(name), **LORA, quantize_base=True)
    quantised = {key: param for key, param in ours.named_parameters() if is_quantized(param)}
    assert len(quantised) == 7 * ours.config.num_layers
    plain = decoder(ours.config).eval()
    plain.load_state_dict({key: dequantize(param) for key, param in ours.named_parameters() if "lora_" not in key})
    assert error(ours(tokens_of(30)), plain(tokens_of(30))) < 1e-5


CONFIG_FAULTS = {
    "Gemma 2 without the cap of attention": ("gemma2", {"attn_softcap": None}),
    "Gemma 2 without a window": ("gemma2", {"window": 256}),
    "Gemma 2 with a window that is one too wide": ("gemma2", {"window": 9}),
    "Gemma 2 scaled by the width of its heads": ("gemma2", {"attn_scale": None}),
    "Gemma 2 without the cap of logits": ("gemma2", {"logit_softcap": None}),
    "Gemma 2 with its caps in each other's place": ("gemma2", {"attn_softcap": 3.0, "logit_softcap": 5.0}),
    "Gemma 3 without its scaling": ("gemma3", {"rope_scaling": None}),
    "Gemma 3 with one base": ("gemma3", {"local_rope_base": None}),
    "Gemma 3 with full layers only": ("gemma3", {"layer_kinds": ("full",)}),
    "Gemma with SiLU": ("gemma", {"activation": "silu"}),
    "Llama 3.1 without its scaling": ("llama3_1", {"rope_scaling": None}),
    "Granite without multipliers": (
        "granite",
        {"embed_scale": 1.0, "residual_scale": 1.0, "attn_scale": None, "logit_scale": 1.0},
    ),
    "Mistral without a window": ("mistral_v01", {"window": 256}),
    "OLMo 3 with YaRN in all layers": ("olmo3", {"local_rope_base": None}),
    "Phi-4-mini with whole heads rotated": ("phi4_mini", {"rotary_dim": None, "rope_scaling": None}),
    "SmolLM3 rotated everywhere": ("smollm3", {"layer_kinds": ("full",)}),
    "Ministral 3 without its query scale": ("ministral3", {"query_beta": 0.0}),
    "Phi-3 128k with short factors always": ("phi3_128k", {"original_len": 10_000}),
    "YaRN without its amplitude": ("llama_yarn", {"amplitude": 1.0}),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
@torch.no_grad()
def test_a_fault_of_the_config_would_be_seen(fault, folder):
    """The test of the test: most of these faults go unseen on models as transformers initialises them."""
    name, changes = CONFIG_FAULTS[fault]
    ours, _ = load(folder(name))
    scaling = {key: changes[key] for key in changes if key in ("query_beta", "original_len", "amplitude")}
    if scaling:
        changes = {"rope_scaling": dataclasses.replace(ours.config.rope_scaling, **scaling)}
    faulty = decoder(dataclasses.replace(ours.config, **changes)).eval()
    faulty.load_state_dict(ours.state_dict())
    expected = tiny.make(name)(tokens_of(100)).logits
    assert error(ours(tokens_of(100)), expected) < 1e-5
    assert error(faulty(tokens_of(100)), expected) > 2e-3


@torch.no_grad()
def test_biases_that_are_left_out_would_be_seen(folder):
    ours, _ = load(folder("qwen2"))
    for layer in ours.layers:
        layer.attn.k_proj.bias.zero_()
    assert error(ours(tokens_of(48)), tiny.make("qwen2")(tokens_of(48)).logits) > 1e-2


@torch.no_grad()
def test_a_norm_of_queries_and_keys_after_their_rotation_would_be_seen(folder, monkeypatch):
    ours, _ = load(folder("qwen3"))
    attend, layers = transformer.attention, iter(ours.layers)

    def norm_late(q, k, *rest, **options):
        attn = next(layers).attn
        return attend(attn.q_norm(q), attn.k_norm(k), *rest, **options)

    monkeypatch.setattr(transformer, "attention", norm_late)
    for layer in ours.layers:
        layer.attn.qk_norm = None
    assert error(ours(tokens_of(48)), tiny.make("qwen3")(tokens_of(48)).logits) > 1e-2


# --- what files may hold besides ---


def rewritten(source, target, change, config=None):
    """Copy a folder, with changed tensors."""
    from safetensors.torch import save_file

    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    save_file(change(tensors), target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(tiny.read_config(source) | (config or {})))
    return target


def test_a_copy_of_the_embedding_is_left_out(folder, tmp_path):
    both = rewritten(
        folder("qwen3"), tmp_path / "both", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()}
    )
    ours, checkpointer = load(both)
    assert "output.weight" not in dict(ours.named_parameters())
    checkpointer.save(tmp_path / "out", ours, verify=True)
    assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")


def test_an_output_of_its_own_beside_a_tie_is_an_error_or_used(folder, tmp_path):
    from torchtune_lite.errors import CheckpointError

    source = rewritten(
        folder("qwen3"), tmp_path / "own", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] * 2}
    )
    with pytest.raises(CheckpointError, match="other values than the embedding.*tie_word_embeddings: False"):
        load(source)
    ours, checkpointer = load(source, tie_word_embeddings=False)
    assert torch.equal(ours.output.weight, 2 * ours.tok_embeddings.weight)
    checkpointer.save(tmp_path / "out", ours, verify=True)
    assert tiny.read_config(tmp_path / "out")["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    "prefix", [("language_model.model.", "language_model.lm_head."), ("model.language_model.", "lm_head.")]
)
@pytest.mark.parametrize("name", ["gemma3", "mistral_nemo"])
def test_what_a_larger_model_has_besides_its_text_model_is_carried(name, prefix, folder, tmp_path):
    body, head = prefix

    def within(tensors):
        renamed = {key.replace("lm_head.", head).replace("model.", body, 1) if key.startswith("model.")
                   else key.replace("lm_head.", head): value for key, value in tensors.items()}  # fmt: skip
        return renamed | {"vision_tower.patch.weight": torch.randn(3, 4), "multi_modal_projector.norm": torch.ones(2)}

    text = tiny.read_config(folder(name))
    source = tmp_path / "source"
    rewritten(folder(name), source, within)
    (source / "config.json").write_text(json.dumps({
        "model_type": "larger", "architectures": ["LargerForConditionalGeneration"], "text_config": text,
        "tie_word_embeddings": text.get("tie_word_embeddings", name == "gemma3"),
    }))  # fmt: skip
    ours, checkpointer = load(source)
    plain, _ = load(folder(name))
    with torch.no_grad():
        assert torch.equal(ours(tokens_of(9)), plain(tokens_of(9)))
    checkpointer.save(tmp_path / "out", ours, verify=True)
    theirs, mine = (load_file(each / "model.safetensors") for each in (source, tmp_path / "out"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)
