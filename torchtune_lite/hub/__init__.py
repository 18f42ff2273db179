"""What a repository of the Hugging Face hub gets of a run: the files of a checkpoint, and a card on how it was made."""

from torchtune_lite.hub.contents import CARD, Contents, collect

__all__ = ["CARD", "Contents", "collect"]
