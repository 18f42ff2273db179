"""The decoder and its loss, in plain torch; knows no model family, adapter or file format."""

from torchtune_lite.modules.attention import PackedSequences
from torchtune_lite.modules.classifier import sequence_values
from torchtune_lite.modules.config import DecoderConfig, RopeScaling
from torchtune_lite.modules.kv_cache import CachedSequences, KVCache
from torchtune_lite.modules.norm import RMSNorm
from torchtune_lite.modules.rope import RotaryPositionalEmbeddings
from torchtune_lite.modules.transformer import (
    FeedForward,
    MultiHeadAttention,
    TiedOutput,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)

__all__ = [
    "CachedSequences",
    "DecoderConfig",
    "FeedForward",
    "KVCache",
    "MultiHeadAttention",
    "PackedSequences",
    "RMSNorm",
    "RopeScaling",
    "RotaryPositionalEmbeddings",
    "TiedOutput",
    "TransformerDecoder",
    "TransformerSelfAttentionLayer",
    "sequence_values",
]
