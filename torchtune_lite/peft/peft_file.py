"""How the adapters of one `peft_type` stand in a folder of Hugging Face PEFT: their tensors and their fields.

A method of adaptation has a `PeftFile` in `methods.FILES`. It knows neither a model family nor where the files are:
that is `checkpoint.formats.adapter`, which knows no method.
"""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from torchtune_lite.errors import ConfigError
from torchtune_lite.peft.adapter import Adapter

PREFIX = "base_model.model."
"""Of the name of each tensor that belongs to a projection."""
OFF = (None, "", [], {})
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config"),
    "modules_to_save",  # `checkpoint.formats.adapter_embeddings` tells which are served
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # the weights tell where they are
}
ALLOWED = {"task_type": ("CAUSAL_LM",), "bias": ("none",)}
MERGE = "merge it in PEFT (merge_and_unload) and load the merged model"


Kind = tuple[str, Callable[[Any], bool]]
"""A kind of value in words, and whether a value is of it."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # nor NaN


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


WHOLE: Kind = ("a whole number above 0", _is_whole)
NUMBER: Kind = ("a number", _is_number)
SWITCH: Kind = ("true or false", _is_switch)


@dataclass(frozen=True)
class Projection:
    """An adapted projection of transformers' model: its path there, and what of ours it consists of, row below row.

    That is one adapter, or in a fused matrix several, of which some may be plain projections.
    """

    path: str
    parts: tuple[nn.Module, ...]

    @property
    def adapters(self) -> list[Any]:
        """The parts that carry an adapter."""
        return [part for part in self.parts if isinstance(part, Adapter)]


class PeftFile:
    """Tensors and fields of one `peft_type`; as it stands here, for a method whose parameters are the file's tensors.

    `names` has PEFT's names of the tensors of a projection, each with that of the adapter's parameter. What is not
    `on_projections` is put on the model. A field of the
    config must be off unless it is in `compared` or `patterns`, which `misfits` looks at, in `harmless`, or with its
    value in `allowed`.
    """

    peft_type: ClassVar[str]
    names: ClassVar[Mapping[str, str]]
    on_projections: ClassVar[bool] = True
    makes_embeddings: bool = False  # which are put in before the layers
    compared: ClassVar[Mapping[str, Kind]] = {}
    patterns: ClassVar[Mapping[str, Kind]] = {}
    harmless: ClassVar[set[str]] = HARMLESS
    allowed: ClassVar[Mapping[str, tuple[Any, ...]]] = ALLOWED

    def tensors(self, adapted: Sequence[Projection]) -> dict[str, Tensor]:
        """Return the tensors of the file by their names there."""
        return {
            f"{PREFIX}{each.path}.{name}": tensor for each in adapted for name, tensor in self.tensors_of(each).items()
        }

    def tensors_of(self, projection: Projection) -> dict[str, Tensor]:
        """Return those of one projection by their names within it."""
        [adapter] = projection.parts
        return {name: adapter.get_parameter(ours) for name, ours in self.names.items()}

    def expected(
        self, adapted: Sequence[Projection], config: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return tensors of the shapes that a file of this `config` must have; `given` is what it has."""
        return self.tensors(adapted)

    def assigned(
        self, adapted: Sequence[Projection], config: Mapping[str, Any], values: Mapping[str, Tensor], source: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each live tensor with its value in a file; CheckpointError names `source`."""
        for name, live in self.tensors(adapted).items():
            yield live, values[name]

    def read_start(self, adapted: Sequence[Projection], values: Mapping[str, Tensor], source: str) -> None:
        """Give adapters that start from their base the start that a saved one had."""

    def fields(self, adapted: Sequence[Projection], targets: Sequence[str]) -> dict[str, Any]:
        """Return the fields of the config that are this method's; `targets` are its `target_modules`."""
        raise NotImplementedError

    def token_indices(self, config: Mapping[str, Any]) -> Any:
        """Return the tokens whose rows are trained, too: a list of the embedding's, or lists by modules; None: none."""
        return config.get("trainable_token_indices")

    def described(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """Return the method's name as people write it, and its numbers in words, such as `, rank 8`."""
        raise NotImplementedError

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """Return where a config is malformed, or of what is not served for any model."""
        return [*self.unserved(config), *self.malformed(config)]

    def unserved(self, config: Mapping[str, Any]) -> list[str]:
        """Name the fields whose values change what PEFT computes, and say what to do."""
        if changing := self.changing(config):
            fields = ", ".join(f"{key} is {value}" for key, value in changing.items())
            return [f"{fields}, which is not served; {MERGE}"]
        return []

    def changing(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Return the fields that are neither off nor known, with their values as text."""
        return {
            key: reprlib.repr(value)
            for key, value in config.items()
            if key not in {"peft_type", *self.compared, *self.patterns, *self.harmless}
            and value is not False
            and value not in (*OFF, *self.allowed.get(key, ()))
        }

    def malformed(self, config: Mapping[str, Any]) -> list[str]:
        """Name the fields whose values are not of their kind."""
        return [
            f"{key} is {reprlib.repr(config.get(key))}, not {kind}"
            for key, (kind, is_of_kind) in self.compared.items()
            if not is_of_kind(config.get(key))
        ]

    def misfits(self, config: Mapping[str, Any], adapted: Sequence[Projection]) -> list[str]:
        """Return where a config without `problems` means another function than these adapters."""
        raise NotImplementedError

    def placed(
        self, config: Mapping[str, Any], shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    ) -> Callable[[str, nn.Module], Adapter]:
        """Return `put(path, base)`, which puts an adapter on a part of the projection that a file calls `path`.

        `shapes` are those of the file's tensors, for each projection by their names within it.
        """
        raise NotImplementedError

    def put_on(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        """Put what is not on projections on a model without weights, as a config says."""
        raise NotImplementedError

    def check(self, adapted: Sequence[Projection], merge_into: str) -> None:
        """Raise ConfigError for adapters that no checkpoint can hold, or none that is merged as asked."""
        if fused := [each.path for each in adapted if len(each.parts) > 1]:
            raise ConfigError(
                f"{fused[0]} is one matrix in the checkpoint, of which PEFT has no {self.peft_type} adapters of its "
                "parts; name other projections in target_modules, or use LoRA"
            )


def dropout_of(config: Mapping[str, Any], key: str) -> float:
    """Return the dropout of a config that a training goes on with; 0 for what is none."""
    return float(config[key]) if _is_number(config.get(key)) and 0 <= config[key] < 1 else 0.0


def is_expression(text: str) -> bool:
    """Return whether a key of a pattern is a regular expression."""
    try:
        re.compile(named_by(text))
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def of_module(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Look `path` up in PEFT's `rank_pattern` or `alpha_pattern`: the first key that names it."""
    return next((value for key, value in (pattern or {}).items() if re.match(named_by(key), path)), default)


def named_by(key: str) -> str:
    """Return the expression that PEFT makes of a key: one for the end of a name, or with ^ for all of it."""
    return rf"(.*\.)?({key})$"
