"""torch's compiler is not imported until something needs it, and is then complete."""

import json
import subprocess
import sys

import pytest

START = """
import sys
from torchtune_lite.cli.lazy_compiler import make_compiler_lazy
make_compiler_lazy()
import torch
loaded = lambda: "torch._dynamo.symbolic_convert" in sys.modules
"""
STEP = """
from torch.utils.checkpoint import checkpoint
layer = torch.nn.Linear(3, 2)
optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
checkpoint(layer, torch.ones(3), use_reentrant=False).sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert not loaded()
"""


SERVER = """
import json, os, traceback
for line in sys.stdin:
    if (child := os.fork()) == 0:
        code = 0
        try:
            exec(json.loads(line), globals())
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run():
    """Run code in a process of its own, forked from one that has done `START`."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", START + SERVER], **pipes) as server:

        def answer(code):
            print(json.dumps(code), file=server.stdin, flush=True)
            assert server.stdout.readline() == "0\n"  # else with a traceback

        yield answer


def test_a_step_with_checkpointing_does_not_load_it(run):
    run(STEP)


@pytest.mark.parametrize(
    "use",
    [
        STEP + "torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2))",
        "assert torch.equal(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)), torch.full((2,), 2.0))",
        "import torch._inductor.utils",
        "import torch._dynamo.utils",
        "from torch._dynamo import is_compiling",
        "import torch.export",
        "torch._dynamo.reset()",
        "assert torch.compiler.disable(len) is not len",
    ],
)
def test_whatever_needs_it_loads_it_whole(use, run):
    finders = "\nassert not any(type(finder).__module__ == make_compiler_lazy.__module__ for finder in sys.meta_path)"
    run(use + "\ntorch._dynamo.eval_frame\nassert loaded() and type(torch._dynamo).__name__ == 'module'" + finders)


def test_its_settings_can_be_read_and_changed_without_it(run):
    run("torch._dynamo.config.recompile_limit = 3\nassert not loaded()\ntorch._dynamo.reset()\nassert loaded()"
        "\nassert torch._dynamo.config.recompile_limit == 3")  # fmt: skip


def test_one_that_is_loaded_already_stays(run):
    run("import torch._dynamo.utils\nmodule = sys.modules['torch._dynamo']\nmake_compiler_lazy()"
        "\nassert torch._dynamo is sys.modules['torch._dynamo'] is module and torch._dynamo.eval_frame")  # fmt: skip
