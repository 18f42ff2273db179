"""Several adapters of one base, each with a weight, in one model: W + Σ weight · (W of the adapter − W)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from torchtune_lite.checkpoint import publish
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import ConfigError
from torchtune_lite.export.comparison import Difference, difference
from torchtune_lite.export.hf import write_folder
from torchtune_lite.export.source import Source, open_source
from torchtune_lite.models import from_checkpoint
from torchtune_lite.peft import is_mergeable


def merge(adapters: Sequence[tuple[Path, float]], folder: Path, base: Path | str | None = None) -> Difference:
    """Publish `folder`, which must not exist, with the model of adapters and their weights, in the dtype of the base.

    Tokenizer and template are those of the first. Returns how far it is from the same sums in float32. ConfigError for
    a folder that is not an adapter, and for adapters of several bases, unless `base` is given.
    """
    sources = [open_source(path, base) for path, _ in adapters]
    if merged := [str(each.found.path) for each in sources if each.found.adapter is None]:
        raise ConfigError(f"{merged[0]} is a whole model; 'tune merge' takes adapters, which have a base in common")
    if prompts := [str(each.found.path) for each in sources if not is_mergeable(each.model)]:
        raise ConfigError(f"{prompts[0]} has virtual tokens, which are not weights and cannot be merged")
    bases = {each.found.base.resolve() for each in sources}
    if len(bases) > 1:
        raise ConfigError(
            f"the adapters are of several bases, {', '.join(map(str, sorted(bases)))}; give one by --base"
        )
    first, *_ = sources
    if len({each.config.vocab_size for each in sources}) > 1:
        sizes = ", ".join(f"{each.found.path} {each.config.vocab_size:,}" for each in sources)
        raise ConfigError(f"the adapters are of different numbers of tokens: {sizes}; merge those of one tokenizer")
    weights = _merged(sources, [weight for _, weight in adapters])
    with torch.device("meta"):
        plain = from_checkpoint(**vars(first.config)).eval()
    with publish(folder, num_bytes=sum(weight.num_bytes for weight in first.base.values())) as draft:
        rounded = {name: weight.to(first.base[name].dtype) for name, weight in weights.items()}
        written = write_folder(first, draft, rounded, plain)
        return difference(first, (plain, weights), (plain, written))


def _merged(sources: Sequence[Source], shares: Sequence[float]) -> Mapping[str, Weight]:
    base, merged = sources[0].base, [each.weights for each in sources]
    changed = {name for each in merged for name in each if each[name] is not base[name]}

    def read(name: str) -> Tensor:
        start = base[name].read().float()
        changes = (share * (each[name].read().float() - start) for share, each in zip(shares, merged, strict=True))
        return sum(changes, start)

    return {
        name: Weight(torch.float32, weight.shape, partial(read, name)) if name in changed else weight
        for name, weight in base.items()
    }
