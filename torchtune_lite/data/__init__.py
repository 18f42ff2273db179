"""From rows to tensors: messages, prompt templates, tokenizers, samples, batches."""

from torchtune_lite.data.batching.batches import Batches, num_label_tokens, num_real_tokens, sample_lens, windows
from torchtune_lite.data.batching.collate import COLLATES, Batch, padded_collate_sft, padding_free_collate_sft
from torchtune_lite.data.batching.packed import PackedDataset
from torchtune_lite.data.batching.streams import (
    AnyBatches,
    StreamBatches,
    StreamDataset,
    make_batches,
    report_read,
    steps_per_epoch,
)
from torchtune_lite.data.conversations import OpenAIToMessages, ShareGPTToMessages
from torchtune_lite.data.fitting import check_vocabulary, fix_date, limit_length, new_tokens
from torchtune_lite.data.labels import CROSS_ENTROPY_IGNORE_IDX
from torchtune_lite.data.messages import (
    AlpacaToMessages,
    InputOutputToMessages,
    MaskingStrategy,
    Message,
    validate_messages,
)
from torchtune_lite.data.preference import ChosenRejectedToMessages, PairTokens, PreferenceDataset, padded_collate_dpo
from torchtune_lite.data.readers.rows import OnBadSample, Rows, find_part
from torchtune_lite.data.readers.sources import DataFiles, Filter, filtered, load_rows, open_stream
from torchtune_lite.data.sft import OnLongSample, SFTDataset
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
from torchtune_lite.data.tokenizers.chat_template import ChatTemplate
from torchtune_lite.data.tokenizers.hf_tokenizer import HuggingFaceBaseTokenizer, HuggingFaceModelTokenizer
from torchtune_lite.data.tokenizers.llama3_tokenizer import Llama3Tokenizer, TikTokenBaseTokenizer
from torchtune_lite.data.tokenizers.loader import load_tokenizer
from torchtune_lite.data.tokenizers.model_tokenizer import ModelTokenizer, PromptTemplateName, TrainOn
from torchtune_lite.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

__all__ = [
    "COLLATES",
    "CROSS_ENTROPY_IGNORE_IDX",
    "AlpacaToMessages",
    "AnyBatches",
    "Batch",
    "Batches",
    "ChatMLTemplate",
    "ChosenRejectedToMessages",
    "ChatTemplate",
    "ColumnText",
    "DataFiles",
    "Filter",
    "GrammarErrorCorrectionTemplate",
    "HuggingFaceBaseTokenizer",
    "HuggingFaceModelTokenizer",
    "InputOutputToMessages",
    "Llama2ChatTemplate",
    "MaskingStrategy",
    "Llama3Tokenizer",
    "Message",
    "MistralChatTemplate",
    "ModelTokenizer",
    "OnBadSample",
    "OnLongSample",
    "OpenAIToMessages",
    "PackedDataset",
    "PairTokens",
    "PreferenceDataset",
    "PromptTemplate",
    "PromptTemplateName",
    "QuestionAnswerTemplate",
    "Rows",
    "SFTDataset",
    "SentencePieceTokenizer",
    "ShareGPTToMessages",
    "StreamBatches",
    "StreamDataset",
    "SummarizeTemplate",
    "TextTokens",
    "TikTokenBaseTokenizer",
    "TrainOn",
    "check_vocabulary",
    "filtered",
    "find_part",
    "fix_date",
    "limit_length",
    "load_rows",
    "make_batches",
    "new_tokens",
    "load_tokenizer",
    "num_label_tokens",
    "num_real_tokens",
    "open_stream",
    "padded_collate_dpo",
    "padded_collate_sft",
    "padding_free_collate_sft",
    "report_read",
    "sample_lens",
    "steps_per_epoch",
    "validate_messages",
    "windows",
]
