"""Parameter-efficient fine-tuning: adapters over frozen, if wished 4-bit, projections; knows no model family."""

from torchtune_lite.peft.adapter import Adapter, adapter_modules, adapter_state, adapters_off, freeze_base, is_adapted
from torchtune_lite.peft.dora import DoRALinear
from torchtune_lite.peft.frozen import FrozenNF4Linear
from torchtune_lite.peft.lora import LoRALinear
from torchtune_lite.peft.nf4 import (
    blank_parts,
    dequantize,
    fits_nf4,
    from_nf4_parts,
    is_quantized,
    nf4_parts,
    num_bytes,
    quantize,
    storage,
    upcast_state_dict,
)
from torchtune_lite.peft.optimizer import adapter_optimizer
from torchtune_lite.peft.trained_tokens import TrainedRows, TrainedTokenEmbedding, train_embeddings, train_tokens

__all__ = [
    "Adapter",
    "DoRALinear",
    "FrozenNF4Linear",
    "LoRALinear",
    "TrainedRows",
    "TrainedTokenEmbedding",
    "adapter_modules",
    "adapter_optimizer",
    "adapter_state",
    "adapters_off",
    "blank_parts",
    "dequantize",
    "fits_nf4",
    "freeze_base",
    "from_nf4_parts",
    "is_adapted",
    "is_quantized",
    "nf4_parts",
    "num_bytes",
    "quantize",
    "storage",
    "train_embeddings",
    "train_tokens",
    "upcast_state_dict",
]
