"""Parameter-efficient fine-tuning: adapters over frozen, if wished 4-bit, projections; knows no model family."""

from torchtune_lite.peft.dora import DoRALinear
from torchtune_lite.peft.feed_forward import LoRAFeedForward
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
    upcast_state_dict,
)
from torchtune_lite.peft.nf4_codes import Parts
from torchtune_lite.peft.nf4_linear import FrozenNF4Linear, row_tiles, stored
from torchtune_lite.peft.products import shared_input
from torchtune_lite.peft.state import adapter_modules, adapter_state, freeze_base

__all__ = [
    "DoRALinear",
    "FrozenNF4Linear",
    "LoRAFeedForward",
    "LoRALinear",
    "Parts",
    "adapter_modules",
    "adapter_state",
    "blank_parts",
    "dequantize",
    "fits_nf4",
    "freeze_base",
    "from_nf4_parts",
    "is_quantized",
    "nf4_parts",
    "num_bytes",
    "quantize",
    "row_tiles",
    "shared_input",
    "stored",
    "upcast_state_dict",
]
