"""Llama 3's own `tokenizer.model`: byte-pair ranks, read by the library `tiktoken`, and Llama 3's form of a chat.

The form is that of Meta's "Llama 3 model cards and prompt formats". Deviates from torchtune in one place: no
`<|end_of_text|>` follows the last message, where it had no loss; the tokens are those of transformers' chat template.
"""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from torchtune_lite.config import DottedPath
from torchtune_lite.data.messages import Message
from torchtune_lite.data.templates import Template
from torchtune_lite.data.tokenizers.chat_template import CHAT_TEMPLATE, Span
from torchtune_lite.data.tokenizers.cuts import LLAMA3_PATTERN, before_spaces
from torchtune_lite.data.tokenizers.files import not_readable, read_tokenizer_file
from torchtune_lite.data.tokenizers.model_tokenizer import ModelTokenizer, TrainOn
from torchtune_lite.errors import ConfigError, DataError
from torchtune_lite.utils import counted

_FIRST = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
NUM_SPECIAL_TOKENS = 256


def llama3_special_tokens(num_ranks: int) -> dict[str, int]:
    """Number Llama 3.1's 256 special tokens, which follow the ranks: 128,000 of them in Meta's file."""
    rest = (f"<|reserved_special_token_{i}|>" for i in range(3, NUM_SPECIAL_TOKENS - len(_FIRST) + 3))
    return {name: num_ranks + i for i, name in enumerate((*_FIRST, *rest))}


class TikTokenBaseTokenizer:
    """Encodes and decodes text with a file of ranks, a line for each: the token's bytes in base64, and its rank.

    `pattern` splits text into words. What reads like one of `special_tokens` in a text is encoded as ordinary text.
    """

    def __init__(
        self, path: str | Path, name: str, pattern: str, bos_id: int, eos_id: int, special_tokens: Mapping[str, int]
    ) -> None:
        try:
            import tiktoken
        except ModuleNotFoundError:
            raise ConfigError("a file of ranks needs tiktoken; pip install 'torchtune_lite[hf]'") from None
        ranks = read_ranks(Path(path).expanduser())
        self.bos_id, self.eos_id = bos_id, eos_id
        self.tt_model = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=dict(special_tokens)
        )
        self.base_vocab_size, self.vocab_size = len(ranks), self.tt_model.n_vocab

    def encode(self, text: str, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        """Encode text."""
        try:
            found = self.tt_model.encode(text, allowed_special=set(), disallowed_special=())
        except ValueError as error:  # a million spaces in a row
            raise DataError(f"tiktoken cannot split a text of {counted(len(text), 'character')}: {error}") from None
        return [self.bos_id] * add_bos + found + [self.eos_id] * add_eos

    def decode(self, token_ids: Sequence[int], truncate_at_eos: bool = True) -> str:
        """Return the text of token ids, special tokens spelled out, up to the first EOS if `truncate_at_eos`."""
        ids = list(token_ids)
        if truncate_at_eos and self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self.tt_model.decode(ids)


class Llama3Tokenizer(ModelTokenizer):
    """Llama 3's tokenizer and form of a chat: a header, the text without space around it and `<|eot_id|>`.

    `special_tokens` are by default Llama 3.1's, numbered from the end of the ranks; `prompt_template` puts text around
    the messages, within that form. A turn that ends with `<|eom_id|>` is one whose message has `eot` unset, one that
    starts with `<|python_tag|>` has `ipython` set. As in torchtune, an answer's header has a loss as the answer has.
    """

    most_around = 16
    marks_roles = True
    cuts = before_spaces([])  # what reads like a special token is split as any text

    def __init__(
        self,
        path: str | Path,
        special_tokens: Mapping[str, int] | None = None,
        max_seq_len: int | None = None,
        prompt_template: DottedPath | Mapping[str, Sequence[str]] | Template | None = None,
        add_eos_when_cut: bool = False,
        train_on: TrainOn = "all",
    ) -> None:
        super().__init__(path, max_seq_len, add_eos_when_cut, train_on)
        if prompt_template == CHAT_TEMPLATE:
            raise ConfigError(
                "tokenizer.prompt_template: Llama3Tokenizer writes Llama 3's form itself; set it to null, or give the "
                "tokenizer.json with its chat template to HuggingFaceModelTokenizer"
            )
        special = dict(special_tokens or llama3_special_tokens(len(read_ranks(Path(path).expanduser()))))
        if missing := [name for name in _FIRST if name not in special and "reserved" not in name]:
            raise ConfigError(f"tokenizer.special_tokens has no {', '.join(missing)}")
        self.special_tokens, self.added = special, set(special.values())
        self.bos_id, self.eos_id = special["<|begin_of_text|>"], special["<|end_of_text|>"]
        self.pad_id, self.eot_id = special["<|finetune_right_pad_id|>"], special["<|eot_id|>"]
        self.stop_tokens = [self.eos_id, self.eot_id, special["<|eom_id|>"]]
        self.tt_model = TikTokenBaseTokenizer(
            path, "llama3_tiktoken", LLAMA3_PATTERN, self.bos_id, self.eos_id, special
        )
        self.vocab_size = self.tt_model.vocab_size
        self._use_template(prompt_template, {}, {}, None)

    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, trim_leading_whitespace: bool = False
    ) -> list[int]:
        """Encode text; no space is put before it, so that there is none to trim."""
        return self.tt_model.encode(text, add_bos, add_eos)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens and ids beyond the vocabulary."""
        known = [token for token in token_ids if token < self.vocab_size and token not in self.added]
        return self.tt_model.decode(known)

    def encode_chat(self, text: str) -> tuple[list[int], list[Span]]:
        """Encode a text in which special tokens are spelled out; return each token's start and end in it, too."""
        tokens = self.tt_model.tt_model.encode(text, allowed_special="all")
        _, starts = self.tt_model.tt_model.decode_with_offsets(tokens)
        return tokens, list(pairwise([*starts, len(text)]))

    def most_tokens(self, text: str) -> int:
        """Bound the tokens of a text without encoding it: one a byte."""
        return len(text.encode())

    def _by_parts(self, messages: list[Message], add_eos: bool) -> tuple[list[int], list[bool], bool]:
        special = self.special_tokens
        limit = self.max_seq_len or math.inf
        tokens, mask = [self.bos_id], [True]
        for i, message in enumerate(messages):
            if len(tokens) > limit:
                break
            stays_open = not add_eos and i + 1 == len(messages) and message.role == "assistant"
            ids = self._header(message.role) + [special["<|python_tag|>"]] * message.ipython
            for part in message.content:
                room = max(limit - len(tokens) - len(ids), 0)
                ids += self.encode_first(part["content"].strip(), room, add_bos=False, add_eos=False)
            if not stays_open:
                ids.append(special["<|eot_id|>" if message.eot else "<|eom_id|>"])
            tokens += ids
            mask += [message.masked] * len(ids)
        if not add_eos and messages[-1].role != "assistant":
            tokens += self._header("assistant")
            mask += [True] * (len(tokens) - len(mask))
        return tokens, mask, False

    def _header(self, role: str) -> list[int]:
        start, end = (self.special_tokens[f"<|{name}_header_id|>"] for name in ("start", "end"))
        return [start, *self.encode(role, False, False), end, *self.encode("\n\n", False, False)]


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a file of ranks; DataError for a line that is none, a rank given twice or a missing one."""
    data = read_tokenizer_file(path, "ranks")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise not_readable(path, data, "ranks", f"line {number} is not a token and a rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise not_readable(path, data, "ranks", "ranks or single bytes are missing")
    return ranks
