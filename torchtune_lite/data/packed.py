"""Packing: several samples in one row of a batch."""

from torchtune_lite.errors import ConfigError


def refuse_packed(packed: bool) -> None:
    """Raises ConfigError for `packed: True`."""
    if packed:
        raise ConfigError("packed=True: samples can't be packed yet; set packed=False, batches are then padded")
