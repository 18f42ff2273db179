"""Parameter-efficient fine-tuning: adapters over frozen, if wished 4-bit, projections; knows no model family."""

from torchtune_lite.peft.adapter import Adapter, adapter_modules, adapter_state, adapters_off, freeze_base, rows_here
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
    shards,
    storage,
    upcast_state_dict,
)
from torchtune_lite.peft.optimizer import adapter_optimizer

__all__ = [
    "Adapter",
    "DoRALinear",
    "FrozenNF4Linear",
    "LoRALinear",
    "adapter_modules",
    "adapter_optimizer",
    "adapter_state",
    "adapters_off",
    "blank_parts",
    "dequantize",
    "fits_nf4",
    "freeze_base",
    "from_nf4_parts",
    "is_quantized",
    "nf4_parts",
    "num_bytes",
    "quantize",
    "rows_here",
    "shards",
    "storage",
    "upcast_state_dict",
]
