"""Scores a model by exact match: the share of rows whose answer is exactly the expected text, on one device.

    tune run exact_match_eval --config demo/address_eval checkpointer.checkpoint_dir=runs/demo/qlora/epoch_0
    tune cp exact_match_eval my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Answers greedily. Prints a few rows with their answers, then the score; writes `exact_match.json` in output_dir: the
score and every row's answer.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torchtune_lite import config, data, generation, training, utils


@dataclass
class Settings:
    """The top-level keys of this recipe's YAML; `Any` is a `_component_`, or a mapping where it says so."""

    output_dir: str | Path  # for exact_match.json

    model: Any = config.component()  # sizes left out come from the checkpoint
    tokenizer: Any = config.component()  # with the prompt_template of the training
    checkpointer: Any = config.component()  # reads the model

    source: str | Path = config.key()  # json, or the rows' file itself
    data_files: data.DataFiles = None  # the rows' file, or a list of them, where source is json
    column_map: Any = None  # a mapping of `input` and `output` to the rows' own column names; null: those names
    new_system_prompt: str | None = None  # as in the training
    max_rows: int | None = config.key(None, minimum=1)  # the first n rows; null: all

    batch_size: int = config.key(50, minimum=1)  # rows answered together
    max_new_tokens: int = config.key(64, minimum=1)  # longer answers are cut, and wrong
    num_examples: int = config.key(5, minimum=0)  # rows shown

    device: str = "auto"  # auto, cpu, cuda, cuda:1; a device that is not there is an error
    dtype: str = config.key("bf16", choices=("fp32", "bf16"))  # of weights and computation
    log_level: str = config.key("INFO", choices=("DEBUG", "INFO", "WARNING", "WARN", "ERROR"))  # least that is said


class ExactMatchEvalRecipe:
    """Answers the rows of a file and counts the answers that equal the expected text, spaces around it aside."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg = cfg
        self.log = utils.get_logger(cfg.log_level)
        self.device = utils.get_device(cfg.device)
        self.dtype = training.get_dtype(cfg.dtype, self.device)
        self.output_dir = Path(cfg.output_dir)

    def setup(self) -> None:
        """Reads the rows, builds tokenizer and model and reads the checkpoint."""
        cfg = self.cfg
        rows = data.load_rows(cfg.source, data_files=cfg.data_files)
        self.rows = [rows[i] for i in range(min(len(rows), cfg.max_rows or len(rows)))]
        self.to_messages = data.InputOutputToMessages(
            train_on_input=False, column_map=cfg.column_map, new_system_prompt=cfg.new_system_prompt
        )
        checkpointer = config.instantiate(cfg.checkpointer)
        self.tokenizer = config.instantiate(cfg.tokenizer)
        with torch.device("meta"):
            self.model = config.instantiate(cfg.model, defaults=checkpointer.decoder_args)
        data.check_vocabulary(self.tokenizer, self.model.config.vocab_size)
        checkpointer.load(self.model, device=self.device, dtype=self.dtype)

    def evaluate(self) -> None:
        """Answers every row, in batches of prompts of like length, and reports."""
        start = time.perf_counter()
        pairs = [self.prompt_and_answer(row) for row in self.rows]
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
        results: list[dict[str, Any]] = [{}] * len(pairs)
        for first in tqdm(range(0, len(order), self.cfg.batch_size), desc="exact match", unit="batch"):
            batch = order[first : first + self.cfg.batch_size]
            for i, answer in zip(batch, self.answer([pairs[i][0] for i in batch]), strict=True):
                expected = pairs[i][1].strip()
                results[i] = {"row": i, "expected": expected, "answer": answer, "match": answer == expected}
        self.report(results, time.perf_counter() - start)

    def prompt_and_answer(self, row: dict[str, Any]) -> tuple[list[int], str]:
        """Splits a row into the tokens of its prompt, the same as in training, and the text that should follow."""
        *prompt, answer = self.to_messages(row)["messages"]
        return self.tokenizer.tokenize_messages(prompt, add_eos=False)[0], answer.text_content

    def answer(self, prompts: list[list[int]]) -> list[str]:
        """Continues the prompts greedily until EOS."""
        tokens = generation.generate(
            self.model,
            prompts,
            max_new_tokens=self.cfg.max_new_tokens,
            stop_tokens=self.tokenizer.stop_tokens,
        )
        return [self.tokenizer.decode(ids).strip() for ids in tokens]

    def report(self, results: list[dict[str, Any]], seconds: float) -> None:
        """Prints examples and the score; writes `exact_match.json`."""
        matches = sum(result["match"] for result in results)
        score = matches / len(results)
        for result in results[: self.cfg.num_examples]:
            print(f"row {result['row']}: {'right' if result['match'] else 'WRONG'}")
            print(f"  expected {result['expected']}\n  answer   {result['answer']}")
        print(f"exact match {score:.1%} ({matches} of {len(results)} rows, {seconds:.1f} s)")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        summary = {"exact_match": score, "matches": matches, "rows": len(results), "seconds": seconds}
        text = json.dumps(summary | {"results": results}, ensure_ascii=False, indent=1)
        (self.output_dir / "exact_match.json").write_text(text + "\n", encoding="utf-8")


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Runs the recipe."""
    recipe = ExactMatchEvalRecipe(cfg)
    recipe.setup()
    recipe.evaluate()


if __name__ == "__main__":
    sys.exit(recipe_main())
