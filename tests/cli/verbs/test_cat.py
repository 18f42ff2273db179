import pytest

from torchtune_lite.errors import ConfigError


def test_a_config_is_printed_as_it_is(tune, shipped):
    assert tune("cat", "tiny/1M_full") == (shipped / "configs/tiny/1M_full.yaml").read_text()


def test_sorted_keys(tune, folder):
    (folder / "my.yaml").write_text("b: ${a}\na: 1e-5\nc: {z: 1, y: 2}\n")
    assert tune("cat", "my.yaml", "--sort") == "a: 1.0e-05\nb: ${a}\nc:\n  'y': 2\n  z: 1\n"


def test_a_wrong_name(tune):
    with pytest.raises(ConfigError, match="did you mean 'tiny/1M_full'"):
        tune("cat", "tiny/1M_ful")


@pytest.fixture
def including(folder):
    text = "# mine\ninclude: tiny/1M_full\nsteps: 5\n"
    (folder / "my.yaml").write_text(text)
    return text


def test_what_is_included_is_printed_with_it(tune, including):
    assert tune("cat", "my.yaml") == "# mine\nrecipe: full_finetune_single_device\nsteps: 5\nname: n\n"
    assert tune("cat", "my.yaml", "--sort") == "name: 'n'\nrecipe: full_finetune_single_device\nsteps: 5\n"


def test_as_is_the_file_alone(tune, including):
    assert tune("cat", "my.yaml", "--as-is") == including
    assert tune("cat", "my.yaml", "--as-is", "--sort") == "include: tiny/1M_full\nsteps: 5\n"
