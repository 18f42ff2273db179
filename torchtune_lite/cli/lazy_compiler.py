"""A lazy import of torch's compiler, which saves a run that compiles nothing a second and 140 MB at its start.

torch imports `torch._dynamo` for the first optimizer and for activation checkpointing, only to say that it must not
compile these. Here the package is in `sys.modules`, but its `__init__` runs only when more than that is needed.
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


class LazyCompiler(ModuleType):
    """`torch._dynamo` before its `__init__` has run; any other attribute, or the import of a submodule, runs it."""

    def disable(self, fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return torch's own functions unchanged, as nothing is compiled yet; load the compiler for a user's."""
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


class CompilerImportHook(MetaPathFinder):
    """An import hook that runs the compiler's `__init__` before a submodule is imported, and finds nothing itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Return None."""
        if name.startswith(PARTS) and name != CONFIG:
            load(sys.modules[COMPILER])


def load(module: ModuleType) -> None:
    """Turn the stand-in into the package itself."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, CompilerImportHook)]
    module.__class__ = ModuleType
    module.__spec__.loader.exec_module(module)


def make_compiler_lazy() -> None:
    """Put the stand-in into `sys.modules`, unless `torch._dynamo` has been imported."""
    importlib.import_module("torch")  # which inspects all its packages
    if COMPILER not in sys.modules:
        module = module_from_spec(find_spec(COMPILER))
        module.__class__ = LazyCompiler
        sys.modules[COMPILER] = module
        sys.meta_path.insert(0, CompilerImportHook())
