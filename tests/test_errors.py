import pytest

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
