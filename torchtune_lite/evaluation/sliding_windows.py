"""Perplexity of texts: every token counted once, predicted from what stands before it in a window that slides on."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from torchtune_lite.errors import DataError
from torchtune_lite.evaluation.continuations import Continuation, first_token, score_row
from torchtune_lite.modules import TransformerDecoder


def windows(tokens: Sequence[int], max_seq_len: int, stride: int) -> Iterator[Continuation]:
    """Yield what the log-probabilities of all `tokens` but the first are computed in.

    A window predicts from `max_seq_len` tokens at most, and starts `stride` tokens after the one before. Of its tokens
    those are scored that no window has scored before, so that after the first window each token sees at least
    `max_seq_len - stride` others.
    """
    scored = 0
    for start in range(0, len(tokens), stride):
        end = min(start + max_seq_len, len(tokens) - 1)
        if end > scored:
            yield Continuation(tokens[start : end + 1], end - scored)
        scored = end
        if end == len(tokens) - 1:
            return


def perplexity(
    model: TransformerDecoder,
    tokenizer: Any,
    documents: Iterable[str],
    *,
    max_seq_len: int,
    stride: int,
    batch_size: int,
) -> dict[str, Any]:
    """Return `perplexity`, exp of the mean loss of a token, and `bits_per_byte`, which compares tokenizers too.

    The first token of a document is predicted from BOS, or EOS where the tokenizer has no BOS, which is not counted
    itself; nor is an end of the document predicted. Of the windows, as many are computed together as have the tokens of
    `batch_size` whole ones. The result has the sums besides. Raise DataError where there is no token.
    """
    counts: Counter[str] = Counter()

    def all_windows() -> Iterator[Continuation]:
        for text in documents:
            tokens = [first_token(tokenizer), *tokenizer.encode(text, add_bos=False, add_eos=False)]
            counts.update(documents=1, bytes=len(text.encode()), tokens=len(tokens) - 1)
            yield from windows(tokens, max_seq_len, stride)

    nll = 0.0
    with tqdm(desc="perplexity", unit="token", unit_scale=True) as bar:
        for batch in filled(all_windows(), batch_size * max_seq_len):
            nll -= sum(score.log_prob for score in score_row(model, [[window] for window in batch]))
            counts.update(windows=len(batch))
            bar.update(sum(window.num_scored for window in batch))
    if not counts["tokens"]:
        raise DataError("there is no text whose perplexity could be measured")
    loss = nll / counts["tokens"]
    bits = nll / math.log(2) / counts["bytes"]
    start = "EOS" if tokenizer.bos_id is None else "BOS"
    counted = f"each token once; the first of a document predicted from {start}, its end not predicted"
    return {"perplexity": math.exp(loss), "bits_per_byte": bits, "loss": loss, "counted": counted, **counts}


def filled(windows: Iterable[Continuation], room: int) -> Iterator[list[Continuation]]:
    """Yield windows that follow each other, as many as have at most `room` tokens."""
    batch: list[Continuation] = []
    taken = 0
    for window in windows:
        length = len(window.tokens) - 1
        if batch and taken + length > room:
            yield batch
            batch, taken = [], 0
        batch.append(window)
        taken += length
    if batch:
        yield batch
