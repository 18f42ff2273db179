"""torch's compiler is not imported until something needs it, and is then complete."""

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


def run(code):
    """Run `code` in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_step_with_checkpointing_does_not_load_it():
    run(STEP)


@pytest.mark.parametrize("before", ["", STEP], ids=["at once", "after a step"])
@pytest.mark.parametrize(
    "use",
    [
        "assert torch.equal(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)), torch.full((2,), 2.0))",
        "import torch._inductor.utils",
        "import torch._dynamo.utils",
        "from torch._dynamo import is_compiling",
        "import torch.export",
        "torch._dynamo.reset()",
        "assert torch.compiler.disable(len) is not len",
    ],
)
def test_whatever_needs_it_loads_it_whole(use, before):
    finders = "\nassert not any(type(finder).__module__ == make_compiler_lazy.__module__ for finder in sys.meta_path)"
    run(
        before
        + use
        + "\ntorch._dynamo.eval_frame\nassert loaded() and type(torch._dynamo).__name__ == 'module'"
        + finders
    )


def test_its_settings_can_be_read_and_changed_without_it():
    run("torch._dynamo.config.recompile_limit = 3\nassert not loaded()\ntorch._dynamo.reset()\nassert loaded()"
        "\nassert torch._dynamo.config.recompile_limit == 3")  # fmt: skip


def test_one_that_is_loaded_already_stays():
    code = "import torch._dynamo\nfrom torchtune_lite.cli.lazy_compiler import make_compiler_lazy\n"
    code += "loaded = torch._dynamo\nmake_compiler_lazy()\n"
    code += "assert torch._dynamo is loaded and torch._dynamo.eval_frame"
    subprocess.run([sys.executable, "-c", code], check=True)
