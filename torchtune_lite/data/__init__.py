"""From rows to tensors: messages, prompt templates, tokenizers, samples, batches."""

from torchtune_lite.data.batches import Batches, num_label_tokens, num_real_tokens, padded_collate_sft, windows
from torchtune_lite.data.chat_template import ChatTemplate
from torchtune_lite.data.hf_tokenizer import HuggingFaceBaseTokenizer, HuggingFaceModelTokenizer
from torchtune_lite.data.llama3_tokenizer import Llama3Tokenizer, TikTokenBaseTokenizer
from torchtune_lite.data.messages import (
    AlpacaToMessages,
    InputOutputToMessages,
    Message,
    OpenAIToMessages,
    ShareGPTToMessages,
    validate_messages,
)
from torchtune_lite.data.packed import refuse_packed
from torchtune_lite.data.rows import OnBadSample, Rows
from torchtune_lite.data.sentencepiece_tokenizer import SentencePieceTokenizer
from torchtune_lite.data.sft import CROSS_ENTROPY_IGNORE_IDX, OnLongSample, SFTDataset
from torchtune_lite.data.sources import DataFiles, Filter, load_rows
from torchtune_lite.data.templates import (
    ChatMLTemplate,
    GrammarErrorCorrectionTemplate,
    Llama2ChatTemplate,
    MistralChatTemplate,
    PromptTemplate,
    QuestionAnswerTemplate,
    SummarizeTemplate,
)
from torchtune_lite.data.text import ColumnText, TextTokens
from torchtune_lite.data.tokenizer_loader import load_tokenizer
from torchtune_lite.data.tokenizers import ModelTokenizer, check_vocabulary, limit_length

__all__ = [
    "CROSS_ENTROPY_IGNORE_IDX",
    "AlpacaToMessages",
    "Batches",
    "ChatMLTemplate",
    "ChatTemplate",
    "ColumnText",
    "DataFiles",
    "Filter",
    "GrammarErrorCorrectionTemplate",
    "HuggingFaceBaseTokenizer",
    "HuggingFaceModelTokenizer",
    "InputOutputToMessages",
    "Llama2ChatTemplate",
    "Llama3Tokenizer",
    "Message",
    "MistralChatTemplate",
    "ModelTokenizer",
    "OnBadSample",
    "OnLongSample",
    "OpenAIToMessages",
    "PromptTemplate",
    "QuestionAnswerTemplate",
    "Rows",
    "SFTDataset",
    "SentencePieceTokenizer",
    "ShareGPTToMessages",
    "SummarizeTemplate",
    "TextTokens",
    "TikTokenBaseTokenizer",
    "check_vocabulary",
    "limit_length",
    "load_rows",
    "load_tokenizer",
    "num_label_tokens",
    "num_real_tokens",
    "padded_collate_sft",
    "refuse_packed",
    "validate_messages",
    "windows",
]
