"""Make a folder to fine-tune of a GGUF, the file of Ollama, LM Studio and llama.cpp.

  tune import model-q8_0.gguf models/model
  tune run lora_finetune_single_device --config lora model_dir=models/model …

Weights are dequantised one at a time; config.json, tokenizer and chat template come out of the file. A quantised file
gives the quantised values: where the original checkpoint is to be had, fine-tune that.
"""

from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path

from torchtune_lite.errors import CheckpointError, ConfigError


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune import`."""
    parser.add_argument("file", type=Path, metavar="FILE.gguf", help="the file")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write, which must not exist")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="of the weights (default: its own or bf16)")


def main(args: Namespace) -> None:
    """Write the folder and print what it holds."""
    file, folder = args.file.expanduser(), args.folder.expanduser()
    if not file.is_file():
        raise CheckpointError(f"{file} is not a file")
    if folder.exists():
        raise ConfigError(f"{folder} exists and is not overwritten; name another folder, or move it away")
    # by its name: it stands above this package, and imports torch
    found = import_module("torchtune_lite.export").import_gguf(file, folder, args.dtype)
    print(f"{folder} has {found}")
