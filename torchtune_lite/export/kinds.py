"""What a model can be exported as, and the one way in which each is written: published whole, and compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from torchtune_lite.checkpoint import publish
from torchtune_lite.checkpoint.formats.weights import Weight
from torchtune_lite.errors import ConfigError
from torchtune_lite.export.adapter import write_peft
from torchtune_lite.export.comparison import Difference, compare
from torchtune_lite.export.gguf.adapter import write_adapter
from torchtune_lite.export.gguf.files import read_gguf
from torchtune_lite.export.gguf.model import write_model
from torchtune_lite.export.hf import write_hf
from torchtune_lite.export.lora import write_lora
from torchtune_lite.export.modelfile import write_modelfile
from torchtune_lite.export.quantized import SCHEMES, write_quantized
from torchtune_lite.export.source import Source
from torchtune_lite.models import from_checkpoint
from torchtune_lite.modules import TransformerDecoder
from torchtune_lite.peft import is_mergeable

Written = Mapping[str, Weight] | None
"""The weights by our names as a reader of what was written gets them; None for what holds the live values."""


@dataclass(frozen=True)
class Options:
    """`name` is that of the file or model, `quantization` one of `gguf.files.KINDS`.

    `base_name` is as in `write_adapter_folder`, `one_rank` as in `write_lora`. ConfigError for a name that is a path.
    """

    name: str
    quantization: str = "q8_0"
    base_name: str | None = None
    one_rank: bool = False

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name:
            raise ConfigError(f"--name {self.name!r} is not the name of a file; leave out what makes a path of it")


Writer = Callable[[Source, Path, TransformerDecoder, Options], Written]


def _gguf(source: Source, folder: Path, plain: TransformerDecoder, options: Options) -> Written:
    return write_model(source, folder / f"{options.name}-{options.quantization}.gguf", options.quantization)


def _gguf_adapter(source: Source, folder: Path, plain: TransformerDecoder, options: Options) -> Written:
    return write_adapter(source, folder / f"{options.name}-lora.gguf", "f32")


def _modelfile(source: Source, folder: Path, plain: TransformerDecoder, options: Options) -> Written:
    written = _gguf(source, folder, plain, options)
    [gguf] = folder.glob("*.gguf")
    adds_bos = read_gguf(gguf)[0]["tokenizer.ggml.add_bos_token"]
    write_modelfile(source, folder / "Modelfile", gguf.name, adds_bos)
    return written


def _hf(source: Source, folder: Path, plain: TransformerDecoder, options: Options) -> Written:
    return write_hf(source, folder, plain)


def _adapter(source: Source, folder: Path, plain: TransformerDecoder, options: Options) -> Written:
    write_peft(source, folder, options.base_name, options.name)


def _lora(source: Source, folder: Path, plain: TransformerDecoder, options: Options) -> Written:
    return write_lora(source, folder, options.base_name, options.name, one_rank=options.one_rank)


def _quantized(scheme: str, source: Source, folder: Path, plain: TransformerDecoder, options: Options) -> Written:
    return write_quantized(source, folder, scheme)


WRITERS: dict[str, Writer] = {
    "hf": _hf,
    "adapter": _adapter,
    "lora": _lora,
    "gguf": _gguf,
    "gguf-adapter": _gguf_adapter,
    "modelfile": _modelfile,
    **{scheme: partial(_quantized, scheme) for scheme in SCHEMES},
}


def export_model(source: Source, kind: str, folder: Path, options: Options) -> Difference | None:
    """Publish `folder`, which must not exist, with a source as `kind`, one of `WRITERS`.

    Returns how far it is from the source, None where it holds the live values. ConfigError for what cannot be written
    so, SaveError for what the file system refuses; no folder is then left.
    """
    if kind not in WRITERS:
        raise ConfigError(f"--to {kind} is not known; allowed are {', '.join(WRITERS)}")
    if kind != "adapter" and not is_mergeable(source.model):
        raise ConfigError(
            f"--to {kind}: virtual tokens are not weights and cannot be merged; use --to adapter, which PEFT reads"
        )
    if folder.exists():
        raise ConfigError(f"{folder} exists and is not overwritten; name another folder with --out, or move it away")
    with torch.device("meta"):
        plain = from_checkpoint(**vars(source.config)).eval()
    with publish(folder) as draft:
        written = WRITERS[kind](source, draft, plain, options)
        return None if written is None else compare(source, plain, written)
