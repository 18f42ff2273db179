import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.errors import CheckpointError
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.peft import dequantize, is_quantized


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).abs().max().item() < 1e-4


def test_a_checkpoint_of_transformers_gives_its_logits(hf_base, build, logits):
    assert same(logits(build(FullModelHFCheckpointer(hf_base.dir)), hf_base.tokens), hf_base.logits)


def test_a_saved_model_is_loaded_by_transformers(hf_base, build, logits, tmp_path: Path):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(checkpointer)
    for param in model.parameters():
        param.data *= 1.1
    checkpointer.save(tmp_path / "out", model)
    live = logits(model, hf_base.tokens)
    assert same(logits(tmp_path / "out", hf_base.tokens), live) and not same(live, hf_base.logits)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "MANIFEST.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
    ]


def test_shards_keep_their_names_and_their_weights(hf_base, build, logits, tmp_path: Path):
    hf_base.model.save_pretrained(tmp_path / "base", max_shard_size="300KB")
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    checkpointer = FullModelHFCheckpointer(tmp_path / "base")
    model = build(checkpointer)
    assert same(logits(model, hf_base.tokens), hf_base.logits)
    checkpointer.save(tmp_path / "out", model)
    saved = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert saved["weight_map"] == index["weight_map"]
    assert saved["metadata"]["total_size"] == index["metadata"]["total_size"]
    assert same(logits(tmp_path / "out", hf_base.tokens), hf_base.logits)


def test_torch_files_are_read_and_come_out_as_safetensors(hf_base, build, logits, tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(hf_base.dir / "config.json", base)
    state = hf_base.model.state_dict()
    names = sorted(state)
    for i, part in enumerate((names[:9], names[9:]), start=1):
        torch.save({name: state[name] for name in part}, base / f"pytorch_model-0000{i}-of-00002.bin")
    checkpointer = FullModelHFCheckpointer(base)
    model = build(checkpointer)
    assert same(logits(model, hf_base.tokens), hf_base.logits)
    checkpointer.save(tmp_path / "out", model)
    assert len(list((tmp_path / "out").glob("model-0000?-of-00002.safetensors"))) == 2
    assert same(logits(tmp_path / "out", hf_base.tokens), hf_base.logits)


@pytest.mark.parametrize("other", ["extra.safetensors", "pytorch_model.bin"])
def test_one_of_several_files_is_not_saved_under_the_name_of_the_whole(hf_base, build, logits, tmp_path: Path, other):
    """transformers would read model.safetensors as the model, despite the index."""
    shutil.copytree(hf_base.dir, tmp_path / "base")
    weights = load_file(hf_base.dir / "model.safetensors")
    head = {"lm_head.weight": weights.pop("lm_head.weight")}
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    if other.endswith(".bin"):
        torch.save(head, tmp_path / "base" / other)
    else:
        save_file(head, tmp_path / "base" / other)
    checkpointer = FullModelHFCheckpointer(tmp_path / "base", ["model.safetensors", other])
    model = build(checkpointer)
    checkpointer.save(tmp_path / "out", model, verify=True)
    saved = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert saved == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert same(logits(tmp_path / "out", hf_base.tokens), hf_base.logits)


def test_the_weights_that_config_json_names_are_asked_for(hf_base, build, logits, tmp_path: Path):
    shutil.copytree(hf_base.dir, tmp_path / "base")
    config = json.loads((hf_base.dir / "config.json").read_text()) | {"transformers_weights": "other.safetensors"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="the weights that transformers reads, 'other.safetensors'; name the"):
        FullModelHFCheckpointer(tmp_path / "base")
    checkpointer = FullModelHFCheckpointer(tmp_path / "base", ["model.safetensors"])
    checkpointer.save(tmp_path / "out", build(checkpointer))
    assert same(logits(tmp_path / "out", hf_base.tokens), hf_base.logits)


def test_config_says_the_dtype_that_was_saved(hf_base, build, tmp_path: Path):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    checkpointer.save(tmp_path / "out", build(checkpointer, dtype=torch.bfloat16))
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    base = json.loads((hf_base.dir / "config.json").read_text())
    assert saved == {**base, "dtype": "bfloat16", "torch_dtype": "bfloat16"} and base["dtype"] == "float32"
    weights = load_file(tmp_path / "out" / "model.safetensors")
    state = hf_base.model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name].bfloat16()) for name in state)


def test_merged_lora_weights_give_the_live_logits(hf_base, build, logits, tmp_path: Path):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(
        checkpointer, lora_attn_modules=["q_proj", "k_proj"], apply_lora_to_mlp=True, apply_lora_to_output=True
    )
    checkpointer.save(tmp_path / "out", model)
    live = logits(model, hf_base.tokens)
    assert same(logits(tmp_path / "out", hf_base.tokens), live) and not same(live, hf_base.logits)


def test_an_nf4_model_is_saved_dequantised_and_stays_quantised(hf_base, build, logits, tmp_path: Path):
    checkpointer = FullModelHFCheckpointer(hf_base.dir)
    model = build(checkpointer, lora_attn_modules=["q_proj", "output_proj"], quantize_base=True)
    checkpointer.save(tmp_path / "out", model)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    attn = model.layers[1].attn
    update = attn.q_proj.scaling * attn.q_proj.lora_b.weight @ attn.q_proj.lora_a.weight
    expected = dequantize(attn.q_proj.weight) + update
    assert is_quantized(attn.q_proj.weight) and not is_quantized(attn.k_proj.weight)
    torch.testing.assert_close(saved["model.layers.1.self_attn.q_proj.weight"], expected.detach(), rtol=0, atol=1e-6)
    assert same(logits(tmp_path / "out", hf_base.tokens), logits(model, hf_base.tokens))
    original = hf_base.model.state_dict()["model.layers.1.self_attn.q_proj.weight"]
    assert (dequantize(attn.q_proj.weight) - original).abs().max() > 1e-3  # the base was quantised indeed


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "zamba"},
            r"of LlamaForCausalLM \(model_type 'zamba'\), which is not served; served are .*llama",
        ),
        ({"hidden_size": ...}, "lacks 'hidden_size'"),
        ({"model_type": "mixtral"}, "which is not served: it has experts; served are"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised export \(gptq\)"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}}, "rope type 'spiral'"),
    ],
)
def test_a_config_of_another_model_is_refused(hf_base, tmp_path: Path, changes: dict, message: str):
    shutil.copytree(hf_base.dir, tmp_path / "base")
    edit(tmp_path / "base", **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        FullModelHFCheckpointer(tmp_path / "base")
    assert "\n" not in str(error.value)


def test_model_type_must_be_the_checkpoints(hf_base, tmp_path: Path):
    assert FullModelHFCheckpointer(hf_base.dir, model_type="LLAMA2").family is LLAMA
    shutil.copytree(hf_base.dir, tmp_path / "base")
    edit(tmp_path / "base", model_type="qwen2")
    with pytest.raises(CheckpointError, match="of a 'qwen2' model, not of llama; leave checkpointer.model_type out"):
        FullModelHFCheckpointer(tmp_path / "base", model_type="LLAMA2")


def test_rotary_tables_of_old_checkpoints_are_passed_over(hf_base, build, logits, tmp_path: Path):
    shutil.copytree(hf_base.dir, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(weights, tmp_path / "base" / "model.safetensors")
    assert same(logits(build(FullModelHFCheckpointer(tmp_path / "base")), hf_base.tokens), hf_base.logits)
