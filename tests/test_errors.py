import pytest
import torch

from torchtune_lite import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.ConfigError, 2), (errors.DataError, 3), (errors.CheckpointError, 4), (errors.SaveError, 5)],
)
def test_a_users_mistake_is_one_line_and_its_exit_code(error, code, capsys):
    with pytest.raises(SystemExit) as exit, errors.reporting():
        raise error("no file 'x.json'")
    assert exit.value.code == code
    assert capsys.readouterr().err == "tune: error: no file 'x.json'\n"


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit, errors.reporting():
        raise KeyboardInterrupt
    assert exit.value.code == 130
    assert capsys.readouterr().err == "tune: interrupted\n"


def test_a_stop_is_no_error_and_one_line_with_the_code_of_its_signal(capsys):
    with pytest.raises(SystemExit) as exit, errors.reporting(debug=True):
        raise errors.Stopped("stopped by SIGTERM after step 3", 15)
    assert exit.value.code == 143
    assert capsys.readouterr().err == "tune: stopped by SIGTERM after step 3\n"


class OutOfMemoryError(RuntimeError):
    """Torch's for a GPU, by its name."""


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (
            OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB of which 1 GiB "
                "is free. Process 7 has 22 GiB memory in use. See the documentation\nfor more"
            ),
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB of which 1 GiB "
            "is free",
        ),
        (lambda: torch.empty(10**15), "can't allocate memory: you tried to allocate 4000000000000000 bytes"),
        (MemoryError(), "no more on the host"),
    ],
    ids=["GPU", "host", "Python"],
)
def test_out_of_memory_is_one_line_that_says_what_to_lower(error, detail, capsys):
    with pytest.raises(SystemExit) as exit, errors.reporting():
        if isinstance(error, Exception):
            raise error
        error()
    assert exit.value.code == 7
    line = capsys.readouterr().err
    assert line.startswith(f"tune: error: out of memory ({detail}") and line.count("\n") == 1
    assert "; lower batch_size and raise gradient_accumulation_steps by as much, set enable_activation_ch" in line


def test_another_error_of_torch_is_a_bug_with_its_traceback():
    with pytest.raises(RuntimeError, match="size of tensor a"), errors.reporting():
        torch.ones(2) + torch.ones(3)


def test_debug_keeps_the_traceback_and_a_bug_always_does():
    with pytest.raises(errors.ConfigError), errors.reporting(debug=True):
        raise errors.ConfigError("x")
    with pytest.raises(ZeroDivisionError), errors.reporting():
        1 / 0  # noqa: B018


def test_did_you_mean():
    assert errors.did_you_mean("optimiser", ["model", "optimizer"]) == "; did you mean 'optimizer'?"
    assert errors.did_you_mean("zzz", ["model", "optimizer"]) == ""


def test_warn(capsys):
    errors.warn("careful")
    assert capsys.readouterr().err == "tune: warning: careful\n"
