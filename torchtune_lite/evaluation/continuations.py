"""Log-probabilities of continuations: joined in rows without padding, logits for the tokens that are scored alone.

t tokens of a row, d embed, n tokens scored.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.modules.loss import token_log_probs
from torchtune_lite.utils import to_device


class Continuation(NamedTuple):
    """Tokens, of which the last `num_scored` are scored given what stands before them: at least one token.

    None are where a tokenizer joins a text with the end of its context: then nothing is left to be unlikely.
    """

    tokens: Sequence[int]
    num_scored: int


class Score(NamedTuple):
    """The sum of the log-probabilities, and whether each token scored is the likeliest one."""

    log_prob: float
    is_greedy: bool


def first_token(tokenizer: Any) -> int:
    """Return what a text is predicted from: BOS, or EOS where there is none."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


Row = list[list[tuple[int, Continuation]]]
"""Of each sequence of a row the continuations that share it, with their places in what was asked for."""


def score_all(
    model: TransformerDecoder, continuations: Sequence[Continuation], batch_size: int, disable_tqdm: bool = False
) -> list[Score]:
    """Return the score of each continuation, in their order.

    The longest are computed first, `batch_size` of them in a row; of shorter ones a row takes as many as have no more
    tokens together. Those that differ in their last token alone, such as the letters of a multiple choice, are one
    sequence.
    """
    scores: dict[int, Score] = {}
    with tqdm(total=len(continuations), desc="scoring", unit="request", disable=disable_tqdm) as bar:
        for row in rows_of(continuations, batch_size):
            places = [place for sequence in row for place, _ in sequence]
            row_scores = score_row(model, [[continuation for _, continuation in sequence] for sequence in row])
            scores |= zip(places, row_scores, strict=True)
            bar.update(len(places))
    return [scores[place] for place in range(len(continuations))]


def rows_of(continuations: Sequence[Continuation], batch_size: int) -> Iterator[Row]:
    """Yield rows of sequences, the longest first."""
    sequences: dict[tuple[int, ...], list[tuple[int, Continuation]]] = {}
    for place, each in enumerate(continuations):
        sequences.setdefault(tuple(each.tokens[:-1]), []).append((place, each))
    longest_first = sorted(sequences, key=len, reverse=True)
    room = batch_size * max(map(len, longest_first), default=0)
    row: Row = []
    taken = 0
    for inputs in longest_first:
        if taken + len(inputs) > room:
            yield row
            row, taken = [], 0
        row.append(sequences[inputs])
        taken += len(inputs)
    if row:
        yield row


@torch.inference_mode()
def score_row(model: TransformerDecoder, sequences: Sequence[Sequence[Continuation]]) -> list[Score]:
    """Return the scores of continuations that are computed as one row.

    Those of a sequence have the same tokens, but for the last one, and may be scored from different tokens on.
    """
    device = model.tok_embeddings.weight.device
    tokens, seq_lens, places, labels, counts = [], [], [], [], []
    for sequence in sequences:
        inputs = sequence[0].tokens[:-1]
        end = len(tokens) + len(inputs)
        tokens += inputs
        seq_lens.append(len(inputs))
        for each in sequence:
            places += range(end - each.num_scored, end)
            labels += each.tokens[len(each.tokens) - each.num_scored :]
            counts.append(each.num_scored)
    row, scored, expected = (to_device(torch.tensor(ids, dtype=torch.long), device) for ids in (tokens, places, labels))
    hidden = model(row[None], seq_lens=seq_lens, skip_output=True)  # [1, t, d]
    hidden, expected = hidden[:, scored], expected[None]  # [1, n, d], [1, n]
    likeliest = torch.empty_like(expected)
    log_probs = token_log_probs(model.output, hidden, expected, likeliest=likeliest)
    parts = zip(log_probs[0].double().cpu().split(counts), (likeliest == expected)[0].cpu().split(counts), strict=True)
    return [Score(each.sum().item(), bool(hits.all())) for each, hits in parts]
