"""Run `tune` as often as asked, each time in a process of its own, forked from one with all imports done.

Reads one JSON object a line: `args`, `cwd`, the paths `out` and `err`, `without`, packages that the run must not find,
and `env`, a list with the variables of each process that is to run; answers each with a line, the exit codes as
`subprocess` gives them. A run is then as real as one from a shell, without the seconds of importing.
"""

import json
import os
import runpy
import sys
import traceback

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401, for the loss curve
import sentencepiece.sentencepiece_model_pb2  # noqa: F401, which a tokenizer reads its file with
import torch
import torch._dynamo  # noqa: F401, which NF4 and torch.compile load
import torch.distributed.fsdp  # noqa: F401, for processes that share the weights
import torchtune_lite.models.llama2

import torchtune_lite.training  # noqa: F401
from torchtune_lite.peft import quantize

quantize(torch.zeros(128, 128))  # imports torchao


def serve() -> None:
    """Answer until the standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for variables in request.pop("env"):
            children.append(os.fork())
            if children[-1] == 0:
                os.environ |= variables
                run(**request)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def run(args: list[str], cwd: str, out: str, err: str, without: list[str]) -> None:
    """Become `python -m torchtune_lite *args`; of several, each adds its output to that of the others."""
    os.chdir(cwd)
    for path, fd in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), fd)
    sys.argv = ["tune", *args]
    sys.modules |= dict.fromkeys(without)
    code: object = 0
    try:
        runpy.run_module("torchtune_lite", run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve()
