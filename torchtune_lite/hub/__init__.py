"""What a repository of the Hugging Face hub gets of a run: the files of a checkpoint, and a card on how it was made."""

from torchtune_lite.hub.card import CARD, model_card
from torchtune_lite.hub.contents import Contents, collect
from torchtune_lite.hub.facts import RunFacts, repository_name

__all__ = ["CARD", "Contents", "RunFacts", "collect", "model_card", "repository_name"]
