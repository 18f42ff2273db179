"""The model families: their sizes and builders, one file each, and what their checkpoints look like.

torchtune names a module for each generation; those of one file here are the same module under each name.
"""

import sys

from torchtune_lite.models import gemma, granite, llama, mistral, olmo, phi, qwen, seed_oss, smollm3
from torchtune_lite.models.builders import from_checkpoint
from torchtune_lite.models.embeddings import fit_embeddings, grow_embeddings
from torchtune_lite.models.families import NOT_SERVED, Family
from torchtune_lite.models.tokenizers import tokenizer_of_checkpoint
from torchtune_lite.modules import DecoderConfig

MODULES = (llama, qwen, mistral, phi, gemma, smollm3, olmo, granite, seed_oss)
NAMES = {
    llama: ("llama2", "code_llama2", "llama3", "llama3_1", "llama3_2", "llama3_3", "smol"),
    qwen: ("qwen2", "qwen2_5", "qwen3"),
    phi: ("phi3", "phi4"),
    gemma: ("gemma2", "gemma3"),
    olmo: ("olmo2", "olmo3", "exaone4"),
}
"""The names of generations under which a module can be imported as well."""

for _module, _names in NAMES.items():
    for _name in _names:
        globals()[_name] = sys.modules[f"{__name__}.{_name}"] = _module

FAMILIES: dict[str, Family] = {
    family.model_type: family for module in MODULES for family in vars(module).values() if isinstance(family, Family)
}
"""By the `model_type` of a config.json."""

SIZES: dict[str, DecoderConfig] = {name: config for module in MODULES for name, config in module.SIZES.items()}
"""The shape of each named size."""

MODEL_TYPES = {
    **dict.fromkeys(("LLAMA2", "LLAMA3", "LLAMA3_2"), "llama"),
    **dict.fromkeys(("PHI3_MINI", "PHI4"), "phi3"),
    **{name.upper(): name for name in ("mistral", "qwen2", "qwen3", "gemma", "gemma2")},
}
"""torchtune's names in `checkpointer.model_type` → ours."""


def find_family(name: str) -> Family | None:
    """Return the family of a `model_type`, of a config.json or of torchtune's; None for one that is not served."""
    return FAMILIES.get(MODEL_TYPES.get(name, name))


__all__ = [
    "FAMILIES",
    "NOT_SERVED",
    "SIZES",
    "Family",
    "find_family",
    "fit_embeddings",
    "from_checkpoint",
    "grow_embeddings",
    "tokenizer_of_checkpoint",
]
