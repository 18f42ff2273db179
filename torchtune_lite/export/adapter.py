"""An adapter in PEFT's layout that loads elsewhere: with a base name that means something there, tokenizer and card."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchtune_lite.checkpoint.formats.adapter import CONFIG, WEIGHTS, open_adapter
from torchtune_lite.checkpoint.formats.files import read_json, write_json
from torchtune_lite.checkpoint.formats.safetensors_stream import write_safetensors
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.export.hf import write_tokenizer
from torchtune_lite.export.source import Source
from torchtune_lite.hub import CARD, RunFacts, model_card, repository_name


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
    config = {**config, "base_model_name_or_path": base}
    write_safetensors(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, config)
    write_tokenizer(source, folder)
    facts = replace(RunFacts.of(source.adapter_folder.parent, repository_name(base)), base=base, adapter=config)
    (folder / CARD).write_text(model_card(name, facts, "adapter"), encoding="utf-8")
