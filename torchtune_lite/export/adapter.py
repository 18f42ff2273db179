"""An adapter in PEFT's layout that loads elsewhere: with a base name that means something there, tokenizer and card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_lite.checkpoint.formats.adapter import CONFIG, WEIGHTS, open_adapter
from torchtune_lite.checkpoint.formats.files import read_json, write_json
from torchtune_lite.checkpoint.formats.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.export.hf import write_tokenizer
from torchtune_lite.export.source import Source
from torchtune_lite.peft import FILES

CARD = """\
---
base_model: {base}
library_name: peft
tags: [{kind}, torchtune_lite]
---

# {name}

A {kind} adapter of [{base}](https://huggingface.co/{base}) on {targets}{numbers}.

    from peft import AutoPeftModelForCausalLM
    model = AutoPeftModelForCausalLM.from_pretrained("{name}")
"""


def write_peft(source: Source, folder: Path, base_name: str | None, name: str) -> None:
    """Write the adapter of a source, value by value as it is, with the arguments of `write_adapter_folder`."""
    adapter = source.adapter_folder
    weights = open_adapter(source.model, adapter, source.layout).weights
    write_adapter_folder(source, folder, weights, read_json(adapter / CONFIG), base_name, name)


def write_adapter_folder(
    source: Source,
    folder: Path,
    weights: Mapping[str, Weight],
    config: Mapping[str, Any],
    base_name: str | None,
    name: str,
) -> None:
    """Write an adapter of PEFT's with tokenizer and card; `base_name` is what PEFT loads its base by.

    Without it, that is the name that the base's config.json has for itself, or its folder's.
    """
    own = read_json(source.found.base / "config.json").get("_name_or_path") or ""
    base = base_name or (own if own.count("/") == 1 else source.found.base.resolve().name)
    write_safetensors(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, {**config, "base_model_name_or_path": base})
    write_tokenizer(source, folder)
    targets = config.get("target_modules")
    targets = targets if isinstance(targets, list) else [targets]
    kind, numbers = FILES[config["peft_type"]].described(config)
    card = CARD.format(base=base, name=name, kind=kind, numbers=numbers, targets=", ".join(targets))
    (folder / "README.md").write_text(card, encoding="utf-8")
