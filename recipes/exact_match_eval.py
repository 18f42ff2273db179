"""Score the answers of a model to the questions of a file, on one device: by exact match, and other metrics.

    tune run exact_match_eval --config demo/address_eval checkpointer.checkpoint_dir=runs/demo/qlora/epoch_0
    tune run exact_match_eval --config demo/address_eval extract=json metrics=[json_fields]
    tune cp exact_match_eval my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Answers greedily. Prints a few rows with their answers, then the scores; writes `exact_match.json` in output_dir: the
scores, and every row's prompt, answer and scores. Until then the answers are in `exact_match_answers.jsonl`, which an
evaluation that was killed goes on with.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune_lite import config, data, evaluation, generation, training, utils


@dataclass(kw_only=True)
class Settings(training.RecipeSettings):
    """The keys of this recipe's YAML, beside those of every recipe (`training/settings.py`; `--help` lists all)."""

    output_dir: str | Path  # folder for exact_match.json

    source: str | Path = config.key()  # json, or a file of rows
    data_files: data.DataFiles = None  # with source: json, a file of rows, or a list of them
    column_map: Any = None  # a mapping of `input` and `output` to the rows' own column names; null: those names
    new_system_prompt: str | None = None  # as in the training
    question_template: str | None = None  # a text in which {question} stands for each question; null: it stands alone
    max_rows: int | None = config.key(None, minimum=1)  # the first n rows; null: all

    extract: str = config.key("whole", choices=evaluation.EXTRACTIONS)  # the answer in a text; number: after ####
    extract_regex: str | None = None  # with extract: regex; its first group is the answer
    metrics: list[str] = config.key([])  # besides exact_match: normalized_match, contains, f1, json_fields

    batch_size: int = config.key(50, minimum=1)  # rows answered together
    max_new_tokens: int = config.key(64, minimum=1)  # longer answers are cut
    num_examples: int = config.key(5, minimum=0)  # rows shown


class ExactMatchEvalRecipe:
    """The scores of a model's answers to the rows of a file."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.inference = cfg, training.Inference(cfg)

    def setup(self) -> None:
        """Make the result's folder, build the model, encode every row's prompt, and read the checkpoint last."""
        cfg = self.cfg
        self.result = evaluation.ResultFile(Path(cfg.output_dir) / "exact_match.json")
        self.scoring = evaluation.Scoring(cfg.extract, cfg.extract_regex, cfg.metrics)
        rows = data.load_rows(cfg.source, data_files=cfg.data_files)
        to_messages = data.InputOutputToMessages(
            train_on_input=False, column_map=cfg.column_map, new_system_prompt=cfg.new_system_prompt
        )
        self.tokenizer, self.model = self.inference.build()
        self.questions = evaluation.read_questions(
            rows,
            to_messages,
            self.tokenizer,
            self.scoring,
            max_seq_len=self.model.config.max_seq_len,
            max_rows=cfg.max_rows,
            template=cfg.question_template,
        )
        evaluation.warn_of_problems(self.questions, self.result.path)
        self.inference.load()

    def evaluate(self) -> None:
        """Answer every row that has no answer yet, and report."""
        cfg, start = self.cfg, time.perf_counter()
        made_by = generation.made_by({key: value for key, value in config.to_dict(cfg).items() if key in ANSWERED_BY})
        file = generation.AnswerFile(Path(cfg.output_dir) / "exact_match_answers.jsonl", made_by, anew=True)
        options = {"max_new_tokens": cfg.max_new_tokens, "batch_size": cfg.batch_size, "file": file}
        evaluation.answer_questions(self.model, self.tokenizer, self.questions, **options)
        for question in self.questions:
            self.scoring.score(question)
        self.report(time.perf_counter() - start)
        file.remove()

    def report(self, seconds: float) -> None:
        """Print examples and the scores; write `exact_match.json`."""
        count, scores = len(self.questions), evaluation.summary(self.questions, self.scoring.metrics)
        matches = sum(question.scores["exact_match"] == 1 for question in self.questions)
        for question in self.questions[: self.cfg.num_examples]:
            print(f"row {question.row}: {'right' if question.scores['exact_match'] == 1 else 'WRONG'}")
            print(f"  expected {question.expected}\n  answer   {question.answer}")
        print(f"exact match {matches / count:.1%} ({matches} of {utils.counted(count, 'row')}, {seconds:.1f} s)")
        for name in self.scoring.metrics[1:]:
            print(f"{name} {scores[name]:.4f}")
        for path, share in scores.get("fields", {}).items():
            print(f"  {path} {share:.1%}")
        totals = {"matches": matches, "rows": count, "seconds": seconds}
        self.result.write({**scores, **totals, "results": [question.result() for question in self.questions]})


ANSWERED_BY = ("model", "tokenizer", "checkpointer", "dtype", "device", "max_new_tokens")
"""The keys that an answer depends on, besides its prompt."""


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Run the recipe."""
    recipe = ExactMatchEvalRecipe(cfg)
    recipe.setup()
    recipe.evaluate()


if __name__ == "__main__":
    sys.exit(recipe_main())
