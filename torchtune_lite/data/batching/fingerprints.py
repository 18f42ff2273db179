"""The fingerprints that identify a run's data when it is resumed.

`samples` says how many there are and hashes some of them in tokens, which tells another tokenizer, template or policy.
`rows` hashes all rows as their source has them, unpacked and wherever it lies, which tells a change of any.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torchtune_lite.data.batching.packed import PackedDataset
from torchtune_lite.data.readers.rows import row_content
from torchtune_lite.data.sft import SFTDataset
from torchtune_lite.utils import get_logger

LOOKED_AT = 256
"""The number of samples hashed in tokens, evenly spread."""

MOST_SAMPLES = 2000
"""The size up to which a user's own data set, which has no rows, is hashed whole."""

Fingerprint = dict[str, Any]
"""`samples`: a text; `rows`: for each data set its name and hash, None where only some samples are known."""


def samples_line(dataset: Any, pack_len: int | None = None, looked_at: int = LOOKED_AT) -> str:
    """Say how many samples there are, and hashes up to `looked_at` of them, evenly spread, in tokens."""
    count = len(dataset)
    samples = [dataset[i] for i in sorted({k * count // looked_at for k in range(looked_at)})]
    packs = f" in packs of {pack_len:,}" if pack_len else ""
    return f"{count:,} samples{packs} with hash {digest([str(samples).encode()])}"


def row_hashes(dataset: Any) -> list[tuple[str, str | None]]:
    """Return the name and the hash of the rows of a data set, or of each of several that are joined."""
    parts = dataset.datasets if hasattr(dataset, "source") else [dataset]
    return [_row_hash(part.dataset if isinstance(part, PackedDataset) else part) for part in parts]


def _row_hash(dataset: Any) -> tuple[str, str | None]:
    if isinstance(dataset, SFTDataset):
        rows = dataset.rows
        return Path(rows.name).name, digest(row_content(rows, 0, len(rows)))
    name, count = (
        getattr(dataset, "class_name", type(dataset).__name__),
        len(dataset),
    )  # of one that is checked, its own
    if count <= MOST_SAMPLES:
        return name, digest(_sample_bytes(dataset[i]) for i in range(count))
    get_logger().info(
        f"dataset {name}: of its {count:,} samples, {LOOKED_AT} are compared when this run is resumed; a change of "
        "others will not be noticed"
    )
    return name, None


def _sample_bytes(sample: Mapping[str, Any]) -> bytes:
    """Write a sample out; a tensor as its numbers, which its `repr` has only some of."""
    return str({key: value.tolist() if hasattr(value, "tolist") else value for key, value in sample.items()}).encode()


def digest(parts: Iterable[bytes]) -> str:
    """Hash bytes, in whatever parts they come."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:12]
