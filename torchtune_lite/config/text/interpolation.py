"""`${output_dir}`, `${oc.env:HOME}`, `${asset:NAME}`: texts in a config that stand for something else."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from omegaconf.resolvers import oc

from torchtune_lite.config.text.document import Document, KeyPath, keys
from torchtune_lite.errors import ConfigError, did_you_mean
from torchtune_lite.redaction import is_secret, redact

REFERENCE = re.compile(r"\$\{(?!\s*[\w.]+:)\s*([^\s.:{}\[\]]+)")
"""`${key}`, `${key.below}` or `${key[0]}`, but no `${resolver:…}`."""

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets"


class Unresolved:
    """Stands where an interpolation failed, so that its value is not complained about a second time."""


def asset(name: str) -> str:
    """Return the absolute path of a file or folder that comes with the package."""
    if not (ASSETS / name).exists():
        known = [path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*")]
        raise ConfigError(f"the package has no asset '{name}'{did_you_mean(name, known)}")
    return str(ASSETS / name)


def public_env(name: str, *default: Any) -> Any:
    """Return the value of an environment variable that is not a secret."""
    value = None if is_secret(name) else oc.env(name, *default)
    if is_secret(name) or redact(value) != value:
        raise ConfigError(
            f"the variable {name} holds a secret, which a config would pass on; read it where it is needed, in a "
            "component of your own"
        )
    return value


_register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)  # renamed in OmegaConf 2.4
_register("asset", asset, replace=True)


@contextmanager
def _secrets_kept() -> Iterator[None]:
    """Put `public_env` in the place of OmegaConf's own for the time being: other code may use that."""
    _register("oc.env", public_env, replace=True)
    try:
        yield
    finally:
        _register("oc.env", oc.env, replace=True)


def resolve(document: Document) -> list[str]:
    """Replace the interpolations of a document by what they stand for; return one line for each that fails."""
    problems: list[str] = []

    def plain(node: Any, path: KeyPath) -> Any:
        if OmegaConf.is_dict(node):
            return {key: value(node, key, (*path, str(key))) for key in node}
        if OmegaConf.is_list(node):
            return [value(node, index, (*path, str(index))) for index in range(len(node))]
        return node

    def value(node: Any, key: Any, path: KeyPath) -> Any:
        try:
            return plain(node[key], path)
        except InterpolationToMissingValueError:  # which is said of the key without a value
            return Unresolved()
        except OmegaConfBaseException as error:
            problems.append(f"{document.place(path)}: {_explain(error, path, document)}")
            return Unresolved()

    try:
        with _secrets_kept():
            document.values = plain(OmegaConf.create(document.values), ())
    except RecursionError as error:
        raise ConfigError(f"{document.name}: interpolations refer to each other in a circle") from error
    return problems


def _explain(error: OmegaConfBaseException, path: KeyPath, document: Document) -> str:
    key = ".".join(path)
    if isinstance(error, MissingMandatoryValue):
        note = f" ({document.notes[path]})" if path in document.notes else ""
        return f"'{key}' has no value yet; set {key}=...{note}"
    if isinstance(error, InterpolationKeyError) and (name := re.search(r"'(.+)' not found", str(error))):
        return f"'{key}' refers to '${{{name[1]}}}', which is not a key{did_you_mean(name[1], keys(document.values))}"
    if "Recursive interpolation" in str(error):
        return f"'{key}' refers to itself through other keys; give it a value"
    if missing := re.search(r"Environment variable '(.+)' not found", str(error)):
        return (
            f"'{key}': the variable {missing[1]} is not set; set it, or give a default: ${{oc.env:{missing[1]},value}}"
        )
    reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
    return f"'{key}': {reason.strip(chr(34))}"


def referred(value: Any) -> Iterator[str]:
    """Yield the top-level keys that the interpolations in a value name."""
    if isinstance(value, str):
        yield from REFERENCE.findall(value)
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from referred(each)
