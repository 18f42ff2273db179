"""The choice of a fast path, and that none replaces a function that was edited since."""

import subprocess
import sys

import pytest
import torch

from torchtune_lite import kernels
from torchtune_lite.kernels import FAST_PATHS, plain
from torchtune_lite.modules import RMSNorm
from torchtune_lite.modules.replaceable import digest
from torchtune_lite.peft.projections import lora


@pytest.mark.parametrize("name", FAST_PATHS)
def test_a_fast_path_was_written_for_the_plain_function_as_it_is(name):
    """After an edit of that function: make the fast path compute the same, see its test of equality pass, and note the
    new digest in kernels/__init__.py."""
    function, _, written_for = FAST_PATHS[name]
    assert digest(function.plain) == written_for
    assert len(function.paths) == sum(other is function for other, _, _ in FAST_PATHS.values())


def test_the_fused_products_were_written_for_lora_as_it_is():
    assert (digest(lora.LoRALinear.forward), digest(lora.LoRALinear.update)) == lora.FUSED_FOR
    assert lora.FUSED_AS_WRITTEN


def taken(name):
    """Whether a path computes a norm."""
    return type(RMSNorm(8, 1e-5)(torch.randn(2, 8)).grad_fn).__name__ == "_NormBackward"


def test_paths_are_switched_off_by_name_or_all_for_a_block():
    assert taken("rms_norm")
    with plain("rms_norm"):
        assert not taken("rms_norm")
        with plain():
            assert not taken("rms_norm")
        assert not taken("rms_norm")
    with plain("rotary"):
        assert taken("rms_norm")
    assert taken("rms_norm")
    with pytest.raises(AssertionError, match="no_such"), plain("no_such"):
        pass


@pytest.mark.parametrize(("value", "expected"), [("all", "False"), ("rotary, rms_norm", "False"), ("rotary", "True")])
def test_a_variable_switches_them_off(value, expected):
    code = "from tests.kernels.test_fast_paths import taken; print(taken('rms_norm'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TORCHTUNE_LITE_PLAIN": value, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected


def test_an_edited_function_runs_as_it_stands(tmp_path):
    """In a copy of the package with a changed RoPE."""
    import shutil
    from pathlib import Path

    package = Path(kernels.__file__).parent.parent
    shutil.copytree(package, tmp_path / "torchtune_lite", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    rope = tmp_path / "torchtune_lite" / "modules" / "rope.py"
    rope.write_text(rope.read_text().replace("x1 * cos - x2 * sin", "x1 * cos + x2 * sin"))
    code = (
        "from torchtune_lite import kernels; from torchtune_lite.modules import rope, norm;"
        "print(kernels.__file__, len(rope.rotate.paths), len(norm.rms_norm.paths))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / "torchtune_lite" / "kernels" / "__init__.py"), "0", "2"]
    assert "rotate was edited and runs as it stands, without kernels.rotary" in done.stderr
