"""Write a model in the files that other programs take.

  tune export runs/x --to gguf                    for llama.cpp, Ollama and LM Studio: --type f32, f16, bf16 or q8_0
  tune export runs/x --to modelfile               the same with a Modelfile: ollama create NAME -f …/Modelfile
  tune export runs/x --to hf                      merged, for transformers, vLLM and text-generation-inference
  tune export runs/x --to adapter                 PEFT's, with tokenizer and card, for vLLM --enable-lora
  tune export runs/x --to lora                    AdaLoRA and VeRA as the plain LoRA that they are
  tune export runs/x --to gguf-adapter            for llama-server --lora

What is named is a run, of which the best checkpoint by validation loss counts, or else the newest, a checkpoint, a
model folder, or an adapter, which is merged on the way. A line says how far the log-probabilities of what was written
are from the source's.
"""

from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path

ADAPTERS = ("adapter", "lora", "gguf-adapter")
KINDS = ("hf", "adapter", "lora", "gguf", "gguf-adapter", "modelfile", "int8", "int4", "fp8")
TYPES = ("f32", "f16", "bf16", "q8_0")


def configure(parser: ArgumentParser) -> None:
    """Declare the arguments of `tune export`."""
    parser.add_argument("source", metavar="FOLDER", help="a run, a checkpoint, a model folder, or an adapter")
    parser.add_argument("--to", required=True, choices=KINDS, help="what to write")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where (default: FOLDER/export/KIND)")
    parser.add_argument("--type", choices=TYPES, default="q8_0", help="of the weights in a GGUF (default: q8_0)")
    parser.add_argument("--base", metavar="FOLDER", help="the base of an adapter that does not say where it is")
    parser.add_argument("--base-name", metavar="OWNER/NAME", help="what an exported adapter calls its base")
    parser.add_argument("--one-rank", action="store_true", help="with --to lora: one rank for all, filled with zeros")
    parser.add_argument("--name", help="of the model (default: that of the folder)")


def main(args: Namespace) -> None:
    """Write it and print where it lies, and how far it is from its source."""
    exporting = import_module("torchtune_lite.export")  # by its name: it stands above this package, and imports torch
    folder = Path(args.source).expanduser()
    typed = args.to in ("gguf", "modelfile")
    out = args.out or folder / "export" / (f"{args.to}-{args.type}" if typed else args.to)
    options = exporting.Options(args.name or folder.resolve().name, args.type, args.base_name, args.one_rank)
    source = exporting.open_source(folder, args.base, adapter=args.to in ADAPTERS)
    difference = exporting.export_model(source, args.to, out.expanduser(), options)
    print(f"{out} has {', '.join(sorted(file.name for file in out.expanduser().iterdir()))}")
    print("it holds the values of its source" if difference is None else difference)
