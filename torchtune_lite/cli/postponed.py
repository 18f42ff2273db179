"""Keeps torch from loading its compiler for a run that compiles nothing: a second and 140 MB of each start.

torch imports `torch._dynamo` for the first optimizer and for activation checkpointing, only to say that it must not
compile these. Here the package is there, but its `__init__` runs when somebody asks for more than that.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
CONFIG = f"{COMPILER}.config"  # needs nothing of the rest
PARTS = (f"{COMPILER}.", "torch._inductor")  # need all of it


class PostponedCompiler(ModuleType):
    """`torch._dynamo` before its `__init__` has run, which any other attribute and any import of a part makes run."""

    def disable(self, fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Leave a function of torch's own as it is: nothing is being compiled yet. Any other is a user's wish."""
        if (getattr(fn, "__module__", None) or "").startswith("torch."):
            return fn
        load(self)
        return self.disable(fn, *args, **kwargs)

    @staticmethod
    def graph_break(*args: Any, **kwargs: Any) -> None:
        """Do nothing: there is no graph yet."""

    def __getattr__(self, name: str) -> Any:
        if name == "config":
            return importlib.import_module(CONFIG)
        if name.startswith("__"):
            raise AttributeError(name)
        load(self)
        return getattr(self, name)


class Parts(MetaPathFinder):
    """Sees each import before all others, to have `__init__` run before a part's; finds nothing itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Return None."""
        if name.startswith(PARTS) and name != CONFIG:
            load(sys.modules[COMPILER])


def load(module: ModuleType) -> None:
    """Make the stand-in the package itself."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Parts)]
    module.__class__ = ModuleType
    module.__spec__.loader.exec_module(module)


def postpone_compiler() -> None:
    """Put the stand-in where `import torch._dynamo` looks first, unless that has happened already."""
    importlib.import_module("torch")  # which looks at all its packages
    if COMPILER not in sys.modules:
        module = module_from_spec(find_spec(COMPILER))
        module.__class__ = PostponedCompiler
        sys.modules[COMPILER] = module
        sys.meta_path.insert(0, Parts())
