"""Score a model on tasks of EleutherAI's lm-evaluation-harness, on one device.

    tune run eleuther_eval --config eleuther_evaluation model_dir=runs/x/epoch_0 tasks=[truthfulqa_mc2,hellaswag]
    tune run eleuther_eval --config eleuther_evaluation model_dir=runs/x/epoch_0 tasks=[my_task] include_path=my_tasks
    tune cp eleuther_eval my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Needs lm-eval: pip install 'torchtune_lite[eval]'. The harness fetches the data of its own tasks; tasks of yours, with
files of yours, need no network. Prints the table of scores, and writes in output_dir:

    eleuther_eval.json                what the harness returns: scores, and the settings of each task
    eleuther_eval_samples.jsonl       with log_samples: each request, the answer to it and its scores
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from torchtune_lite import config, evaluation, training


@dataclass(kw_only=True)
class Settings(training.RecipeSettings):
    """The keys of this recipe's YAML, beside those of every recipe (`training/settings.py`; `--help` lists all)."""

    output_dir: str | Path = "runs/eval"  # for the results

    tasks: list[str] = config.key()  # names of tasks, groups or tags, or patterns such as mmlu_*
    include_path: str | Path | None = None  # a folder with task files of your own, and the data files that they name
    limit: int | float | None = config.key(None, above=0)  # the first n documents of a task, below 1 a share; null: all
    num_fewshot: int | None = config.key(None, minimum=0)  # examples before each question; null: as the task says

    apply_chat_template: bool = False  # True: questions as user turns, in the form of tokenizer.prompt_template
    system_instruction: str | None = None  # the system prompt, or the text before each question
    fewshot_as_multiturn: bool = True  # with a chat template: examples as turns; False: all in one question

    max_seq_length: int = config.key(4096, minimum=2)  # tokens; of what is longer the start is left out
    batch_size: int = config.key(8, minimum=1)  # sequences of the longest; of shorter ones as many tokens
    seed: int = 1234  # of examples and draws; the harness's own
    bootstrap_iters: int = config.key(100000, minimum=0)  # for standard errors; 0: none
    log_samples: bool = False  # True: writes every request and answer


class EleutherEvalRecipe:
    """The scores of a model on tasks of the harness."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.inference = cfg, training.Inference(cfg)

    def setup(self) -> None:
        """Make the result's folder, find the tasks, build the model, and read the checkpoint last."""
        cfg = self.cfg
        self.result = evaluation.ResultFile(Path(cfg.output_dir) / "eleuther_eval.json")
        self.samples = evaluation.ResultFile(Path(cfg.output_dir) / "eleuther_eval_samples.jsonl")
        self.manager = evaluation.find_tasks(cfg.tasks, cfg.include_path)
        tokenizer, model = self.inference.build()
        self.model = evaluation.as_harness_model(
            model,
            tokenizer,
            max_seq_len=self.inference.positions("max_seq_length", cfg.max_seq_length),
            batch_size=cfg.batch_size,
            seed=training.set_seed(cfg.seed),
        )
        if cfg.apply_chat_template:
            self.model.chat_template(True)  # an error where there is none
        self.inference.load()

    def evaluate(self) -> None:
        """Ask all tasks, print the tables of their scores and write the results."""
        cfg, start = self.cfg, time.perf_counter()
        results = evaluation.run_harness(
            self.model,
            self.manager,
            cfg.tasks,
            seed=cfg.seed,
            limit=cfg.limit,
            num_fewshot=cfg.num_fewshot,
            apply_chat_template=cfg.apply_chat_template,
            system_instruction=cfg.system_instruction,
            fewshot_as_multiturn=cfg.fewshot_as_multiturn,
            bootstrap_iters=cfg.bootstrap_iters,
            log_samples=cfg.log_samples,
        )
        samples = results.pop("samples", {})
        if cfg.log_samples:
            self.samples.write_lines({"task": task, **row} for task, rows in samples.items() for row in rows)
        self.result.write(results)
        print(evaluation.score_tables(results))
        self.inference.log.info("%.1f s; the results are in %s", time.perf_counter() - start, self.result.path)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Run the recipe."""
    recipe = EleutherEvalRecipe(cfg)
    recipe.setup()
    recipe.evaluate()


if __name__ == "__main__":
    sys.exit(recipe_main())
