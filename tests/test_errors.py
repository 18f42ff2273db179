from pathlib import Path

import pytest

from tests.growth import growth
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


def end_of(error, capsys, debug=False, log=None, file=errors.__file__):
    """The output and the exit code when `error`, raised in the first line of a file, ends a command."""
    with pytest.raises(SystemExit) as exit, errors.reporting(debug):
        if log:
            errors.log_to(log)
        exec(compile("raise error", str(file), "exec"), {"error": error})
    return capsys.readouterr().err.splitlines(), exit.value.code


def test_debug_shows_the_traceback_before_the_line(capsys):
    lines, code = end_of(errors.DataError("no rows"), capsys, debug=True)
    assert (lines[0], lines[-1], code) == ("Traceback (most recent call last):", "tune: error: no rows", 3)


def test_a_bug_is_one_line_that_says_where_the_traceback_is(capsys, tmp_path):
    log = tmp_path / "run.log"
    log.write_text("before\n")
    lines, code = end_of(ZeroDivisionError("by\nzero"), capsys, log=log)
    assert (len(lines), code) == (1, 70)
    assert lines[0].startswith(
        f"tune: internal error: ZeroDivisionError: by zero; the traceback is in {log}, and --debug"
    )
    said = log.read_text()
    assert said.startswith("before\nTraceback") and said.endswith(f"ZeroDivisionError: by\nzero\n{lines[0]}\n")


@pytest.mark.parametrize("log", [None, Path("/no/such/folder/run.log")])
def test_the_traceback_of_a_bug_is_shown_where_no_log_takes_it(log, capsys):
    lines, code = end_of(ZeroDivisionError("x"), capsys, log=log)
    assert (lines[0], code) == ("Traceback (most recent call last):", 70)
    assert lines[-1] == "tune: internal error: ZeroDivisionError: x; the traceback is above; please report it"


def test_an_error_in_a_file_of_the_users_is_theirs(capsys, folder):
    (folder / "my_loss.py").write_text("raise error\n")
    lines, code = end_of(NameError("name 'x'\nis not"), capsys, file=folder / "my_loss.py")
    assert code == 1
    assert (lines[0], len(lines)) == ("Traceback (most recent call last):", 8)  # with two of this file, also not ours
    assert lines[3:] == [
        f'  File "{folder}/my_loss.py", line 1, in <module>',
        "    raise error",
        "NameError: name 'x'",
        "is not",
        "tune: error: my_loss.py:1: NameError: name 'x' is not",
    ]


def test_its_whole_traceback_is_in_the_log_and_debug_shows_it_at_once(capsys, folder):
    (folder / "my_loss.py").write_text("raise error\n")
    lines, _ = end_of(KeyError("x"), capsys, log=folder / "run.log", file=folder / "my_loss.py")
    assert lines[-1] == f"tune: error: my_loss.py:1: KeyError: 'x'; the whole traceback is in {folder}/run.log"
    assert "in reporting" in (folder / "run.log").read_text() and "in reporting" not in "".join(lines)
    lines, _ = end_of(KeyError("x"), capsys, debug=True, file=folder / "my_loss.py")
    assert "in reporting" in "".join(lines) and "".join(lines).count("Traceback") == 1


def test_a_users_error_that_has_an_exit_code_of_its_own_keeps_it(capsys, folder):
    (folder / "my_rows.py").write_text("raise error\n")
    for error, code in ((errors.DataError("x"), 3), (MemoryError(), 7)):
        assert end_of(error, capsys, file=folder / "my_rows.py")[1] == code


def test_a_script_of_torchtunes_is_told_how_to_go_on(capsys, folder):
    (folder / "theirs.py").write_text("raise error\n")
    error = ModuleNotFoundError("No module named 'torchtune'", name="torchtune.config")
    lines, code = end_of(error, capsys, file=folder / "theirs.py")
    assert code == 1
    assert "theirs.py:1: ModuleNotFoundError: No module named 'torchtune'; a torchtune script has" in lines[-1]
    assert "tune cp" in lines[-1] and "coming_from_torchtune.md" in lines[-1]


def test_the_log_of_one_command_gets_nothing_of_the_next(capsys, tmp_path):
    end_of(errors.DataError("first"), capsys, log=tmp_path / "run.log")
    end_of(errors.DataError("second"), capsys)
    assert "first" in (tmp_path / "run.log").read_text() and "second" not in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (MemoryError(), "out of memory;"),
        (OSError(12, "Cannot allocate memory"), "out of memory;"),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9663676416 bytes. Error code 12"
            ),
            "out of memory (9.00 GiB more were asked for);",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), "out of GPU memory (2.50 GiB more"),
    ],
)
def test_too_little_memory_is_exit_code_7_and_names_what_to_lower(error, what, capsys):
    [line], code = end_of(error, capsys)
    assert code == 7
    assert line.startswith(f"tune: error: {what}")
    assert all(key in line for key in ("batch_size", "max_seq_len", "enable_activation_checkpointing=True"))


