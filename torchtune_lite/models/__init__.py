"""The model families, one file each."""

from torchtune_lite.models.family import Family
from torchtune_lite.models.llama2 import LLAMA2

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA2,)}
"""By the name that a checkpointer's `model_type` gives."""

__all__ = ["FAMILIES", "Family"]
