"""Continue a prompt with a model, on one device.

    tune run generate --config generation checkpointer.checkpoint_dir=runs/demo/epoch_0 prompt.user="Tell me a joke."
    tune cp generate my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Prints the continuation on stdout; everything else goes to stderr.
"""

import sys
import time
from dataclasses import dataclass

from torchtune_lite import config, generation, training, utils


@dataclass(kw_only=True)
class Settings(training.RecipeSettings):
    """The keys of this recipe's YAML, beside those of every recipe (`training/settings.py`; `--help` lists all)."""

    prompt: str | dict[str, str | None] = config.key()  # a text, or {system: …, user: …} for the template
    max_new_tokens: int = config.key(300, minimum=1)  # longer answers are cut
    temperature: float = config.key(0.6, minimum=0)  # 0: always the likeliest token
    top_k: int | None = config.key(300, minimum=1)  # draw from the k likeliest; null: from all
    seed: int | None = None  # null: drawn and logged


class GenerateRecipe:
    """The continuation of one prompt."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.inference = cfg, training.Inference(cfg)

    def setup(self) -> None:
        """Build tokenizer and model, encode the prompt, and read the checkpoint last."""
        self.tokenizer, self.model = self.inference.build()
        self.prompt = generation.encode_prompt(self.tokenizer, self.cfg.prompt)
        generation.cap_length(len(self.prompt), self.cfg.max_new_tokens, self.model.config.max_seq_len)
        self.inference.load()

    def generate(self) -> None:
        """Print the continuation."""
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
        self.inference.log.info("%s in %.2f s (%.1f tokens/s)", number, seconds, speed)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Run the recipe."""
    recipe = GenerateRecipe(cfg)
    recipe.setup()
    recipe.generate()


if __name__ == "__main__":
    sys.exit(recipe_main())
