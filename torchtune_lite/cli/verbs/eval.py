"""Score the model of a run, a checkpoint, an adapter, or any model's folder.

  tune eval runs/x --questions test.jsonl extract=json metrics=[json_fields]
  tune eval runs/x --text book.txt
  tune eval runs/x --tasks arc_easy,hellaswag apply_chat_template=true limit=100

Questions with answers are scored by the recipe exact_match_eval, a text by perplexity_eval, tasks of
lm-evaluation-harness by eleuther_eval; their keys can follow. Template, base, adapter and dtype are those of the
training, out of the folder's own files. The results go to eval/ in the run's folder, or runs/eval/ of another model.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from torchtune_lite.cli import asking

RECIPES = {
    "questions": ("exact_match_eval", "exact_match"),
    "text": ("perplexity_eval", "perplexity"),
    "tasks": ("eleuther_eval", "eleuther_evaluation"),
}
"""What is asked: the recipe that asks it, and its config."""


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune eval`."""
    asking.configure_folder(parser)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--questions", metavar="FILE", help="rows of input and output, answered and compared")
    asked.add_argument("--text", metavar="FILE", help="a text whose perplexity is measured")
    asked.add_argument("--tasks", metavar="NAMES", help="tasks of lm-evaluation-harness, with commas between them")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe and of its components")


def main(args: Namespace) -> None:
    """Run the recipe for what is asked."""
    [kind] = [kind for kind in RECIPES if getattr(args, kind) is not None]
    asked = {"tasks": args.tasks.split(",")} if kind == "tasks" else {"source": getattr(args, kind)}

    def values(found: Any) -> dict[str, Any]:
        before = {"new_system_prompt": found.system, "question_template": found.question_template}
        place = {"output_dir": str(output_dir(found.path))}
        return {**found.values, **(before if kind == "questions" else {}), **asked, **place}

    then = "use it elsewhere: tune export FOLDER --to gguf"
    asking.run_recipe(*RECIPES[kind], args, values, args.overrides, then)


def output_dir(folder: Path) -> Path:
    """Return where results about a folder go: `eval` beside the checkpoint of a run, or `runs/eval`."""
    checkpoint = folder.parent if folder.name == "adapter" else folder
    run = checkpoint.parent
    is_of_run = (run / "config.yaml").is_file()
    return run / "eval" / folder.relative_to(run) if is_of_run else Path("runs/eval") / folder.resolve().name
