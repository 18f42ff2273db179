"""Between our weights and the tensors of a checkpoint in Hugging Face's layout: names, fused matrices, ties, the rest.

Ours are the parameters of a `TransformerDecoder`. A file may hold several of them in one matrix, may hold the output
projection though it is the embedding, and may hold more than the text model, which is carried along as it is.
"""

import re
from collections.abc import Mapping

import torch

from torchtune_lite.checkpoint.formats.weights import Weight, joined
from torchtune_lite.models import Family
from torchtune_lite.modules import DecoderConfig
from torchtune_lite.utils import counted

WITHIN = re.compile(r"^language_model\.(?=model\.|lm_head\.)|(?<=^model\.)language_model\.")
"""Prefixes of a text model's names within a larger model, in transformers up to 4.51 and from 4.52 on."""
HEAD, SCORE = "lm_head.weight", "score.weight"
EMBEDDING, OUTPUT = "tok_embeddings.weight", "output.weight"


class HFLayout:
    """The tensors of a checkpoint of `family`, whose text model has the shape `config`.

    `within`: the text model is a part of a larger one, whose other tensors are carried.
    """

    def __init__(self, family: Family, config: DecoderConfig, within: bool = False) -> None:
        self.family, self.config, self.within = family, config, within
        self.carried: dict[str, Weight] = {}
        self._in_file: dict[str, str] = {}  # the name of each tensor of the text model
        self._tied_copy: Weight | None = None

    def our_name(self, theirs: str) -> str | None:
        """Return our name of a tensor, None for one that carries nothing; an unknown one stays as it is."""
        name = WITHIN.sub("", theirs)
        return self.family.from_hf(HEAD if name == SCORE and self.config.num_classes else name)

    def their_name(self, ours: str) -> str:
        """Return the name of our parameter in a text model of transformers, or of the matrix that it is a part of."""
        return SCORE if ours == OUTPUT and self.config.num_classes else self.family.to_hf(ours)

    def module_path(self, ours: str) -> str:
        """Return the path of the module, in the model that transformers makes, that has our parameter."""
        path = self.their_name(ours).removesuffix(".weight")
        return path.replace("model.", "model.language_model.", 1) if self.within else path

    def parts(self, theirs: str) -> dict[str, int]:
        """Return our parameters that a fused matrix consists of, with their rows, from the first on; {} for others."""
        return {name: self.config.out_dim(name) for name in self.family.parts(WITHIN.sub("", theirs))}

    def ours(self, tensors: Mapping[str, Weight]) -> dict[str, Weight]:
        """Return the weights by our names; a tensor of the text model that is not known keeps its name.

        What is only a copy of the embedding is left out (see `check_tied`); nothing is read.
        """
        found: dict[str, Weight] = {}
        for theirs, weight in tensors.items():
            if self.within and not (WITHIN.search(theirs) or theirs == HEAD):
                self.carried[theirs] = weight
            elif parts := self.parts(theirs):
                self._in_file[WITHIN.sub("", theirs)] = theirs
                found |= _split(theirs, weight, parts)
            elif name := self.our_name(theirs):
                self._in_file[self.their_name(name)] = theirs
                found[name] = weight
        if self.config.tie_word_embeddings:
            self._tied_copy = found.pop(OUTPUT, None)
        return found

    def check_tied(self, weights: Mapping[str, Weight]) -> None:
        """Raise ValueError where a file has an output projection beside the embedding that it is said to be."""
        if self._tied_copy is None:
            return
        embedding = weights[EMBEDDING]
        if self._tied_copy.shape != embedding.shape or not torch.equal(self._tied_copy.read(), embedding.read()):
            raise ValueError(
                f"has {HEAD} with other values than the embedding, though config.json says that they are one "
                "(tie_word_embeddings); set model.tie_word_embeddings: False to train with both"
            )

    def theirs(self, weights: Mapping[str, Weight]) -> dict[str, Weight]:
        """Return the tensors of a checkpoint: the reverse of `ours`, with what is carried, by the names of the file."""
        tensors: dict[str, Weight] = {}
        for ours, weight in weights.items():
            name = self.their_name(ours)
            if parts := self.parts(name):
                weight = joined([weights[part] for part in parts])
            tensors[self._in_file.get(name, name)] = weight
        return tensors | self.carried


def _split(theirs: str, fused: Weight, parts: Mapping[str, int]) -> dict[str, Weight]:
    if fused.shape[0] != sum(parts.values()):
        raise ValueError(
            f"{theirs} has the shape {list(fused.shape)}; by config.json it has {counted(sum(parts.values()), 'row')}"
        )
    found, start = {}, 0
    for name, rows in parts.items():
        found[name] = fused.rows(start, start + rows)
        start += rows
    return found
