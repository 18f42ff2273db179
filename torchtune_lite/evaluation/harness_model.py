"""A model of this library as lm-evaluation-harness asks it: log-probabilities, rolling ones, generated texts."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tqdm import tqdm

from torchtune_lite.data import ChatTemplate, Message, ModelTokenizer
from torchtune_lite.data.tokenizers.template_export import as_chat_template
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.evaluation.continuations import Continuation, first_token, score_all
from torchtune_lite.evaluation.texts import generate_texts
from torchtune_lite.generation import Sampling
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.utils import get_logger

MAX_GEN_TOKS = 256
"""New tokens where a task does not say how many, as in the harness."""

CONTINUED = "CONTINUED_HERE"
"""What marks the end of a turn that goes on, so that what the template writes after it can be cut off."""

TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The names by which tasks say it."""


class HarnessModel:
    """What `lm_eval.api.model.TemplateLM` leaves to a model; `as_harness_model` makes it one.

    A text is encoded as transformers encodes it: special tokens in it as such, with BOS where transformers puts one. Of
    what is longer than `max_seq_len` tokens the start is left out.
    """

    def __init__(
        self, model: TransformerDecoder, tokenizer: Any, *, max_seq_len: int, batch_size: int, seed: int | None = None
    ) -> None:
        super().__init__()
        self._model, self._tokenizer = model, tokenizer
        self.max_length, self.batch_size, self._seed = max_seq_len, batch_size, seed

    @property
    def eot_token_id(self) -> int:
        """The id of EOS."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        return first_token(self._tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """A name for the tokenizer, by which the harness tells cached requests apart."""
        return self._tokenizer.path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text; None puts BOS where transformers does, unless it stands there already."""
        tokens, bos = self._tokenizer.encode_chat(string)[0], self._tokenizer.bos_id
        if add_special_tokens is None:
            add_special_tokens = self._tokenizer.adds_bos and tokens[:1] != [bos]
        return [bos] * (add_special_tokens and bos is not None) + tokens

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        return chat_template_of(self._tokenizer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation up to where an answer starts; without `add_generation_prompt`, to its last turn's end.

        A system prompt is left out where the template has no place for one, with a warning, as by the harness.
        """
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        if not add_generation_prompt:
            messages[-1] = Message(messages[-1].role, messages[-1].text_content + CONTINUED)
        try:
            text = self._chat_template.render(messages, add_generation_prompt)
        except DataError as error:
            turns = [message for message in messages if message.role != "system"]
            if turns == messages:
                raise
            get_logger().warning("%s; the system prompt is left out", error)
            text = self._chat_template.render(turns, add_generation_prompt)
        return text if add_generation_prompt else text.rpartition(CONTINUED)[0]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the source of the chat template, for the record."""
        return self._chat_template.source if chat_template else None

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        continuations = [self._cut(context, continuation) for _, context, continuation in requests]
        scores = score_all(self._model, continuations, self.batch_size, disable_tqdm)
        for (asked, *_), score in zip(requests, scores, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, tuple(score))
        return [tuple(score) for score in scores]

    def _cut(self, context: list[int], continuation: list[int]) -> Continuation:
        tokens = (context + continuation)[-(self.max_length + 1) :]
        return Continuation(tokens, min(len(continuation), len(tokens) - 1))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text as a whole, in windows of `max_seq_len` tokens."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (log_prob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[number] += log_prob
        for request, log_prob in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, log_prob)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text after each context, cut before the first stop string that the task names."""
        kinds = {repr(request.args[1]): request.args[1] for request in requests}
        stop_strings = self._tokenizer.stop_strings
        sampling_of = {name: sampling(gen_kwargs, self._seed, stop_strings) for name, gen_kwargs in kinds.items()}
        samplings = [sampling_of[repr(request.args[1])] for request in requests]
        longest = max((each.max_new_tokens for each in samplings), default=0)
        if longest >= self.max_length:
            raise ConfigError(
                f"max_seq_length: {self.max_length} leaves no room for a prompt beside the {longest} new tokens of a "
                "task; raise it"
            )
        prompts = [
            self.tok_encode(request.args[0])[each.max_new_tokens - self.max_length :] or [self.prefix_token_id]
            for request, each in zip(requests, samplings, strict=True)
        ]
        texts = [""] * len(requests)
        options = {"batch_size": self.batch_size, "max_seq_len": self.max_length}
        answers = generate_texts(self._model, self._tokenizer, prompts, samplings, **options)
        for i, text in tqdm(answers, total=len(requests), desc="generating", unit="request", disable=disable_tqdm):
            texts[i] = text
            self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return texts


def sampling(gen_kwargs: Mapping[str, Any], seed: int | None, stop_strings: Sequence[str] = ()) -> Sampling:
    """Return how a task with these `generation_kwargs` draws: greedily, unless it samples.

    Its answers end before `stop_strings`, too. Warn of arguments without effect here.
    """
    options = dict(gen_kwargs)
    limits = [int(options.pop(name)) for name in TOKEN_LIMITS if name in options]
    until = options.pop("until", None) or []
    temperature, do_sample = float(options.pop("temperature", 0.0)), options.pop("do_sample", None)
    drawn = {name: options.pop(name) or None for name in ("top_k", "top_p", "min_p") if name in options}
    penalty = options.pop("repetition_penalty", 1.0)
    if options:
        get_logger().warning("generation_kwargs without effect here: %s", ", ".join(sorted(options)))
    return Sampling(
        max_new_tokens=limits[0] if limits else MAX_GEN_TOKS,
        temperature=0.0 if do_sample is False else temperature,
        repetition_penalty=penalty,
        seed=seed,
        stop_strings=(*filter(None, [until] if isinstance(until, str) else until), *stop_strings),
        **drawn,
    )


def chat_template_of(tokenizer: Any) -> ChatTemplate:
    """Return the chat template of a tokenizer, a text template written as one; ConfigError where there is none."""
    template = tokenizer.prompt_template
    if isinstance(template, ChatTemplate):
        return template
    source = as_chat_template(tokenizer)
    if source is None:
        has = "has no template" if template is None else f"has {type(template).__name__}, which is code"
        raise ConfigError(
            f"apply_chat_template: the tokenizer {has}; set tokenizer.prompt_template to chat_template, the "
            "checkpoint's own, or leave the messages bare with apply_chat_template=False"
        )
    return ChatTemplate(source, {}, type(template).__name__)


def as_harness_model(model: TransformerDecoder, tokenizer: Any, **options: Any) -> Any:
    """Return a `HarnessModel` that the harness takes for one of its own; `options` are those of the class."""
    from lm_eval.api.model import TemplateLM

    if not isinstance(tokenizer, ModelTokenizer):
        raise ConfigError(f"tokenizer: {type(tokenizer).__name__} has no place here; it is not a data.ModelTokenizer")
    return type("TorchtuneLite", (HarnessModel, TemplateLM), {})(model, tokenizer, **options)
