"""Measure the perplexity of a text under a model, and the bits that it needs for each byte, on one device.

    tune run perplexity_eval --config perplexity model_dir=runs/x/epoch_0 source=book.txt
    tune run perplexity_eval --config perplexity model_dir=runs/x/epoch_0 source=rows.jsonl column=text
    tune cp perplexity_eval my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Every token of the text is counted once, predicted from those before it in a window that slides over the text. Only
models with one tokenizer can be compared by perplexity; others by bits per byte. Writes `perplexity.json` in
output_dir.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from torchtune_lite import config, data, errors, evaluation, training, utils


@dataclass(kw_only=True)
class Settings(training.RecipeSettings):
    """The keys of this recipe's YAML, beside those of every recipe (`training/settings.py`; `--help` lists all)."""

    output_dir: str | Path  # for perplexity.json

    source: str | Path = config.key()  # a text; with column: a file of rows, or json and the like
    data_files: data.DataFiles = None  # the rows' file, or a list of them, where source is json
    column: str | None = None  # of rows: each is a document of its own; null: source is one text
    max_rows: int | None = config.key(None, minimum=1)  # the first n rows; null: all

    max_seq_len: int | None = config.key(None, minimum=2)  # that a token is predicted from; null: the model's
    stride: int | None = config.key(None, minimum=1)  # tokens by which the window slides; null: half of max_seq_len
    batch_size: int = config.key(1, minimum=1)  # windows computed together


class PerplexityEvalRecipe:
    """The perplexity of a text."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.inference = cfg, training.Inference(cfg)

    def setup(self) -> None:
        """Make the result's folder, find the text, build the model, and read the checkpoint last."""
        cfg = self.cfg
        self.result = evaluation.ResultFile(Path(cfg.output_dir) / "perplexity.json")
        self.documents = evaluation.Documents(cfg.source, cfg.data_files, cfg.column, cfg.max_rows)
        self.tokenizer, self.model = self.inference.build()
        self.max_seq_len = self.inference.positions("max_seq_len", cfg.max_seq_len)
        self.stride = max(self.max_seq_len // 2, 1) if cfg.stride is None else cfg.stride
        if self.stride > self.max_seq_len:
            raise errors.ConfigError(
                f"stride: {self.stride} skips tokens; set at most max_seq_len, which is {self.max_seq_len}"
            )
        self.inference.load()

    def evaluate(self) -> None:
        """Measure, print and write the result."""
        start = time.perf_counter()
        options = {"max_seq_len": self.max_seq_len, "stride": self.stride}
        inputs = self.model, self.tokenizer, self.documents
        measures = evaluation.perplexity(*inputs, batch_size=self.cfg.batch_size, **options)
        measures |= options | {"source": str(self.cfg.source), "seconds": time.perf_counter() - start}
        print(f"perplexity {measures['perplexity']:.4f}, {measures['bits_per_byte']:.4f} bits per byte")
        tokens, num_bytes = utils.counted(measures["tokens"], "token"), utils.counted(measures["bytes"], "byte")
        print(f"  {tokens}, each counted once; {num_bytes} ({measures['seconds']:.1f} s)")
        self.result.write(measures)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Run the recipe."""
    recipe = PerplexityEvalRecipe(cfg)
    recipe.setup()
    recipe.evaluate()


if __name__ == "__main__":
    sys.exit(recipe_main())
