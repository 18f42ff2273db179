"""Rows of tokens that are trained alone, in PEFT's files: `TrainableTokensConfig`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torchtune_lite.peft.peft_file import HARMLESS, PeftFile, Projection


class TokensFile(PeftFile):
    """Of the rows of some tokens, without any adapter."""

    peft_type = "TRAINABLE_TOKENS"
    names = {"trainable_tokens_delta": "rows"}
    compared = {"token_indices": ("a list of tokens", lambda value: isinstance(value, list))}
    harmless = HARMLESS | {"init_weights"}

    def fields(self, adapted: Sequence[Projection], targets: Sequence[str]) -> dict[str, Any]:
        """Return the fields of a `TrainableTokensConfig`."""
        return {"token_indices": list(adapted[0].parts[0].indices)}

    def described(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return what it is called, and how many tokens there are."""
        return "trainable tokens", f", of {len(config['token_indices'])} tokens"

    def misfits(self, config: Mapping[str, Any], adapted: Sequence[Projection]) -> list[str]:
        """Return where the tokens are others."""
        ours = list(adapted[0].parts[0].indices)
        given = config["token_indices"]
        return [] if given == ours else [f"token_indices is {given}, the model trains {ours}"]
