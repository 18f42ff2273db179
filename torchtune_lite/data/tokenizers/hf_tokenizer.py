"""Tokenizers of Hugging Face: a `tokenizer.json`, read by the library `tokenizers`."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torchtune_lite.data.messages import Message
from torchtune_lite.data.templates import joined
from torchtune_lite.data.tokenizers.chat_template import CHAT_TEMPLATE, Span
from torchtune_lite.data.tokenizers.cuts import cuts_of
from torchtune_lite.data.tokenizers.files import (
    guard,
    ids,
    not_readable,
    prepend_scheme,
    read_json,
    read_tokenizer_file,
    special_tokens,
)
from torchtune_lite.data.tokenizers.merges import MERGES, from_vocabulary
from torchtune_lite.data.tokenizers.model_tokenizer import ModelTokenizer, PromptTemplateArg, TrainOn
from torchtune_lite.errors import ConfigError, DataError

TOKENIZER_JSON = "tokenizer.json"
SAVE_AS_JSON = "save one with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...))"
AS_WRITTEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
"""How an added token is found in a text: exactly as it is written. It is not special, and so is shown when decoded."""


class HuggingFaceBaseTokenizer:
    """Encodes and decodes text with a `tokenizer.json`.

    BOS, EOS and padding are those of tokenizer_config.json, special_tokens_map.json and, where they name none,
    generation_config.json; these are looked for beside `tokenizer_json_path` unless their paths are given. DataError
    where no EOS is named or a token that is named is not in the vocabulary. Without a padding token EOS pads: labels
    are masked by their place, so that no EOS loses its own. `add_tokens` are texts that become one token each, wherever
    they stand, and are shown in what is decoded.
    """

    def __init__(
        self,
        tokenizer_json_path: str | Path,
        *,
        tokenizer_config_json_path: str | Path | None = None,
        generation_config_path: str | Path | None = None,
        add_tokens: Sequence[str] | None = None,
    ) -> None:
        path = Path(tokenizer_json_path).expanduser()
        self.folder = path.parent
        self.config = read_json(_beside(path, tokenizer_config_json_path, "tokenizer_config.json"))
        generation = read_json(_beside(path, generation_config_path, "generation_config.json"))
        self.tokenizer = _load(path, self.config)
        self.added_ids = _add_tokens(self.tokenizer, add_tokens, path)
        self.template_variables = special_tokens(self.folder, self.config)
        self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self.special_tokens = {token.content: i for i, token in self.tokenizer.get_added_tokens_decoder().items()}
        self.added = set(self.special_tokens.values())
        self.bos_id = self._find("bos", generation)
        eos_id = self._find("eos", generation)
        if eos_id is None:
            raise DataError(
                f"tokenizer {path} has no EOS token: set eos_token in {self.folder / 'tokenizer_config.json'}"
            )
        self.eos_id = eos_id
        pad_id = self._find("pad", generation)
        self.pad_id = eos_id if pad_id is None else pad_id
        self.stop_tokens = list(dict.fromkeys([eos_id, *ids(generation.get("eos_token_id"))]))

    def encode(self, text: str, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        """Encode text; BOS where the tokenizer has one."""
        bos = [self.bos_id] if add_bos and self.bos_id is not None else []
        return bos + self.tokenizer.encode(text, add_special_tokens=False).ids + [self.eos_id] * add_eos

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens and ids beyond the vocabulary."""
        return self.tokenizer.decode([token for token in token_ids if token < self.vocab_size])

    def leave_out(self, first_id: int) -> list[str]:
        """Take the added tokens from the id `first_id` on for ordinary text; return them, none where others are there.

        Such as the one that stands for an image in a model that reads texts alone.
        """
        names = [name for name, i in self.special_tokens.items() if i >= first_id]
        if len(names) != self.vocab_size - first_id or {self.bos_id, self.eos_id, self.pad_id} - set(range(first_id)):
            return []
        settings = json.loads(self.tokenizer.to_str())
        settings["added_tokens"] = [token for token in settings["added_tokens"] if token["id"] < first_id]
        self.tokenizer = self.tokenizer.from_str(json.dumps(settings))
        self.special_tokens = {name: i for name, i in self.special_tokens.items() if i < first_id}
        self.added, self.vocab_size = set(self.special_tokens.values()), first_id
        return names

    def _find(self, name: str, generation_config: Mapping[str, Any]) -> int | None:
        text = self.template_variables.get(f"{name}_token")
        if text is None:
            return next(iter(ids(generation_config.get(f"{name}_token_id"))), None)
        found = self.tokenizer.token_to_id(text)
        if found is None:
            raise DataError(
                f"tokenizer {self.folder / 'tokenizer_config.json'}: {name}_token {text!r} is not in tokenizer.json; "
                "fetch both files from the same model"
            )
        return found