def test_torch_says_so_when_memory_is_short(capsys):
    import torch

    try:
        torch.empty(2**60)
    except RuntimeError as error:
        assert end_of(error, capsys)[1] == 7


def test_no_secret_is_printed_or_logged(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "s3cret-of-mine")
    log = tmp_path / "run.log"
    lines, _ = end_of(errors.DataError("no access with s3cret-of-mine"), capsys, debug=True, log=log)
    errors.warn("s3cret-of-mine is old")
    assert "s3cret" not in "".join(lines) + log.read_text() + capsys.readouterr().err
    assert lines[-1] == "tune: error: no access with ***"


def test_several_problems_are_a_line_each_whatever_is_in_them():
    assert str(errors.ConfigError("a\n  b\x1b[1m")) == r"a b\x1b[1m"
    assert str(errors.ConfigError("a", "b\nc")).splitlines() == ["2 problems:", "  a", "  b c"]


def test_did_you_mean():
    assert errors.did_you_mean("optimiser", ["model", "optimizer"]) == "; did you mean 'optimizer'?"
    assert errors.did_you_mean("zzz", ["model", "optimizer"]) == ""


@pytest.mark.parametrize("given", ["bfloat16", "torch.bfloat16", "BFloat16"])
def test_another_word_for_a_value(given):
    assert errors.meant(given, ["fp32", "bf16"]) == "; did you mean 'bf16'?"
    assert errors.meant(given, ["fp32"]) == errors.meant("fp8", ["fp32", "bf16"]) == ""


def test_long_and_many_names_are_not_compared(monkeypatch):
    compared = []
    monkeypatch.setattr("difflib.get_close_matches", lambda word, names, **rest: compared.append((word, names)) or [])
    long = "x" * (errors.LONGEST_NAME + 1)
    assert errors.did_you_mean(long, ["model"]) == "" and not compared
    errors.did_you_mean("x", [long, "a"] + ["model"] * 2 * errors.MOST_NAMES)
    ((_, names),) = compared
    assert len(names) == errors.MOST_NAMES - 1 and long not in names


def test_warn(capsys):
    errors.warn("careful")
    assert capsys.readouterr().err == "tune: warning: careful\n"


@pytest.mark.parametrize("piece", ["a", " ", "\n", " \n", "'", "\\'", "'a ", '"', "\t", "a b=", "é", "\x00"])
def test_an_error_costs_what_its_text_is_long(piece):
    assert growth(errors.ConfigError, piece) < 30


@pytest.mark.parametrize("value", ["a" * 10**5, "a'b" * 10**5, "a\"b'c" * 10**5, "two words\n" * 10**5, "\\" * 10**5])
def test_a_value_that_an_error_quotes_is_cut(value):
    message = str(errors.DataError(f"rows.jsonl:3: role={value!r} is not one of user, assistant; set role_key"))
    assert message.startswith("rows.jsonl:3: role=") and message.endswith(
        " is not one of user, assistant; set role_key"
    )
    assert len(message) < 400 and f"({len(repr(value)):,} characters)" in message


@pytest.mark.parametrize("value", ["a" * 190, "it's", "a 'quoted' word", "C:\\x", ""])
def test_a_value_of_ordinary_length_stays_whole(value):
    assert repr(value) in str(errors.DataError(f"rows.jsonl:3: role={value!r} is not one of user, assistant"))


def test_a_line_without_quotes_is_cut_in_its_middle():
    message = str(errors.DataError("has: " + ", ".join(map(str, range(10**5))) + "; set column_map"))
    assert len(message) < 2100 and message.startswith("has: 0, 1, 2") and message.endswith("; set column_map")
    assert " characters) … " in message


def test_a_secret_is_blanked_before_it_could_be_cut():
    for start in range(100, 220):
        message = str(errors.DataError(f"row {'x' * start + ' hf_' + 'Ab0' * 12 + ' ' + 'y' * 300!r}"))
        assert "Ab0" not in message and "hf_" not in message


def test_a_bug_with_a_long_message_is_one_short_line(capsys):
    lines, _ = end_of(KeyError("x" * 10**5), capsys)
    assert len(lines[-1]) < 2300


def test_a_name_that_is_no_slip_is_not_compared():
    assert errors.did_you_mean("a" * 10**6, ["a" * 10**6]) == ""
