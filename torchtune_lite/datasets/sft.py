"""Any rows, by a transform of the user's own or one of `data`."""

from collections.abc import Callable, Mapping
from typing import Any

from torchtune_lite import config
from torchtune_lite.data import Message, validate_messages
from torchtune_lite.datasets.builder import dataset_builder
from torchtune_lite.errors import ConfigError

Transform = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataset_builder()
def sft_dataset(tokenizer: Any, *, message_transform: config.DottedPath | Transform) -> tuple[Callable, Callable]:
    """Build a data set by `message_transform`, which maps a row to `{"messages": list of data.Message}`.

    It is a function or class by its dotted path (`my_module.to_messages`), or a `_component_` with arguments. The
    assistant's messages are in the loss, unless a message's `masked` says otherwise. The other arguments are those of
    `builder.samples`.
    """
    if isinstance(message_transform, str):
        found = config.find(message_transform)
        message_transform = found() if isinstance(found, type) else found
    return Checked(message_transform), tokenizer


class Checked:
    """Checks that what a transform gives is a conversation."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        sample = self.transform(row)
        if not isinstance(sample, Mapping) or "messages" not in sample:
            raise self._unlike(sample)
        for message in sample["messages"]:
            if not isinstance(message, Message):
                raise self._unlike(message)
        validate_messages(sample["messages"])
        return sample

    def _unlike(self, found: Any) -> ConfigError:
        name, got = getattr(self.transform, "__name__", type(self.transform).__name__), type(found).__name__
        return ConfigError(f"message_transform {name} must return {{'messages': [data.Message, ...]}}, got {got}")