class HuggingFaceModelTokenizer(HuggingFaceBaseTokenizer, ModelTokenizer):
    """A `tokenizer.json` with its chat template, or another `prompt_template`.

    Tokens of a chat are those of transformers' `apply_chat_template`. Text of another template is encoded as a whole,
    special tokens in it as such; where the tokenizer puts a space before a text, as Llama 2's does, part by part, to
    the same tokens as with its `tokenizer.model`. `truncation_type` is torchtune's and can only be "right".
    """

    def __init__(
        self,
        tokenizer_json_path: str | Path,
        *,
        tokenizer_config_json_path: str | Path | None = None,
        generation_config_path: str | Path | None = None,
        truncation_type: str = "right",
        max_seq_len: int | None = None,
        prompt_template: PromptTemplateArg = CHAT_TEMPLATE,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_eos_when_cut: bool = False,
        train_on: TrainOn = "all",
        add_tokens: Sequence[str] | None = None,
    ) -> None:
        if truncation_type != "right":
            raise ConfigError(f"tokenizer.truncation_type={truncation_type!r} is not served; only 'right' is")
        ModelTokenizer.__init__(self, tokenizer_json_path, max_seq_len, add_eos_when_cut, train_on)
        HuggingFaceBaseTokenizer.__init__(
            self,
            tokenizer_json_path,
            tokenizer_config_json_path=tokenizer_config_json_path,
            generation_config_path=generation_config_path,
            add_tokens=add_tokens,
        )
        self._guard = guard(self.tokenizer.get_vocab())
        self._guard_length = len(super().encode(self._guard, add_bos=False, add_eos=False))
        self.prefixes = super().encode("a", add_bos=False, add_eos=False) != self._encode_part("a", trim=True)
        self._bounded = self.tokenizer.normalizer is None
        self.adds_bos = self.bos_id in self.tokenizer.encode("").ids
        self._use_template(prompt_template, self.config, self.template_variables, chat_template_kwargs)

    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, trim_leading_whitespace: bool = False
    ) -> list[int]:
        """Encode text; `trim_leading_whitespace` leaves out a space that the tokenizer puts before a text."""
        if not (trim_leading_whitespace and self.prefixes):
            return super().encode(text, add_bos, add_eos)
        bos = [self.bos_id] if add_bos and self.bos_id is not None else []
        return bos + self._encode_part(text, trim=True) + [self.eos_id] * add_eos

    def encode_chat(self, text: str) -> tuple[list[int], list[Span]]:
        """Encode a text in which special tokens are spelled out; return each token's start and end in it, too."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @cached_property
    def cuts(self) -> re.Pattern | None:
        """Find where a text can be cut, if the steps of the tokenizer are known."""
        return cuts_of(self.tokenizer)

    def most_tokens(self, text: str) -> float:
        """Bound the tokens of a text: one a byte and one put before it, unless a normalizer may make it longer."""
        return 1 + len(text.encode()) if self._bounded else math.inf

    def _encode_part(self, text: str, trim: bool) -> list[int]:
        """Encode a text with one space before it, as SentencePiece does, or none."""
        if not text:
            return []
        space = "" if trim else " "
        return self.tokenizer.encode(self._guard + space + text, add_special_tokens=False).ids[self._guard_length :]

    def _by_parts(self, messages: list[Message], add_eos: bool) -> tuple[list[int], list[bool], bool]:
        if self.prefixes:
            return super()._by_parts(messages, add_eos)
        ends = [self.tokenizer.id_to_token(i) if i is not None else "" for i in (self.bos_id, self.eos_id)]
        return *self._encode_spans(*joined(messages, *ends, add_eos), self.max_seq_len), False


def _beside(tokenizer_json: Path, given: str | Path | None, name: str) -> Path:
    if given is None:
        return tokenizer_json.parent / name
    path = Path(given).expanduser()
    if not path.is_file():
        raise DataError(f"tokenizer: {given} is not a file; leave the key out to use the {name} beside tokenizer.json")
    return path


def _add_tokens(tokenizer: Any, names: Sequence[str] | None, path: Path) -> list[int]:
    """Let texts be tokens of their own, and return their ids: those that they have, or the next ones."""
    if names is None:
        return []
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ConfigError(f"tokenizer.add_tokens is {names!r}; it must be a list of texts that are not empty")
    if path.name != TOKENIZER_JSON:
        raise ConfigError(f"tokenizer.add_tokens needs a {TOKENIZER_JSON}, not {path.name}; {SAVE_AS_JSON}")
    from tokenizers import AddedToken

    names = list(dict.fromkeys(names))
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([AddedToken(name, **AS_WRITTEN) for name in names if name not in known])
    return [tokenizer.token_to_id(name) for name in names]


def _load(path: Path, config: Mapping[str, Any]) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise ConfigError("tokenizer.json needs the library tokenizers; pip install 'torchtune_lite[hf]'") from None
    data = read_tokenizer_file(path, "json")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise not_readable(path, data, "json", error) from None
    if all(isinstance(each, int) for each in content.values()) and (path.parent / MERGES).is_file():
        content = from_vocabulary(content, path.parent / MERGES, config)
        data = json.dumps(content).encode()
    if not isinstance(content.get("model"), dict):
        raise DataError(
            f"tokenizer.path {path} is a JSON file with the keys {', '.join(list(content)[:4])}…, not a "
            "tokenizer.json; give the file of that name"
        )
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises no narrower one
        raise not_readable(path, data, "json", error) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if _is_rebuilt(path.parent, config) and b'"ByteLevel"' not in data and content["model"].get("type") == "BPE":
        from tokenizers.pre_tokenizers import Metaspace

        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = Metaspace("▁", prepend_scheme=prepend_scheme(config), split=False)
    return tokenizer


def _is_rebuilt(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether transformers (5) takes the vocabulary alone from tokenizer.json and splits text its own way."""
    model = read_json(folder / "config.json")
    named = config.get("tokenizer_class") or model.get("tokenizer_class") or ""
    return named.removesuffix("Fast") == "LlamaTokenizer" and model.get("model_type") in (None, "llama")
