"""Logging and devices. Importing this package imports no torch."""

from torchtune_lite.utils.device import get_device, to_device
from torchtune_lite.utils.logging import LogFile, get_logger

__all__ = ["LogFile", "get_device", "get_logger", "to_device"]
