"""The decoder and its loss; knows no model family, adapter or file format."""

from torchtune_lite.modules.attention import Documents, attention, keep_documents_out_of_graphs
from torchtune_lite.modules.kv_cache import KVCache
from torchtune_lite.modules.norm import RMSNorm
from torchtune_lite.modules.transformer import (
    DecoderConfig,
    FeedForward,
    MultiHeadAttention,
    RotaryPositionalEmbeddings,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)

__all__ = [
    "DecoderConfig",
    "Documents",
    "FeedForward",
    "KVCache",
    "MultiHeadAttention",
    "RMSNorm",
    "RotaryPositionalEmbeddings",
    "TransformerDecoder",
    "TransformerSelfAttentionLayer",
    "attention",
    "keep_documents_out_of_graphs",
]
