"""Answer a prompt, or each row of a file, with a model, on one device.

    tune generate runs/x "Tell me a joke."     # what `tune run generate` is given is found out from the folder
    tune generate runs/x --file prompts.jsonl --out answers.jsonl
    tune run generate --config generation checkpointer.checkpoint_dir=runs/demo/epoch_0 prompt.user="Tell me a joke."
    tune cp generate my_recipe.py     # then change it, and: tune run my_recipe.py --config ...

Prints the answer on stdout; everything else goes to stderr. Of a file each row has `prompt` or `input`, a question, or
`messages`, a conversation; `out` gets a line of JSON for each, in their order. Started again, it goes on from there.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from torchtune_lite import config, data, errors, generation, training, utils

AHEAD = 8  # rows under way for each that is answered at the moment: those after a long answer need not wait for it
NAMED = 3  # rows without an answer that are named on the way; the file has them all
WITHOUT_EFFECT = ("prompt", "file", "out", "batch_size", "log_level")  # on an answer: all other keys have one


@dataclass(kw_only=True)
class Settings(training.AnsweringSettings):
    """The keys of this recipe's YAML, beside those of all that answer (`training/settings.py`; `--help` lists all)."""

    prompt: str | dict[str, str | None] | None = None  # a text, or {system: …, user: …} for the template; null: file
    file: str | Path | None = None  # rows to answer in the place of a prompt: JSON lines, CSV, Parquet …
    out: str | Path | None = None  # the answers to the rows of a file, as JSON lines
    batch_size: int = config.key(16, minimum=1)  # rows of a file answered together

    max_new_tokens: int = config.key(300, minimum=1)  # longer answers are cut
    top_k: int | None = config.key(300, minimum=1)  # draw from the k likeliest; null: from all


class GenerateRecipe:
    """The answer to one prompt, or to each row of a file."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.inference = cfg, training.Inference(cfg)
        if (cfg.prompt is None) == (cfg.file is None):
            raise errors.ConfigError("give a prompt, or file=..., the rows to answer" + ", not both" * bool(cfg.file))
        if (cfg.file is None) != (cfg.out is None):
            raise errors.ConfigError("file and out belong together: the rows, and the file of the answers to them")

    def setup(self) -> None:
        """Build tokenizer and model, encode the prompt or open the files, and read the checkpoint last."""
        cfg = self.cfg
        self.tokenizer, model = self.inference.build()
        seed = training.set_seed(cfg.seed) if cfg.temperature else None
        stop_strings = getattr(self.tokenizer, "stop_strings", ())
        self.sampling = generation.Sampling(**cfg.sampling, seed=seed, stop_strings=stop_strings)
        if cfg.file is None:
            self.prompt = generation.encode_prompt(self.tokenizer, self.as_asked(cfg.prompt))
            generation.cap_length(len(self.prompt), cfg.max_new_tokens, model.config.max_seq_len)
        else:
            self.rows = data.load_rows(str(cfg.file))
            answered_by = {key: value for key, value in config.to_dict(cfg).items() if key not in WITHOUT_EFFECT}
            self.out = generation.AnswerFile(Path(cfg.out), generation.made_by(answered_by))
            self.done = generation.num_answered(self.out, self.rows)
        self.inference.load()
        slots = 1 if cfg.file is None else cfg.batch_size
        options = {"stop_tokens": self.tokenizer.stop_tokens, "tokenizer": self.tokenizer, "int8": cfg.int8}
        self.engine = generation.Engine(model, slots=slots, **options)

    def as_asked(self, prompt: str | dict[str, str | None]) -> str | dict[str, str | None]:
        """Give a prompt for the template what the training put before and around each question."""
        if isinstance(prompt, str) or prompt.get("user") is None:
            return prompt
        system, user = prompt.get("system") or self.cfg.system, self.cfg.question(prompt["user"])
        return {**prompt, "system": system, "user": user}

    def run(self) -> None:
        """Answer, and say how fast that was."""
        start = time.perf_counter()
        number = self.print_answer() if self.cfg.file is None else self.answer_rows()
        seconds = time.perf_counter() - start
        speed = number / seconds
        self.inference.log.info("%s in %.2f s (%.1f tokens/s)", utils.counted(number, "token"), seconds, speed)

    def print_answer(self) -> int:
        """Print the answer as it comes; return the number of its tokens."""
        text, tokens = generation.TextStream(self.tokenizer, self.sampling.stop_strings), 0
        for token in self.engine.stream(self.prompt, self.sampling):
            print(text.push(token), end="", flush=True)
            tokens += 1
        print(text.finish())
        return tokens

    def answer_rows(self) -> int:
        """Write the result of each row that has none yet; return the number of the answers' tokens."""
        cfg, log, out = self.cfg, self.inference.log, self.out
        tokens, num_problems, first_problem = 0, 0, None
        if self.done:
            log.info("%s has the results of %s: going on from there", out.path, utils.counted(self.done, "row"))
        results = generation.answers(
            *(self.rows, self.done, self.engine, self.tokenizer, self.sampling),
            ahead=AHEAD * cfg.batch_size,
            system=cfg.system,
            question=cfg.question,
        )
        with tqdm(results, desc="answers", unit="row", initial=self.done, total=len(self.rows)) as bar:
            for result in bar:
                out.write(result)
                tokens += result.get("num_tokens", 0)
                if "problem" in result:
                    num_problems, first_problem = num_problems + 1, first_problem or result["problem"]
                    if num_problems <= NAMED:
                        log.warning("%s", result["problem"])
        if num_problems == len(self.rows):
            raise errors.DataError(f"none of {utils.counted(num_problems, 'row')} could be answered: {first_problem}")
        num_answers = len(self.rows) - self.done - num_problems
        unanswered = f"; {num_problems:,} could not be, as their lines say" if num_problems else ""
        log.info("%s: %s answered%s", out.path, utils.counted(num_answers, "row"), unanswered)
        return tokens


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Run the recipe."""
    recipe = GenerateRecipe(cfg)
    recipe.setup()
    recipe.run()


if __name__ == "__main__":
    sys.exit(recipe_main())
