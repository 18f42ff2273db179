"""Quantise the weights of a model with torchao, for programs that load them so: transformers, vLLM.

    tune run quantize --config quantization model_dir=runs/demo/qlora/epoch_0 output_dir=models/demo-int8
    tune cp quantize my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Writes a model folder; `tune export --to int8` does the same. torchtune's recipe of this name took classes of torchao's
that are gone; `quantizer` names what is done instead.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from torchtune_lite import config, export, utils


@dataclass(kw_only=True)
class Settings:
    """The keys of this recipe's YAML."""

    model_dir: str | Path  # a run, a checkpoint, a model folder, or an adapter
    output_dir: str | Path  # must not exist
    quantizer: str = config.key("int8", choices=("int8", "int4", "fp8"))  # of the projections' weights


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Run the recipe."""
    log, folder = utils.get_logger(), Path(cfg.output_dir).expanduser()
    source = export.open_source(cfg.model_dir)
    difference = export.export_model(source, cfg.quantizer, folder, export.Options(folder.name))
    log.info("%s: %s", folder, difference)


if __name__ == "__main__":
    sys.exit(recipe_main())
