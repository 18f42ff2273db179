"""Serve a model over HTTP in the form of OpenAI's API, on one device, for trying it out.

    tune serve runs/x                 # what `tune run serve` is given is found out from the folder
    tune run serve --config serve model_dir=/path/to/model port=8080
    tune cp serve my_server.py        # then change it, and: tune run my_server.py --config ...

Answers POST /v1/chat/completions and /v1/completions, streamed if asked, and GET /v1/models. Requests that come
together are computed together. There is no password and no encryption. Ctrl-C stops.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from torchtune_lite import config, generation, serving, training


@dataclass(kw_only=True)
class Settings(training.AskingSettings):
    """The keys of this recipe's YAML, beside those of all that ask (`training/settings.py`; `--help` lists all)."""

    host: str = "127.0.0.1"  # this machine alone; 0.0.0.0: whoever reaches it
    port: int = config.key(8000, minimum=0)  # 0: one that is free
    name: str | None = None  # what requests call the model; null: as its folder
    slots: int = config.key(8, minimum=1)  # answers computed together; others wait
    max_seq_len: int | None = config.key(None, minimum=2)  # of prompt and answer, in tokens; null: the model's


class ServeRecipe:
    """A model behind an address."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.inference = cfg, training.Inference(cfg)

    def setup(self) -> None:
        """Take the port, build tokenizer and model, and read the checkpoint last."""
        cfg = self.cfg
        cfg.question("")  # which checks the template
        self.socket = serving.listen(cfg.host, cfg.port)
        tokenizer, model = self.inference.build()
        self.inference.load()
        self.engine = generation.Engine(
            model,
            slots=cfg.slots,
            max_seq_len=cfg.max_seq_len,
            stop_tokens=tokenizer.stop_tokens,
            tokenizer=tokenizer,
            int8=cfg.int8,
        )

    def serve(self) -> None:
        """Answer until a signal comes."""
        folder = Path(self.inference.checkpointer.checkpoint_dir).resolve()
        name, system, question = self.cfg.name or folder.name, self.cfg.system, self.cfg.question
        serving.serve(self.socket, self.engine, name, system=system, question=question)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Run the recipe."""
    recipe = ServeRecipe(cfg)
    recipe.setup()
    recipe.serve()


if __name__ == "__main__":
    sys.exit(recipe_main())
