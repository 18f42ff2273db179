"""Requests of OpenAI's API: from their JSON to prompts in tokens and settings of the sampling.

What is not served is refused where it is asked for: a client learns more from an error than from another answer than
the one it wants.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torchtune_lite.data import Message, OpenAIToMessages
from torchtune_lite.data.columns import NOT_READ, check_text, kind
from torchtune_lite.errors import ConfigError, DataError, TuneError, did_you_mean
from torchtune_lite.generation import Sampling, cap_length, tokens_of
from torchtune_lite.utils import counted

KINDS = {
    "true or false": bool,
    "an integer": int,
    "a number": int | float,
    "a text": str,
    "an object": dict,
    "a list": list,
    "a text or a list": str | list,
}
COMMON = {
    "model": "a text",
    "stream": "true or false",
    "stream_options": "an object",
    "temperature": "a number",
    "top_p": "a number",
    "top_k": "an integer",
    "min_p": "a number",
    "repetition_penalty": "a number",
    "seed": "an integer",
    "stop": "a text or a list",
    "n": "an integer",
    "max_tokens": "an integer",
}
CHAT = COMMON | {
    "messages": "a list",
    "max_completion_tokens": "an integer",
    "logprobs": "true or false",
    "top_logprobs": "an integer",
}
COMPLETION = COMMON | {"prompt": "a text or a list", "logprobs": "an integer"}
"""What each parameter must be."""

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
UNUSED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
"""Parameters that change nothing of an answer."""

OFF = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
}
"""Parameters that are not served, with the values that ask for nothing."""

DEFAULT_TEMPERATURE = 1.0
DEFAULT_COMPLETION = 16  # tokens, as OpenAI has it
MOST_SAMPLES, MOST_PROMPTS, MOST_ANSWERS, MOST_STOPS = 128, 128, 1024, 4
TOO_LONG = "context_length_exceeded"
MOST_CHARACTERS = 32  # a token, in the mean of a whole prompt; English has about 4
MOST_LOGPROBS = {"logprobs": 5, "top_logprobs": 20}


class RequestError(TuneError):
    """A request that is not answered: `param` is at fault, `status` and `code` are those of the API."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True)
class Call:
    """A request: its prompts as tokens, with how `n` answers to each are drawn, and how they are sent.

    `continues`: an answer goes on from the text of its prompt.
    """

    prompts: list[list[int]]
    samplings: list[Sampling]
    n: int
    continues: bool
    stream: bool
    include_usage: bool


