"""Talk with a model, on one device.

    tune chat runs/x                  # what `tune run chat` is given is found out from the folder
    tune run chat --config chat model_dir=/path/to/model temperature=0
    tune cp chat my_chat.py           # then change it, and: tune run my_chat.py --config ...

A line is a question, unless it starts with / (/help lists the commands). Ctrl-C ends an answer, Ctrl-D the
conversation. Where stdin or stdout is not a terminal, each line of stdin is a question, and only the answers go to
stdout.
"""

import json
import signal
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torchtune_lite import config, errors, generation, training, utils

COMMANDS = """\
/reset          start a new conversation
/system TEXT    start a new conversation with another system prompt; without a text, show the one there is
/save FILE      add the conversation to a file of JSON lines, a data set for chat_dataset (default: chat.jsonl)
/exit           leave, as Ctrl-D does
//text          ask what begins with a slash"""
ENDS = {"stop": "", "length": "; cut at max_new_tokens, or where the model's positions end", "cancelled": "; stopped"}
"""What is said of an answer by why it ended."""


@dataclass(kw_only=True)
class Settings(training.AnsweringSettings):
    """The keys of this recipe's YAML, beside those of all that answer (`training/settings.py`; `--help` lists all)."""

    top_p: float | None = config.key(0.95, above=0)  # draw from the likeliest that make up this share; null: from all
    history: str | Path | None = "~/.cache/torchtune_lite/chat_history"  # of the questions; null: kept nowhere


class ChatRecipe:
    """A conversation."""

    def __init__(self, cfg: Settings) -> None:
        self.cfg, self.inference = cfg, training.Inference(cfg)

    def setup(self) -> None:
        """Build tokenizer and model, read the checkpoint, and open the conversation."""
        cfg = self.cfg
        tokenizer, model = self.inference.build()
        seed = training.set_seed(cfg.seed) if cfg.temperature else None
        stop_strings = getattr(tokenizer, "stop_strings", ())
        sampling = generation.Sampling(**cfg.sampling, seed=seed, stop_strings=stop_strings)
        self.inference.load()
        stops = tokenizer.stop_tokens
        engine = generation.Engine(model, slots=1, stop_tokens=stops, tokenizer=tokenizer, int8=cfg.int8)
        self.conversation = generation.Conversation(engine, tokenizer, sampling, cfg.system)
        self.input = utils.LineInput(None if cfg.history is None else Path(cfg.history))
        sys.stdout.reconfigure(errors="replace")

    def chat(self) -> None:
        """Answer line after line."""
        if self.input.interactive:
            self.show_system()
            print("/help lists the commands; Ctrl-C ends an answer, Ctrl-D the conversation")
        for line in self.input.lines("> "):
            text = line.strip()
            if text in ("/exit", "/quit"):
                return
            try:
                if text.startswith("/") and not text.startswith("//"):
                    self.obey(*text.split(maxsplit=1))
                elif text:
                    self.answer(text.removeprefix("/"))
            except errors.TuneError as error:  # which costs this line alone
                errors.warn(str(error))

    def answer(self, text: str) -> None:
        """Print the answer as it comes; on a terminal Ctrl-C ends it, and nothing else."""
        interactive, conversation = self.input.interactive, self.conversation
        with training.Signals() as signals, closing(conversation.ask(self.cfg.question(text))) as pieces:
            try:
                for piece in pieces:
                    print(utils.visible(piece) if interactive else piece, end="", flush=True)
                    signals.poll()
            except training.StopRequested as request:
                if request.signum != signal.SIGINT or not interactive:
                    name = signal.Signals(request.signum).name
                    raise errors.Stopped(f"stopped by {name}", request.signum) from None
        print(flush=True)
        if interactive:
            request = conversation.last
            number, speed = utils.counted(len(request.tokens), "token"), len(request.tokens) / conversation.seconds
            print(f"[{number}, {speed:.1f} tokens/s{ENDS[request.finish_reason]}]")

    def obey(self, command: str, argument: str = "") -> None:
        """Do what a line that starts with / says."""
        if command == "/help":
            self.say(COMMANDS)
        elif command == "/reset":
            self.conversation.reset(self.conversation.system)
        elif command == "/system":
            if argument:
                self.conversation.reset(argument)
            self.show_system()
        elif command == "/save":
            self.save(Path(argument or "chat.jsonl").expanduser())
        else:
            raise errors.ConfigError(f"there is no {command}; /help lists the commands")

    def show_system(self) -> None:
        """Say what the system prompt is."""
        self.say(f"system prompt: {self.conversation.system or 'none'}")

    def save(self, path: Path) -> None:
        """Add the conversation to a file of JSON lines."""
        if self.conversation.last is None:
            raise errors.ConfigError("there is no answer to save yet")
        turns = [{"role": turn.role, "content": turn.text_content} for turn in self.conversation.messages]
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise errors.ConfigError(f"{path} was not written: {error.strerror or error}") from error
        self.say(f"added {utils.counted(len(turns), 'message')} to {path}")

    def say(self, text: str) -> None:
        """Print a remark, which is not part of an answer."""
        print(text, file=sys.stdout if self.input.interactive else sys.stderr)


@config.parse(Settings)
def recipe_main(cfg: Settings) -> None:
    """Run the recipe."""
    recipe = ChatRecipe(cfg)
    recipe.setup()
    recipe.chat()


if __name__ == "__main__":
    sys.exit(recipe_main())
