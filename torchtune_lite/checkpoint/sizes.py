"""The sizes of a model beside those of its checkpoint, and the rows that it embeds beyond it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from torchtune_lite.checkpoint.formats.weights import Weight, with_mean_rows
from torchtune_lite.checkpoint.layout import EMBEDDING, OUTPUT
from torchtune_lite.errors import CheckpointError


def check_sizes(model: nn.Module, decoder_args: Mapping[str, Any], checkpoint_dir: Path) -> None:
    """Raise CheckpointError where the sizes of a checkpoint, `decoder_args`, are not those of `model`."""
    # max_seq_len bounds the input and is the run's own choice, as is an output of its own
    own = {"max_seq_len", *(("tie_word_embeddings",) if not model.config.tie_word_embeddings else ())}
    theirs = {name: value for name, value in decoder_args.items() if name not in own}
    theirs["vocab_size"] += _num_rows_to_add(model, decoder_args)
    if differences := model.config.differences(theirs):
        misfits = [f"{name} {value}, the model has {ours}" for name, (ours, value) in differences.items()]
        raise CheckpointError(
            f"checkpoint {checkpoint_dir} has {'; '.join(misfits)}; use _component_: "
            "torchtune_lite.models.from_checkpoint, which takes its sizes from the checkpoint"
        )


def grown_embeddings(
    weights: Mapping[str, Weight], model: nn.Module, decoder_args: Mapping[str, Any]
) -> dict[str, Weight]:
    """Return embedding and output of a checkpoint with the rows that `model` has beyond them: the mean of the others.

    Nothing is returned where there are none. `weights` are by our names.
    """
    count = _num_rows_to_add(model, decoder_args)
    names = [name for name in (EMBEDDING, OUTPUT) if name in weights and count]
    return {name: with_mean_rows(weights[name], count) for name in names}


def _num_rows_to_add(model: nn.Module, decoder_args: Mapping[str, Any]) -> int:
    """Count the rows that the model was given beyond the checkpoint's; none where it was saved with them."""
    missing = model.config.vocab_size - decoder_args["vocab_size"]
    return missing if missing == model.added_rows else 0