class Reader:
    """Reads requests for a model of `vocab_size`, with at most `max_seq_len` positions, by its tokenizer's template.

    `system` is the system prompt of a conversation that has none, `question` is applied to what the user says in one.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_seq_len: int,
        vocab_size: int,
        system: str | None = None,
        question: Callable[[str], str] = str,
    ) -> None:
        self.tokenizer, self.max_seq_len, self.vocab_size = tokenizer, max_seq_len, vocab_size
        self.system, self.question = system, question

    def chat(self, body: Any) -> Call:
        """Read a request for the next turn of a conversation."""
        given = checked(body, CHAT)
        messages = self._messages(given)
        self._check_characters("messages", sum(len(turn.text_content) for turn in messages))
        try:
            prompt = tokens_of(self.tokenizer, {"messages": messages})
        except (ConfigError, DataError) as error:  # what is cut; what the template refuses
            raise RequestError(str(error), "messages") from error
        logprobs = given.get("top_logprobs", 0) if given.get("logprobs") else None
        if logprobs is None and given.get("top_logprobs"):
            raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
        if "max_tokens" in given and "max_completion_tokens" in given:
            raise RequestError("max_tokens is the older name of max_completion_tokens; give one", "max_tokens")
        longest = given.get("max_completion_tokens", given.get("max_tokens"))
        return self._call(given, [prompt], longest, logprobs)

    def completion(self, body: Any) -> Call:
        """Read a request to continue texts."""
        given = checked(body, COMPLETION)
        longest = given.get("max_tokens", DEFAULT_COMPLETION)
        return self._call(given, self._prompts(given), longest, given.get("logprobs"), continues=True)

    def _call(
        self,
        given: Mapping[str, Any],
        prompts: list[list[int]],
        longest: int | None,
        logprobs: int | None,
        continues: bool = False,
    ) -> Call:
        _in_range(given, "n", 1, MOST_SAMPLES)
        for name, most in MOST_LOGPROBS.items():
            _in_range(given, name, 0, most)
        for name in ("max_tokens", "max_completion_tokens"):
            _in_range(given, name, 1, None)
        options = {"temperature": DEFAULT_TEMPERATURE} | {name: given[name] for name in SAMPLING if name in given}
        stop_strings = (*_stop(given), *(() if continues else self.tokenizer.stop_strings))
        options |= {"logprobs": logprobs, "stop_strings": stop_strings}
        try:
            rooms = [cap_length(len(prompt), self.max_seq_len, self.max_seq_len) for prompt in prompts]
        except ConfigError as error:
            raise RequestError(str(error), "prompt" if continues else "messages", code=TOO_LONG) from error
        try:
            samplings = [Sampling(max_new_tokens=min(longest or room, room), **options) for room in rooms]
        except ConfigError as error:
            raise RequestError(str(error), str(error).partition(" ")[0]) from error
        n, stream = given.get("n", 1), given.get("stream", False)
        if n * len(prompts) > MOST_ANSWERS:
            raise RequestError(
                f"n={n} for {counted(len(prompts), 'prompt')}: at most {counted(MOST_ANSWERS, 'answer')} in all", "n"
            )
        return Call(prompts, samplings, n, continues, stream, _include_usage(given))

    def _check_characters(self, param: str, count: int) -> None:
        """Refuse what is surely too long before it is encoded, seconds in which no other request would be heard."""
        if count > MOST_CHARACTERS * self.max_seq_len:
            has = f"{param} has {counted(count, 'character')}"
            raise RequestError(
                f"{has}, too many for the model's {counted(self.max_seq_len, 'token')}", param, code=TOO_LONG
            )

    def _messages(self, given: Mapping[str, Any]) -> list[Message]:
        if not given.get("messages"):
            raise RequestError("messages is missing; give the turns of a conversation", "messages")
        notes: set[Any] = set()
        try:
            messages = OpenAIToMessages().read(given["messages"], "messages", notes)
        except DataError as error:
            raise RequestError(str(error), "messages") from error
        for note in notes:
            if note.heading != NOT_READ:
                raise RequestError(f"messages: {note.subject} must be text", "messages")
            if not self.tokenizer.reads(note.field):
                raise RequestError(f"messages: {note.subject} is not read; leave it out", "messages")
        if self.system is not None and messages[0].role != "system":
            messages.insert(0, Message("system", self.system))
        return [Message("user", self.question(turn.text_content)) if turn.role == "user" else turn for turn in messages]

    def _prompts(self, given: Mapping[str, Any]) -> list[list[int]]:
        """Encode the texts of `prompt`, of which each may be given in tokens."""
        prompt = given.get("prompt")
        if prompt is None or prompt == []:
            raise RequestError("prompt is missing; give a text, tokens, or a list of these", "prompt")
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        prompts = [prompt] if is_one else prompt
        if len(prompts) > MOST_PROMPTS:
            raise RequestError(f"prompt has {counted(len(prompts), 'text')}; at most {MOST_PROMPTS}", "prompt")
        return [self._encoded(each) for each in prompts]

    def _encoded(self, prompt: Any) -> list[int]:
        if isinstance(prompt, list) and all(type(token) is int and 0 <= token < self.vocab_size for token in prompt):
            tokens = prompt
        elif isinstance(prompt, list):
            raise RequestError(f"prompt: tokens must be integers from 0 to {self.vocab_size - 1}", "prompt")
        else:
            self._check_characters("prompt", len(prompt) if isinstance(prompt, str) else 0)
            try:
                tokens = self.tokenizer.encode(check_text(prompt, "prompt"), add_bos=True, add_eos=False)
            except DataError as error:
                raise RequestError(str(error), "prompt") from error
        if not tokens:
            raise RequestError("prompt is empty, and the tokenizer has no BOS to start from", "prompt")
        return tokens


def checked(body: Any, kinds: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters of a request that are served and not null, each of its kind."""
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, got {kind(body)}")
    given = {name: value for name, value in body.items() if value is not None and name not in UNUSED}
    for name, value in given.items():
        if name in kinds:
            if not _is_of_kind(value, kinds[name]):
                raise RequestError(f"{name} must be {kinds[name]}, got {kind(value)}", name)
        elif name not in OFF:
            raise RequestError(f"'{name}' is not a parameter that is served{did_you_mean(name, kinds)}", name)
        elif value not in OFF[name]:
            raise RequestError(f"{name} is not served; leave it out", name)
    return {name: value for name, value in given.items() if name in kinds}


def _is_of_kind(value: Any, name: str) -> bool:
    return isinstance(value, KINDS[name]) and (KINDS[name] is bool or not isinstance(value, bool))


def _in_range(given: Mapping[str, Any], name: str, least: int, most: int | None) -> None:
    value = given.get(name, least)
    if value < least or (most is not None and value > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise RequestError(f"{name} is {value}; it must be {allowed}", name)


def _stop(given: Mapping[str, Any]) -> tuple[str, ...]:
    stop = given.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > MOST_STOPS or not all(isinstance(each, str) and each for each in stops):
        raise RequestError(f"stop must be a text or up to {MOST_STOPS} of them, none empty", "stop")
    return tuple(stops)


def _include_usage(given: Mapping[str, Any]) -> bool:
    options = given.get("stream_options", {})
    if options and not given.get("stream"):
        raise RequestError("stream_options needs stream: true", "stream_options")
    if unknown := [name for name in options if name not in ("include_usage", "include_obfuscation")]:
        raise RequestError(f"stream_options.{unknown[0]} is not served", "stream_options")
    return bool(options.get("include_usage"))
