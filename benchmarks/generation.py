"""Answers of a model on a CPU: ours, as it is and in int8, beside transformers' generate and llama.cpp's engine.

    python benchmarks/generation.py FOLDER [--gguf FILE …] [--threads 2] [--batches 1 8 64] [--rounds 2]

FOLDER is a Hugging Face folder; FILE the same model for llama.cpp, such as `tune export FOLDER --to gguf` writes it
(needs the package xllamacpp). Greedy answers of the same lengths to the same prompts of 32 random tokens, stop tokens
left out, the reading of the prompts included. All take turns in one process, in `--rounds` rounds; what counts is the
least time of each. `spread` is a batch whose answers have lengths from 1/4 to all of the tokens, as real ones do:
transformers computes them all to the longest, of which only the wanted tokens count. On a machine that others use, too,
the CPU seconds of the process say more than the clock: `--clock cpu`.
"""

import argparse
import logging
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch

PROMPT_LEN = 32
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Contender = Callable[[list[list[int]], list[int]], None]
"""What answers prompts with so many tokens each."""


def ours(folder: Path, dtype: torch.dtype, int8: bool) -> Contender:
    """Return our engine, which is built anew each time: merging or rounding weights is not counted."""
    from torchtune_lite.checkpoint import FullModelHFCheckpointer
    from torchtune_lite.generation import Sampling
    from torchtune_lite.generation.engine import Engine
    from torchtune_lite.models import from_checkpoint

    checkpointer = FullModelHFCheckpointer(folder)
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args)
    checkpointer.load(model, device="cpu", dtype=dtype)
    engines: dict[int, Engine] = {}

    def answer(prompts: list[list[int]], lengths: list[int]) -> None:
        if len(prompts) not in engines:
            for engine in engines.values():
                engine.close()
            engines.clear()
            engines[len(prompts)] = Engine(model, slots=len(prompts), int8=int8)
        engine = engines[len(prompts)]
        requests = [engine.submit(p, Sampling(max_new_tokens=n))[0] for p, n in zip(prompts, lengths, strict=True)]
        engine.run()
        assert [len(request.tokens) for request in requests] == lengths

    return answer


def transformers(folder: Path, dtype: torch.dtype) -> Contender:
    """Return transformers' generate."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config.eos_token_id = None

    def answer(prompts: list[list[int]], lengths: list[int]) -> None:
        longest = max(lengths)
        tokens = torch.tensor(prompts)
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=longest,
            do_sample=False,
            pad_token_id=0,
        )
        assert found.shape[1] == PROMPT_LEN + longest

    return answer


def llama_cpp(path: Path, threads: int, batches: list[int], new_tokens: int) -> Contender:
    """Return llama.cpp's engine with a file."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = max(batches)
    params.n_ctx = max(batches) * 256 * -(-(PROMPT_LEN + new_tokens) // 256)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup, params.port, params.verbosity = False, 0, -1
    server = xllamacpp.Server(params)

    def one(prompt: list[int], length: int) -> None:
        request = {"prompt": prompt, "max_tokens": length, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        found = server.handle_completions(request)
        assert found["usage"]["completion_tokens"] == length, found

    def answer(prompts: list[list[int]], lengths: list[int]) -> None:
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(one, prompts, lengths))

    return answer


def main() -> None:
    """Print a row for each contender, a column for each batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    dtype, clock = getattr(torch, args.dtype), CLOCKS[args.clock]
    contenders = {
        f"transformers, {args.dtype}": transformers(args.folder, dtype),
        f"ours, {args.dtype}": ours(args.folder, dtype, int8=False),
        "ours, int8": ours(args.folder, dtype, int8=True),
        **{f"llama.cpp, {p.stem}": llama_cpp(p, args.threads, args.batches, args.new_tokens) for p in args.gguf},
    }
    draw = torch.Generator().manual_seed(0)
    rows = {str(b): [args.new_tokens] * b for b in args.batches}
    most = max(args.batches)
    quarter = args.new_tokens // 4
    if most > 1:
        spread = [quarter + i * (args.new_tokens - quarter) // (most - 1) for i in range(most)]
        rows[f"{most}, spread"] = spread
    best: dict[tuple[str, str], float] = {}
    for row, lengths in rows.items():
        for round_number in range(args.rounds):
            first, prompts = torch.randint(10, 1000, (2, len(lengths), PROMPT_LEN), generator=draw).tolist()
            for name, answer in contenders.items():
                if round_number == 0:
                    answer(first, [2] * len(lengths))  # makes what is made once
                start = clock()
                answer(prompts, lengths)
                seconds = clock() - start
                best[name, row] = min(seconds, best.get((name, row), seconds))
                print(f"batch {row}: {name} {sum(lengths) / seconds:,.0f} tokens/s", file=sys.stderr, flush=True)
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, {args.clock} clock, ", end="")
    print(f"torch {version('torch')}, transformers {version('transformers')}\n")
    print("| tokens/s, and transformers' time in units of it | " + " | ".join(f"batch {row}" for row in rows) + " |")
    print("|---|" + "---|" * len(rows))
    peer = next(iter(contenders))
    for name in contenders:
        cells = [f"{sum(rows[r]) / best[name, r]:,.1f} ({best[peer, r] / best[name, r]:.2f} ×)" for r in rows]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
