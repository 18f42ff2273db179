"""From a YAML file and `key=value` words to a recipe's checked `Settings` and its components. Imports no torch."""

from torchtune_lite.config.entry_point import load, parse, settings_of
from torchtune_lite.config.registry.lookup import DottedPath, find
from torchtune_lite.config.registry.trust import trusting
from torchtune_lite.config.schema.components import instantiate
from torchtune_lite.config.schema.settings import component, key, mapping, save, to_dict
from torchtune_lite.config.unsupported import unserved_family

__all__ = [
    "DottedPath",
    "component",
    "find",
    "instantiate",
    "key",
    "load",
    "mapping",
    "parse",
    "save",
    "settings_of",
    "to_dict",
    "trusting",
    "unserved_family",
]
