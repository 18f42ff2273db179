"""Answers of a model: the engine that chat, evaluation, serving and roll-outs share, and what goes in and comes out."""

from torchtune_lite.generation.engine import Engine, generate
from torchtune_lite.generation.prompts import PROMPT_ROLES, cap_length, encode_prompt
from torchtune_lite.generation.request import Request
from torchtune_lite.generation.sampling import Sampling, TokenLogprobs
from torchtune_lite.generation.text import TextStream

__all__ = [
    "PROMPT_ROLES",
    "Engine",
    "Request",
    "Sampling",
    "TextStream",
    "TokenLogprobs",
    "cap_length",
    "encode_prompt",
    "generate",
]
