"""The generation engine: a model's answers to many prompts at once, each in a slot of the KV caches.

b rows that get a token, v vocabulary.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from torchtune_lite.errors import ConfigError
from torchtune_lite.generation.prompts import cap_length
from torchtune_lite.generation.request import Request
from torchtune_lite.generation.sampling import Sampler, Sampling
from torchtune_lite.generation.slots import Slot, find_place
from torchtune_lite.generation.text import TextStream
from torchtune_lite.generation.weights import inference_weights
from torchtune_lite.modules import CachedSequences, TransformerDecoder
from torchtune_lite.utils import counted, get_logger, to_device

BLOCK = 256
"""Positions by which the caches grow, at least."""
MOST_TOKENS = 2048
"""Tokens that a step computes at most; of longer prompts the rest comes in later steps."""
SLOTS = 64
"""Prompts that `generate` answers together at most."""


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
        self._weights = ExitStack()
        self._weights.enter_context(inference_weights(model, int8=int8))
        self.model, self.tokenizer, self.stop_tokens = model.eval(), tokenizer, frozenset(stop_tokens)
        self.max_seq_len = min(max_seq_len or model.config.max_seq_len, model.config.max_seq_len)
        self.device = model.tok_embeddings.weight.device
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
        """Read prompts that wait and fit, and compute the next token of every answer; return those that went on."""
        self._admit()
        batch = self._batch()
        if not batch:
            return []
        slots, sizes = zip(*batch, strict=True)
        starts = [len(slot.held) for slot in slots]
        self._reserve(max(start + size for start, size in zip(starts, sizes, strict=True)))
        numbers, text_lens = [slot.number for slot in slots], [slot.text_len for slot in slots]
        sequences = CachedSequences(numbers, starts, sizes, self.device, text_lens)
        tokens = [token for slot, size in batch for token in slot.pending[:size]]
        hidden = self.model(to_device(torch.tensor([tokens]), self.device), mask=sequences, skip_output=True)[0]
        for slot, size in batch:
            slot.advance(size)
        ends = [end - 1 for end, slot in zip(accumulate(sizes), slots, strict=True) if not slot.pending]
        ready = [slot for slot in slots if not slot.pending]
        if not ready:
            return []
        if len(ends) < len(tokens):
            hidden = hidden[to_device(torch.tensor(ends), self.device)]
        requests = [slot.request for slot in ready]
        self._extend(ready, requests, self.model.logits(hidden).float())
        self._release()
        return requests

    def close(self) -> None:
        """Free the KV caches and give the model its own weights back."""
        self.model.delete_caches()
        self._weights.close()

    def _admit(self) -> None:
        """Give free slots to requests that wait."""
        self._steps += 1
        passed_over: list[Request] = []
        while self._waiting and len(passed_over) < len(self._slots):
            request = self._waiting.popleft()
            if not self._place(request):
                passed_over.append(request)
        self._waiting.extendleft(reversed(passed_over))

    def _place(self, request: Request) -> bool:
        """Put a request into a slot, if there is one for it."""
        text_len = len(request.prompt) + request.max_new_tokens
        place = find_place(self._slots, request.prompt, lambda slot: self._rotated_alike(slot.text_len, text_len))
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

    def _rotated_alike(self, one: int, other: int) -> bool:
        """Whether a text of one length can use the keys of a text of the other."""
        rope = self.model.rope
        if one == other or rope.scaling is None or not rope.scaling.depends_on_length:
            return True
        return torch.equal(*(rope.frequencies(torch.tensor([float(length)])) for length in (one, other)))

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

    def _extend(self, slots: list[Slot], requests: list[Request], logits: Tensor) -> None:
        """Choose the next token of the answer in each slot from its row of `logits [b, v]`."""
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
        notes = sampler.logprobs(logits, chosen) if sampler.notes else [None] * len(slots)
        for slot, token, note in zip(slots, chosen.tolist(), notes, strict=True):
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


def generate(
    model: TransformerDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    stop_tokens: Collection[int] = (),
    tokenizer: Any = None,
    int8: bool = False,
    seed: int | None = None,
    **sampling: Any,
) -> list[list[int]]:
    """Continue each of `prompts` (token ids, none empty); return the new ids alone, cut before the first stop token.

    `sampling` are the fields of `Sampling`, `max_new_tokens` first. `seed` makes the draw of all repeatable and leaves
    the global generator alone. Raise ConfigError for a prompt that fills the model's positions.
    """
    was_training = model.training
    settings = Sampling(seed=seed, **sampling)
    engine = Engine(model, slots=min(len(prompts), SLOTS), stop_tokens=stop_tokens, tokenizer=tokenizer, int8=int8)
    try:
        requests = []
        for number, prompt in enumerate(prompts):
            own = settings if seed is None else replace(settings, seed=seed + number)
            requests += engine.submit(prompt, own)
        engine.run()
    finally:
        engine.close()
        model.train(was_training)
    return [request.tokens for request in requests]
