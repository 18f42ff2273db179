"""The generation engine: a model's answers to many prompts at once, each in a slot of the KV caches.

b rows that get a token, v vocabulary.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from torchtune_lite.errors import ConfigError
from torchtune_lite.generation.prompts import cap_length
from torchtune_lite.generation.request import Request
from torchtune_lite.generation.sampling import Sampler, Sampling, TokenLogprobs
from torchtune_lite.generation.slots import Slot, find_place
from torchtune_lite.generation.text import TextStream
from torchtune_lite.generation.weights import inference_weights
from torchtune_lite.modules import CachedSequences, TransformerDecoder
from torchtune_lite.utils import counted, get_logger, to_device

BLOCK = 256
"""Positions by which the caches grow, at least."""
MOST_TOKENS = 2048
"""Tokens that a step computes at most; of longer prompts the rest comes in later steps."""
AHEAD = 8
"""Tokens that a GPU computes before the host looks whether answers have ended."""


class Engine:
    """Answers of a model to prompts, computed together.

    Each of `slots` rows of the KV caches holds a sequence of its own length; a prompt takes the place of an answer that
    has ended, and prompts are read beside answers that are under way. What a slot holds stays for later prompts that
    begin alike, of which only the rest is computed: a conversation that goes on, samples of one prompt, a shared system
    prompt. The answer to a prompt does not depend on its neighbours.

    `max_seq_len` bounds prompt and answer together (None: the model's); memory for keys and values grows with what is
    there. An answer ends before one of `stop_tokens`. Stop strings need the `tokenizer`. Until `close`, the model is in
    eval mode, its adapters merged as the `inference_weights` are; `int8` is an option of theirs.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        *,
        slots: int = 8,
        max_seq_len: int | None = None,
        stop_tokens: Collection[int] = (),
        tokenizer: Any = None,
        int8: bool = False,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"slots is {slots}; it must be 1 or more")
        self._undo = ExitStack()
        self._undo.callback(model.train, model.training)
        self._undo.callback(model.delete_caches)
        self._undo.enter_context(inference_weights(model, int8=int8))
        self.model, self.tokenizer, self.stop_tokens = model.eval(), tokenizer, frozenset(stop_tokens)
        self.max_seq_len = min(max_seq_len or model.config.max_seq_len, model.config.max_seq_len)
        self.device = model.tok_embeddings.weight.device
        self.ahead = AHEAD if self.device.type == "cuda" else 1
        self._slots = [Slot(number) for number in range(slots)]
        self._waiting: deque[Request] = deque()
        self._steps, self._said = 0, False
        self._seen: Tensor | None = None  # [slots, v] bool: tokens that a repetition penalty is for
        self._sampler: tuple[list[Request], Sampler] | None = None
        model.setup_caches(slots, min(BLOCK, self.max_seq_len))

    def submit(self, prompt: Sequence[int], sampling: Sampling, *, n: int = 1) -> list[Request]:
        """Queue `n` samples of the answer to a prompt, which is read once.

        New tokens are capped at the positions that are left, which the log says once. Raise ConfigError for a prompt
        that is empty or leaves none, and for stop strings without a tokenizer.
        """
        if not prompt:
            raise ConfigError("a prompt has no tokens; it needs one to start from, such as BOS")
        if sampling.stop_strings and self.tokenizer is None:
            raise ConfigError("stop_strings need a tokenizer; give the engine one")
        length = cap_length(len(prompt), sampling.max_new_tokens, self.max_seq_len)
        if length < sampling.max_new_tokens and not self._said:
            self._said = True
            prompt_len, most = counted(len(prompt), "token"), sampling.max_new_tokens
            limits = f"a prompt of {prompt_len} and max_seq_len {self.max_seq_len}"
            get_logger().warning(f"max_new_tokens {most} is capped at {length}, by {limits}")
        requests = []
        for number in range(n):
            stream = TextStream(self.tokenizer, sampling.stop_strings) if sampling.stop_strings else None
            requests.append(Request(prompt, sampling, length, number, stream))
        if length:
            self._waiting.extend(requests)
        else:
            for request in requests:
                request.finish_reason = "length"
        return requests

    def cancel(self, request: Request) -> None:
        """End a request, if it has not ended; its slot is free for another."""
        if request.finish_reason is None:
            request.finish_reason = "cancelled"
            if request in self._waiting:
                self._waiting.remove(request)
            self._release()

    def run(self) -> None:
        """Compute until every request has its answer."""
        while self._waiting or any(slot.request for slot in self._slots):
            self.step()

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield the tokens of one answer as they come; closing the iterator ends it."""
        [request] = self.submit(prompt, sampling)
        sent = 0
        try:
            while request.finish_reason is None:
                self.step()
                new, sent = request.tokens[sent:], len(request.tokens)
                yield from new
        finally:
            self.cancel(request)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Read prompts that wait and fit, and compute the next token of every answer; return those that went on.

        On a GPU answers go on by several tokens where no prompt is read, since the host waits for each look at them.
        """
        self._admit()
        batch = self._batch()
        if not batch:
            return []
        rounds = self._rounds(batch)
        self._reserve(max(len(slot.held) + size for slot, size in batch) + rounds - 1)
        ready = [slot for slot, size in batch if size == len(slot.pending)]
        tokens = to_device(torch.tensor([token for slot, size in batch for token in slot.pending[:size]]), self.device)
        chosen = []
        for number in range(rounds):
            hidden = self._forward(batch, tokens, number)
            if ready:
                tokens, notes = self._choose(ready, self.model.logits(hidden).float())
                chosen.append((tokens, notes))
        for slot, size in batch:
            slot.advance(size)
        requests = [slot.request for slot in ready]
        self._extend(ready, chosen)
        self._release()
        return requests

    def close(self) -> None:
        """Free the KV caches and leave the model as it was."""
        self._undo.close()

    def _admit(self) -> None:
        """Give free slots to requests that wait."""
        self._steps += 1
        passed_over: list[Request] = []
        while self._waiting and len(passed_over) < len(self._slots) and not all(slot.request for slot in self._slots):
            request = self._waiting.popleft()
            if not self._place(request):
                passed_over.append(request)
        self._waiting.extendleft(reversed(passed_over))

    def _place(self, request: Request) -> bool:
        """Put a request into a slot, if there is one for it."""
        text_len = len(request.prompt) + request.max_new_tokens
        place = find_place(
            self._slots, request.prompt, lambda slot: self.model.rope.turns_alike(slot.text_len, text_len)
        )
        if place is None:
            return False
        slot, source, shared = place
        if shared and slot is not source:
            for layer in self.model.layers:
                layer.attn.kv_cache.copy(source.number, slot.number, shared)
        slot.held, slot.pending = request.prompt[:shared], request.prompt[shared:]
        slot.request, slot.text_len, slot.last_use = request, text_len, self._steps
        if request.sampling.repetition_penalty != 1:
            self._see(slot)
        return True

    def _batch(self) -> list[tuple[Slot, int]]:
        """Choose the slots of this step and how many tokens of each: answers first, prompts share what they leave."""
        running = [slot for slot in self._slots if slot.request is not None]
        batch, room = [], MOST_TOKENS
        for slot in sorted(running, key=lambda slot: len(slot.pending) > 1):
            size = min(len(slot.pending), room)
            room -= size
            if size:
                batch.append((slot, size))
        return batch

    def _reserve(self, length: int) -> None:
        """Let the caches hold so many positions a slot."""
        capacity = self.model.layers[0].attn.kv_cache.capacity
        if length > capacity:
            blocks = -(-max(length, 2 * capacity) // BLOCK)
            for layer in self.model.layers:
                layer.attn.kv_cache.grow(min(blocks * BLOCK, self.max_seq_len))

    def _rounds(self, batch: list[tuple[Slot, int]]) -> int:
        """Choose how many tokens of each answer are computed before the host looks at them."""
        if any(len(slot.pending) > 1 for slot, _ in batch):
            return 1
        left = max(slot.request.max_new_tokens - len(slot.request.tokens) for slot, _ in batch)
        return min(self.ahead, left, self.max_seq_len - max(len(slot.held) for slot, _ in batch))

    def _forward(self, batch: list[tuple[Slot, int]], tokens: Tensor, number: int) -> Tensor:
        """Compute `tokens [T]` of a batch, in round `number`; return the last state of each slot that is ready."""
        slots, sizes = zip(*batch, strict=True)
        starts = [len(slot.held) + number for slot in slots]
        numbers, text_lens = [slot.number for slot in slots], [slot.text_len for slot in slots]
        sequences = CachedSequences(numbers, starts, sizes, self.device, text_lens)
        hidden = self.model(tokens[None], mask=sequences, skip_output=True)[0]
        ends = list(accumulate(sizes, initial=-1))[1:]  # of each slot, its last row
        ends = [end for end, (slot, size) in zip(ends, batch, strict=True) if size == len(slot.pending)]
        return hidden if len(ends) == len(hidden) else hidden[to_device(torch.tensor(ends).long(), self.device)]

    def _choose(self, slots: list[Slot], logits: Tensor) -> tuple[Tensor, list[TokenLogprobs | None]]:
        """Choose the next token in each slot from its row of `logits [b, v]`; return it and what is noted of it."""
        requests = [slot.request for slot in slots]
        if self._sampler is None or self._sampler[0] != requests:
            self._sampler = requests, Sampler([each.sampling for each in requests], logits.shape[1], self.device)
        sampler = self._sampler[1]
        chances = None if sampler.greedy else sampler.chances([request.dice for request in requests])
        if sampler.penalised:
            numbers = to_device(torch.tensor([slot.number for slot in slots]), self.device)
            chosen = sampler.choose(logits, chances, self._seen[numbers])
            self._seen[numbers, chosen] = True
        else:
            chosen = sampler.choose(logits, chances)
        return chosen, sampler.logprobs(logits, chosen) if sampler.notes else [None] * len(slots)

    def _extend(self, slots: list[Slot], chosen: list[tuple[Tensor, list[TokenLogprobs | None]]]) -> None:
        """Add the tokens of each round to the answers, as far as these go."""
        rounds = torch.stack([tokens for tokens, _ in chosen]).tolist() if chosen else []
        for number, (tokens, (_, notes)) in enumerate(zip(rounds, chosen, strict=True)):
            for slot, token, note in zip(slots, tokens, notes, strict=True):
                if slot.request.finish_reason is None:
                    if number:
                        slot.advance(1)
                    slot.request.add(token, self.stop_tokens, note)
                    slot.pending = [token]

    def _see(self, slot: Slot) -> None:
        """Note which tokens the prompt in a slot has."""
        if self._seen is None:
            shape = (len(self._slots), self.model.config.vocab_size)
            self._seen = torch.zeros(shape, dtype=torch.bool, device=self.device)
        self._seen[slot.number] = False
        self._seen[slot.number, torch.tensor(slot.request.prompt, device=self.device)] = True

    def _release(self) -> None:
        """Free the slots of requests that have ended."""
        for slot in self._slots:
            if slot.request is not None and slot.request.finish_reason is not None:
                slot.release()
