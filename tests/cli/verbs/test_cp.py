import pytest

from torchtune_lite.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "copy"),
    [
        (["tiny/1M_full", "my.yaml"], "my.yaml"),
        (["tiny/1M_full", "my.yml"], "my.yml"),
        (["tiny/1M_full", "my"], "my.yaml"),
        (["tiny/1M_full", "my.v2"], "my.v2.yaml"),
        (["tiny/1M_full", "."], "1M_full.yaml"),
        (["tiny/1M_full"], "1M_full.yaml"),
        (["generate", "mine"], "mine.py"),
        (["full_finetune_distributed", "."], "full_finetune_distributed.py"),
        (["both", "x", "--type", "config"], "x.yaml"),
        (["both", "x", "--type", "recipe"], "x.py"),
        (["generate", "new/folder/", "--make-parents"], "new/folder/generate.py"),
        (["generate", "new/mine.py", "--make-parents"], "new/mine.py"),
    ],
)
def test_a_file_is_cloned(words, copy, tune, folder, shipped):
    assert copy in tune("cp", *words)
    sources = {path.read_text() for path in shipped.rglob("*.*")}
    assert (folder / copy).read_text() in sources
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / copy]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny/1M_ful", "x"], "there is no recipe or config 'tiny/1M_ful'; did you mean 'tiny/1M_full'"),
        (["generate", "x", "--type", "config"], "there is no config 'generate'"),
        (["both", "x"], "'both' is a recipe and a config; choose with --type recipe or --type config"),
        (["generate", "new/mine.py"], "there is no folder new; make it with --make-parents"),
        (["generate", "new/"], "there is no folder new; make it with --make-parents"),
        (["generate", "taken"], "taken.py exists; choose another name, or overwrite it with --force"),
        (["generate", "taken.py/x", "--make-parents"], "cannot write taken.py/x.py: "),
    ],
)
def test_what_cannot_be_cloned_leaves_everything_as_it_was(words, message, tune, folder):
    (folder / "taken.py").write_text("mine")
    with pytest.raises(ConfigError, match=message):
        tune("cp", *words)
    assert [path.name for path in folder.rglob("*")] == ["taken.py"]
    assert (folder / "taken.py").read_text() == "mine"


def test_an_existing_file_is_written_over_only_when_forced(tune, folder):
    (folder / "x.py").write_text("mine")
    assert "left as it is" in tune("cp", "generate", "x", "-n")
    assert (folder / "x.py").read_text() == "mine"
    tune("cp", "generate", "x", "--force")
    assert (folder / "x.py").read_text() == '"""Talks."""\n'


def test_a_config_is_copied_with_what_it_includes(tune, folder, shipped):
    text = "# small\nrecipe: full_finetune_single_device\ninclude: tiny/1M_full\nsteps: 5\n"
    (shipped / "configs/tiny/small.yaml").write_text(text)
    tune("cp", "tiny/small", "whole")
    tune("cp", "tiny/small", "own", "--as-is")
    assert (folder / "whole.yaml").read_text() == "# small\nrecipe: full_finetune_single_device\nsteps: 5\nname: n\n"
    assert (folder / "own.yaml").read_text() == text
