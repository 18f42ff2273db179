"""Logging, devices and the words of messages. Importing this package imports no torch."""

from torchtune_lite.utils.device import get_device, to_device
from torchtune_lite.utils.file_lock import lock_file
from torchtune_lite.utils.line_input import LineInput, visible
from torchtune_lite.utils.logging import LogFile, get_logger, silence
from torchtune_lite.utils.wording import REPOSITORY, counted

__all__ = [
    "REPOSITORY",
    "LineInput",
    "LogFile",
    "counted",
    "get_device",
    "get_logger",
    "lock_file",
    "silence",
    "to_device",
    "visible",
]
