"""Answers of a model: the engine that chat, evaluation, serving and roll-outs share, and what goes in and comes out."""

from torchtune_lite.generation.answer_file import AnswerFile, made_by
from torchtune_lite.generation.answering import answers, as_prompt, num_answered
from torchtune_lite.generation.calls import generate
from torchtune_lite.generation.conversation import Conversation
from torchtune_lite.generation.engine import Engine
from torchtune_lite.generation.prompts import PROMPT_ROLES, cap_length, encode_prompt, put_question, tokens_of
from torchtune_lite.generation.request import Request
from torchtune_lite.generation.sampling import Sampling, TokenLogprobs
from torchtune_lite.generation.text import TextStream, text_of
from torchtune_lite.generation.weights import Int8Linear, inference_weights

__all__ = [
    "PROMPT_ROLES",
    "AnswerFile",
    "Conversation",
    "Engine",
    "Int8Linear",
    "Request",
    "Sampling",
    "TextStream",
    "TokenLogprobs",
    "answers",
    "as_prompt",
    "cap_length",
    "encode_prompt",
    "generate",
    "inference_weights",
    "made_by",
    "num_answered",
    "put_question",
    "text_of",
    "tokens_of",
]
