import json
from pathlib import Path

import pytest
import torch

from torchtune_lite.checkpoint import FullModelHFCheckpointer, FullModelMetaCheckpointer
from torchtune_lite.errors import CheckpointError, ConfigError

NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
}


def interleave(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Move row i of a head's first half to row 2i and of its second half to row 2i + 1, one row at a time."""
    rows, width = torch.empty_like(weight), len(weight) // num_heads
    for head in range(num_heads):
        for i in range(width // 2):
            rows[head * width + 2 * i] = weight[head * width + i]
            rows[head * width + 2 * i + 1] = weight[head * width + width // 2 + i]
    return rows


def write_meta(folder: Path, hf_base, k_heads: int = 2, **params) -> Path:
    """Write the base as Meta would; `k_heads` other than the model's two makes a wrong file."""
    folder.mkdir()
    state = {}
    for name, weight in hf_base.model.state_dict().items():
        for theirs, metas in NAMES.items():
            name = name.replace(theirs, metas)
        heads = 4 if ".wq." in name else k_heads if ".wk." in name else None
        state[name.removeprefix("model.")] = interleave(weight, heads) if heads else weight
    state["rope.freqs"] = torch.ones(16)
    torch.save(state, folder / "consolidated.00.pth")
    sizes = {"dim": 128, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "multiple_of": 32}
    (folder / "params.json").write_text(json.dumps({**sizes, "norm_eps": 1e-6, "rope_theta": 500.0, **params}))
    return folder


@pytest.fixture
def meta_base(hf_base, tmp_path: Path) -> Path:
    return write_meta(tmp_path / "meta", hf_base)


def test_a_checkpoint_of_meta_gives_the_logits(hf_base, meta_base, build, logits):
    checkpointer = FullModelMetaCheckpointer(meta_base, model_type="LLAMA2")
    assert (checkpointer.decoder_args["vocab_size"], checkpointer.decoder_args["intermediate_dim"]) == (96, 256)
    torch.testing.assert_close(logits(build(checkpointer), hf_base.tokens), hf_base.logits, rtol=0, atol=1e-4)


def test_k_permuted_with_the_number_of_query_heads_gives_others(hf_base, build, logits, tmp_path: Path):
    checkpointer = FullModelMetaCheckpointer(write_meta(tmp_path / "wrong", hf_base, k_heads=4), model_type="LLAMA2")
    assert (logits(build(checkpointer), hf_base.tokens) - hf_base.logits).abs().max() > 0.1


def test_a_saved_folder_has_the_layout_of_hugging_face(hf_base, meta_base, build, logits, tmp_path: Path, caplog):
    (meta_base / "tokenizer.model").write_bytes(b"not read here")
    with caplog.at_level("INFO"):
        checkpointer = FullModelMetaCheckpointer(meta_base)
    assert f"checkpoints of {meta_base} are written in the Hugging Face layout" in caplog.messages
    out = tmp_path / "out"
    checkpointer.save(out, build(checkpointer), verify=True)
    assert {path.suffix for path in out.iterdir()} <= {".json", ".safetensors", ".model", ".sha256"}
    assert (out / "tokenizer.model").exists()
    torch.testing.assert_close(logits(out, hf_base.tokens), hf_base.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        logits(build(FullModelHFCheckpointer(out)), hf_base.tokens), hf_base.logits, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(("factor", "params"), [(8.0, {}), (32.0, {"rope_scaling_factor": 32})])
def test_the_rotation_of_llama_3_1_is_scaled(hf_base, build, logits, tmp_path: Path, factor, params):
    folder = write_meta(tmp_path / "meta", hf_base, use_scaled_rope=True, **params)
    checkpointer = FullModelMetaCheckpointer(folder)
    scaling = checkpointer.decoder_args["rope_scaling"]
    assert (scaling.kind, scaling.factor, scaling.original_len) == ("llama3", factor, 8192)
    model = build(checkpointer)
    checkpointer.save(tmp_path / "out", model)
    torch.testing.assert_close(
        logits(tmp_path / "out", hf_base.tokens), logits(model, hf_base.tokens), rtol=0, atol=1e-4
    )
    assert (logits(model, hf_base.tokens) - hf_base.logits).abs().max() > 1e-3


def test_what_cannot_be_read_is_said(hf_base, meta_base):
    with pytest.raises(ConfigError, match="model_type: Meta published no qwen3 model; leave the key out"):
        FullModelMetaCheckpointer(meta_base, model_type="QWEN3")
    (meta_base / "consolidated.01.pth").touch()
    with pytest.raises(CheckpointError, match="split over 2 files"):
        FullModelMetaCheckpointer(meta_base, model_type="LLAMA2")
    one = FullModelMetaCheckpointer(meta_base, ["consolidated.00.pth"], model_type="LLAMA2")
    assert one.decoder_args["num_kv_heads"] == 2
    (meta_base / "params.json").write_text('{"dim": 128}')
    with pytest.raises(CheckpointError, match="lacks 'n_layers'"):
        FullModelMetaCheckpointer(meta_base, ["consolidated.00.pth"], model_type="LLAMA2")
    for file in meta_base.glob("*.pth"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        FullModelMetaCheckpointer(meta_base, model_type="LLAMA2")
