"""Rows of whatever form: what their columns are called says how they are read."""

from collections.abc import Callable, Mapping
from typing import Any

from torchtune_lite.data import (
    AlpacaToMessages,
    ColumnText,
    InputOutputToMessages,
    OpenAIToMessages,
    ShareGPTToMessages,
    TextTokens,
)
from torchtune_lite.data.columns import Note, column_text
from torchtune_lite.data.messages import noted
from torchtune_lite.datasets.builder import dataset_builder
from torchtune_lite.errors import DataError
from torchtune_lite.utils import get_logger

Row = Mapping[str, Any]

CHATS = ("messages", "conversations", "conversation")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("input", "output"))
TEXTS = ("text", "content")

log = get_logger()


@dataset_builder()
def detected_dataset(
    tokenizer: Any, *, train_on_input: bool = False, new_system_prompt: str | None = None
) -> tuple[Callable, Callable]:
    """Build a data set from rows of the form that the columns of the first one show.

    In this order: a conversation in `messages`, `conversations` or `conversation`, in OpenAI's form or ShareGPT's;
    `instruction` and `output`, with or without `input`; `prompt` and `completion` or `response`, `question` and
    `answer`, `input` and `output`; plain `text` or `content`. One line says which it is. Instructions get the Alpaca
    prompt where the tokenizer has no template of its own.

    `train_on_input` and `new_system_prompt` are those of `chat_dataset`. The other arguments are those of
    `builder.samples`.
    """
    return Detected(tokenizer.prompt_template is not None, train_on_input, new_system_prompt), AnyTokens(tokenizer)


class Detected:
    """Reads rows in the form of the first one."""

    def __init__(self, has_template: bool, train_on_input: bool, new_system_prompt: str | None) -> None:
        self.has_template, self.train_on_input, self.new_system_prompt = has_template, train_on_input, new_system_prompt
        self._read: Callable[[Row], Mapping[str, Any]] | None = None

    def __call__(self, row: Row) -> Mapping[str, Any]:
        if self._read is None:
            columns, self._read = self._form(row)
            log.info("data: the column%s %s", "s" * (len(columns) > 1), ", ".join(columns))
        return self._read(row)

    def _form(self, row: Row) -> tuple[tuple[str, ...], Callable[[Row], Mapping[str, Any]]]:
        """Return the columns that are read of rows like this one, and how."""
        has = {name for name, value in row.items() if value is not None}
        for column in CHATS:
            if column in has:
                transform = ShareGPTToMessages if _is_sharegpt(row[column]) else OpenAIToMessages
                return (column,), transform(column, self.train_on_input, self.new_system_prompt)
        if {"instruction", "output"} <= has:
            columns = ("instruction", "input", "output")
            if self.has_template or self.new_system_prompt is not None:
                return columns, Instructions(self.train_on_input, None, self.new_system_prompt)
            return columns, AlpacaToMessages(self.train_on_input)
        for question, answer in PAIRS:
            if {question, answer} <= has:
                column_map = {"input": question, "output": answer}
                transform = InputOutputToMessages(self.train_on_input, column_map, self.new_system_prompt)
                return (question, answer), transform
        for column in TEXTS:
            if column in has:
                return (column,), ColumnText(column)
        pairs = ", ".join(f"{question} and {answer}" for question, answer in PAIRS)
        raise DataError(
            f"the columns {', '.join(map(str, row)) or '(none)'} are not a known format ({', '.join(CHATS)}; "
            f"instruction and output; {pairs}; {', '.join(TEXTS)}); name them with dataset: "
            "{_component_: torchtune_lite.datasets.instruct_dataset, column_map: {input: …, output: …}}"
        )


class Instructions(InputOutputToMessages):
    """Makes a question and an answer from `instruction`, with `input` below it if there is one, and `output`."""

    def __call__(self, row: Row) -> dict[str, Any]:
        notes: set[Note] = set()
        parts = [name for name in ("instruction", "input") if name == "instruction" or row.get(name) not in (None, "")]
        question = "\n\n".join(column_text(row, name, f"column_map.{name}", notes) for name in parts)
        rest = {name: value for name, value in row.items() if name != "instruction"}
        sample = super().__call__({**rest, "input": question})
        return noted(sample, notes | sample.get("notes", set()))


class AnyTokens:
    """Encodes conversations with the tokenizer's template, and texts without."""

    def __init__(self, tokenizer: Any, texts: TextTokens | None = None) -> None:
        self.tokenizer, self.texts = tokenizer, texts or TextTokens(tokenizer, split_across_pack=True)
        self.max_seq_len = tokenizer.max_seq_len

    @property
    def for_packs(self) -> "AnyTokens":
        """The same for a packed data set, which splits texts itself."""
        return AnyTokens(self.tokenizer, self.texts.for_packs)

    def _of(self, sample: Mapping[str, Any]) -> Any:
        return self.texts if "text" in sample else self.tokenizer

    def __call__(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._of(sample)(sample)

    @property
    def may_expand(self) -> bool:
        """Return whether `expanded` may return several samples for one."""
        return getattr(self.tokenizer, "may_expand", False)

    def expanded(self, sample: Mapping[str, Any], number: int | None = None) -> list[Mapping[str, Any]]:
        """Return the samples that the tokenizer makes of a conversation (`ModelTokenizer.expanded`); a text is one."""
        expand = None if "text" in sample else getattr(self.tokenizer, "expanded", None)
        return [sample] if expand is None else expand(sample, number)

    def surely_whole(self, sample: Mapping[str, Any]) -> bool:
        """Tell without encoding it that a sample will not be cut and has a label."""
        known = getattr(self._of(sample), "surely_whole", None)
        return known is not None and known(sample)

    def reads(self, field: str) -> bool:
        """Return whether the chat template reads a field."""
        return getattr(self.tokenizer, "reads", lambda field: False)(field)


def _is_sharegpt(turns: Any) -> bool:
    first = turns[0] if isinstance(turns, list) and turns else turns
    return '"from"' in first if isinstance(first, str) else isinstance(first, Mapping) and "from" in first
