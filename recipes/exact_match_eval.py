"""Score a model by exact match: the share of rows whose answer is exactly the expected text, on one device.

    tune run exact_match_eval --config demo/address_eval checkpointer.checkpoint_dir=runs/demo/qlora/epoch_0
    tune cp exact_match_eval my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Answers greedily. Prints a few rows with their answers, then the score; writes `exact_match.json` in output_dir: the
score and every row's answer.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchtune_lite import config, data, errors, evaluation, generation, training, utils


@dataclass(kw_only=True)
class Settings(training.RecipeSettings):
    """The keys of this recipe's YAML, beside those of every recipe (`training/settings.py`; `--help` lists all)."""

    output_dir: str | Path  # for exact_match.json

    source: str | Path = config.key()  # json, or the rows' file itself
    data_files: data.DataFiles = None  # the rows' file, or a list of them, where source is json
    column_map: Any = None  # a mapping of `input` and `output` to the rows' own column names; null: those names
    new_system_prompt: str | None = None  # as in the training
    max_rows: int | None = config.key(None, minimum=1)  # the first n rows; null: all

    batch_size: int = config.key(50, minimum=1)  # rows answered together
    max_new_tokens: int = config.key(64, minimum=1)  # longer answers are cut, and wrong
    num_examples: int = config.key(5, minimum=0)  # rows shown


class ExactMatchEvalRecipe:
    """A count of the answers to the rows of a file that equal the expected text, spaces around it aside."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.inference = cfg, training.Inference(cfg)

    def setup(self) -> None:
        """Make the result's folder, build the model, encode every row's prompt, and read the checkpoint last."""
        cfg = self.cfg
        self.result = evaluation.ResultFile(Path(cfg.output_dir) / "exact_match.json")
        rows = data.load_rows(cfg.source, data_files=cfg.data_files)
        self.to_messages = data.InputOutputToMessages(
            train_on_input=False, column_map=cfg.column_map, new_system_prompt=cfg.new_system_prompt
        )
        self.tokenizer, self.model = self.inference.build()
        self.results = [self.prepare(rows, i) for i in range(min(len(rows), cfg.max_rows or len(rows)))]
        self.warn([result["problem"] for result in self.results if "problem" in result])
        self.inference.load()

    def prepare(self, rows: Any, row: int) -> dict[str, Any]:
        """Start a row's result: with the tokens of its prompt, as in training, or the problem that makes it wrong."""
        result = {"row": row, "expected": None, "answer": None, "match": False}
        try:
            *prompt, expected = self.to_messages(rows[row])["messages"]
            result["expected"] = expected.text_content.strip()
            sample = self.tokenizer({"messages": prompt}, inference=True)
            if sample["truncated"]:
                raise errors.DataError(f"the prompt is longer than tokenizer.max_seq_len={self.tokenizer.max_seq_len}")
            generation.cap_length(len(sample["tokens"]), self.cfg.max_new_tokens, self.model.config.max_seq_len)
        except errors.TuneError as error:
            where = rows.where(row)
            return result | {"problem": f"{where}: {str(error).removeprefix(f'{where}: ')}"}
        return result | {"prompt": sample["tokens"]}

    def warn(self, problems: list[str]) -> None:
        """Name the first rows that cannot be answered; DataError where none can."""
        if len(problems) == len(self.results):
            raise errors.DataError(f"none of {utils.counted(len(problems), 'row')} can be answered: {problems[0]}")
        for problem in problems[:3]:
            self.inference.log.warning("%s; it counts as wrong", problem)
        if len(problems) > 3:
            more = utils.counted(len(problems) - 3, "more row")
            self.inference.log.warning("%s cannot be answered either; %s will name them", more, self.result.path)

    def evaluate(self) -> None:
        """Answer every row, in batches of prompts of like length, and report."""
        start = time.perf_counter()
        order = sorted((each for each in self.results if "prompt" in each), key=lambda each: len(each["prompt"]))
        for first in tqdm(range(0, len(order), self.cfg.batch_size), desc="exact match", unit="batch"):
            batch = order[first : first + self.cfg.batch_size]
            for result, answer in zip(batch, self.answer([each.pop("prompt") for each in batch]), strict=True):
                result |= {"answer": answer, "match": answer == result["expected"]}
        self.report(time.perf_counter() - start)

    def answer(self, prompts: list[list[int]]) -> list[str]:
        """Continue the prompts greedily until EOS."""
        tokens = generation.generate(
            self.model,
            prompts,
            max_new_tokens=self.cfg.max_new_tokens,
            stop_tokens=self.tokenizer.stop_tokens,
        )
        return [self.tokenizer.decode(ids).strip() for ids in tokens]

    def report(self, seconds: float) -> None:
        """Print examples and the score; write `exact_match.json`."""
        matches, count = sum(result["match"] for result in self.results), len(self.results)
        for result in self.results[: self.cfg.num_examples]:
            print(f"row {result['row']}: {'right' if result['match'] else 'WRONG'}")
            print(f"  expected {result['expected']}\n  answer   {result['answer']}")
        print(f"exact match {matches / count:.1%} ({matches} of {utils.counted(count, 'row')}, {seconds:.1f} s)")
        summary = {"exact_match": matches / count, "matches": matches, "rows": count, "seconds": seconds}
        self.result.write(summary | {"results": self.results})


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Run the recipe."""
    recipe = ExactMatchEvalRecipe(cfg)
    recipe.setup()
    recipe.evaluate()


if __name__ == "__main__":
    sys.exit(recipe_main())
