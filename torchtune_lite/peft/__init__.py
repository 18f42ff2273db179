"""Parameter-efficient fine-tuning: adapters over frozen, if wished 4-bit, projections; knows no model family."""

from torchtune_lite.peft.adapter import (
    Adapter,
    MergeableAdapter,
    Method,
    adapter_modules,
    adapter_state,
    adapters_off,
    changed_biases,
    freeze_base,
    is_adapted,
    is_mergeable,
    mergeable_modules,
    rows_here,
)
from torchtune_lite.peft.frozen import FrozenNF4Linear
from torchtune_lite.peft.methods import FILES
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
from torchtune_lite.peft.peft_file import MERGE, PREFIX, PeftFile, Projection
from torchtune_lite.peft.projections.adalora import AdaLoRA, AdaLoRALinear
from torchtune_lite.peft.projections.adapted import AdaptedLinear
from torchtune_lite.peft.projections.dora import DoRALinear
from torchtune_lite.peft.projections.ia3 import IA3, IA3Linear
from torchtune_lite.peft.projections.lora import LoRALinear
from torchtune_lite.peft.projections.rank_allocation import RankAllocator, rank_allocator
from torchtune_lite.peft.projections.vera import VeRA, VeRALinear
from torchtune_lite.peft.tokens.prompts import PrefixTuning, PromptTuning, PTuning, VirtualTokensMethod
from torchtune_lite.peft.tokens.trained_tokens import TrainedRows, TrainedTokenEmbedding, train_embeddings, train_tokens

__all__ = [
    "FILES",
    "IA3",
    "MERGE",
    "PREFIX",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "VirtualTokensMethod",
    "AdaLoRA",
    "AdaLoRALinear",
    "AdaptedLinear",
    "Adapter",
    "DoRALinear",
    "FrozenNF4Linear",
    "IA3Linear",
    "LoRALinear",
    "MergeableAdapter",
    "Method",
    "PeftFile",
    "Projection",
    "RankAllocator",
    "TrainedRows",
    "TrainedTokenEmbedding",
    "VeRA",
    "VeRALinear",
    "adapter_modules",
    "adapter_optimizer",
    "adapter_state",
    "adapters_off",
    "blank_parts",
    "changed_biases",
    "dequantize",
    "fits_nf4",
    "freeze_base",
    "from_nf4_parts",
    "is_adapted",
    "is_mergeable",
    "is_quantized",
    "mergeable_modules",
    "nf4_parts",
    "num_bytes",
    "quantize",
    "rank_allocator",
    "rows_here",
    "shards",
    "storage",
    "train_embeddings",
    "train_tokens",
    "upcast_state_dict",
]
