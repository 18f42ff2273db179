"""What a checkpoint of a model family looks like: its names and its sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torchtune_lite.models.convert import rename
from torchtune_lite.modules import DecoderConfig


@dataclass(frozen=True)
class Family:
    """One family as a table. In names, `{}` stands for the number of the layer.

    `hf_keys` and `meta_keys` map our parameter names to a checkpoint's; `ignored_keys` stand in checkpoints and carry
    nothing. `hf_fixed` are the values that an HF config.json must have, or leave out, for this decoder to compute the
    same function.
    """

    name: str
    hf_architecture: str
    hf_model_type: str
    hf_keys: Mapping[str, str]
    meta_keys: Mapping[str, str]
    ignored_keys: tuple[str, ...]
    hf_fixed: Mapping[str, Any]

    def to_hf(self, name: str) -> str:
        """Gives the Hugging Face name of our parameter `name`."""
        return rename(self.hf_keys, name) or name

    def to_meta(self, name: str) -> str:
        """Gives Meta's name of our parameter `name`."""
        return rename(self.meta_keys, name) or name

    def from_hf(self, name: str) -> str | None:
        """Gives our name of the Hugging Face parameter `name`, None for one to ignore; an unknown one stays."""
        return None if name.endswith(self.ignored_keys) else rename(self._from_hf_keys, name) or name

    def from_meta(self, name: str) -> str | None:
        """Gives our name of Meta's parameter `name`, None for one to ignore; an unknown one stays."""
        return None if name.endswith(self.ignored_keys) else rename(self._from_meta_keys, name) or name

    @cached_property
    def _from_hf_keys(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in self.hf_keys.items()}

    @cached_property
    def _from_meta_keys(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in self.meta_keys.items()}

    def decoder_args(self, hf_config: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the fields of `DecoderConfig` from a config.json; ValueError names what is not computed here."""
        for key, value in self.hf_fixed.items():
            if hf_config.get(key, value) != value:
                raise ValueError(f"config.json has {key} {hf_config[key]!r}; {self.name} models here have {value!r}")
        args = {
            "vocab_size": hf_config["vocab_size"],
            "num_layers": hf_config["num_hidden_layers"],
            "num_heads": hf_config["num_attention_heads"],
            "num_kv_heads": hf_config.get("num_key_value_heads") or hf_config["num_attention_heads"],
            "embed_dim": hf_config["hidden_size"],
            "intermediate_dim": hf_config["intermediate_size"],
            "max_seq_len": hf_config["max_position_embeddings"],
            "norm_eps": hf_config["rms_norm_eps"],
            "rope_base": self._rope_base(hf_config),
        }
        for name, value in args.items():
            kind, said = ((int, float), "number") if name in ("norm_eps", "rope_base") else (int, "whole number")
            if not isinstance(value, kind) or isinstance(value, bool) or not value > 0:
                raise ValueError(f"config.json gives {name} as {value!r}, not as a {said} above 0")
        return args

    def _rope_base(self, hf_config: Mapping[str, Any]) -> Any:
        """Reads the base of the rotary positions, which transformers 4 and 5 keep in different places."""
        ropes = [rope for key in ("rope_parameters", "rope_scaling") if (rope := hf_config.get(key))]
        for rope in ropes:
            if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
                raise ValueError(f"config.json has rope parameters {rope!r}, not a mapping of plain values")
            if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
                raise ValueError(f"config.json has rope type {kind!r}; {self.name} models here have 'default'")
        bases = [base for where in (hf_config, *ropes) if (base := where.get("rope_theta")) is not None]
        if any(base != bases[0] for base in bases):
            raise ValueError(
                f"config.json has several rope bases, {', '.join(map(repr, bases))}, and transformers 4 and 5 read "
                "different ones; leave the one that the model was trained with"
            )
        return bases[0] if bases else 10_000.0

    def decoder_args_meta(self, params: Mapping[str, Any], vocab_size: int, intermediate_dim: int) -> dict[str, Any]:
        """Reads the fields of `DecoderConfig` from Meta's params.json, which leaves two to the weights' shapes."""
        return {
            "vocab_size": vocab_size,
            "num_layers": params["n_layers"],
            "num_heads": params["n_heads"],
            "num_kv_heads": params.get("n_kv_heads") or params["n_heads"],
            "embed_dim": params["dim"],
            "intermediate_dim": intermediate_dim,
            "norm_eps": params["norm_eps"],
            "rope_base": params.get("rope_theta", 10_000.0),
        }

    def hf_config(self, config: DecoderConfig) -> dict[str, Any]:
        """Writes `config` as a config.json that transformers reads."""
        return {
            "architectures": [self.hf_architecture],
            "model_type": self.hf_model_type,
            "vocab_size": config.vocab_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "hidden_size": config.embed_dim,
            "intermediate_size": config.intermediate_dim,
            "max_position_embeddings": config.max_seq_len,
            "rms_norm_eps": config.norm_eps,
            "rope_theta": config.rope_base,
            **self.hf_fixed,
        }
