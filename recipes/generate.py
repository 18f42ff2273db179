"""Continues a prompt with a model, on one device.

    tune run generate --config generation checkpointer.checkpoint_dir=runs/demo/epoch_0 prompt.user="Tell me a joke."
    tune cp generate my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Prints the continuation on stdout; everything else goes to stderr.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from torchtune_lite import config, data, generation, training, utils


@dataclass
class Settings:
    """The top-level keys of this recipe's YAML; `Any` is a `_component_`."""

    model: Any = config.component()  # sizes left out come from the checkpoint
    tokenizer: Any = config.component()  # with the prompt_template of the training
    checkpointer: Any = config.component()  # reads the model

    prompt: str | dict[str, str | None] = config.key()  # a text, or {system: …, user: …} for the template
    max_new_tokens: int = config.key(300, minimum=1)  # longer answers are cut
    temperature: float = config.key(0.6, minimum=0)  # 0: always the likeliest token
    top_k: int | None = config.key(300, minimum=1)  # draw from the k likeliest; null: from all
    seed: int | None = None  # null: drawn and logged

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; a device that is not there is an error
    dtype: str = config.key("auto", choices=("auto", "fp32", "bf16"))  # auto: bf16 where it is native, else fp32
    log_level: str = config.key("INFO", choices=("DEBUG", "INFO", "WARNING", "WARN", "ERROR"))  # least that is said


class GenerateRecipe:
    """Loads a model and continues one prompt."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg = cfg
        self.log = utils.get_logger(cfg.log_level)
        self.device = utils.get_device(cfg.device)
        self.dtype = training.get_dtype(training.choose_dtype(cfg.dtype, self.device), self.device)

    def setup(self) -> None:
        """Builds tokenizer and model, encodes the prompt, and reads the checkpoint last."""
        checkpointer = config.instantiate(self.cfg.checkpointer)
        self.tokenizer = config.instantiate(self.cfg.tokenizer, defaults=checkpointer.tokenizer_args)
        with torch.device("meta"):
            self.model = config.instantiate(self.cfg.model, defaults=checkpointer.decoder_args)
        data.check_vocabulary(self.tokenizer, self.model.config.vocab_size)
        self.prompt = generation.encode_prompt(self.tokenizer, self.cfg.prompt)
        generation.check_length(len(self.prompt), self.cfg.max_new_tokens, self.model.config.max_seq_len)
        checkpointer.load(self.model, device=self.device, dtype=self.dtype)

    def generate(self) -> None:
        """Prints the continuation."""
        cfg, start = self.cfg, time.perf_counter()
        [tokens] = generation.generate(
            self.model,
            [self.prompt],
            max_new_tokens=cfg.max_new_tokens,
            stop_tokens=self.tokenizer.stop_tokens,
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            seed=training.set_seed(cfg.seed),
        )
        seconds = time.perf_counter() - start
        print(self.tokenizer.decode(tokens))
        number, speed = utils.counted(len(tokens), "token"), len(tokens) / seconds
        self.log.info("%s in %.2f s (%.1f tokens/s)", number, seconds, speed)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Runs the recipe."""
    recipe = GenerateRecipe(cfg)
    recipe.setup()
    recipe.generate()


if __name__ == "__main__":
    sys.exit(recipe_main())
