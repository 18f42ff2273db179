import functools
import sys

import pytest
import torch

from torchtune_lite.config.registry import lookup as dotted
from torchtune_lite.config.registry import trust
from torchtune_lite.errors import ConfigError
from torchtune_lite.tracebacks import users_place


@pytest.fixture
def own(folder):
    """A module of the user's in the working directory."""
    (folder / "own_rows.py").write_text(
        "import json\nimport os\nfrom json import loads\nfrom functools import partial\n"
        "from torchtune_lite.models.llama2 import qlora_llama2_7b\n"
        "from torchtune_lite.modules.loss import LinearCrossEntropyLoss\n"
        "def rows(n): return n\nclass Rows:\n    def all(self): ...\nten = partial(rows, 10)\nnumber = 3\n"
        "small = partial(qlora_llama2_7b, lora_rank=2)\nremove = partial(os.remove)\n"
    )
    (folder / "own_broken.py").write_text("import no_such_library\n")
    yield folder
    for name in ("own_rows", "own_broken"):
        sys.modules.pop(name, None)


def test_classes_functions_and_partials_are_found(own):
    assert dotted.find("torch.optim.AdamW") is torch.optim.AdamW
    assert dotted.find("own_rows.rows")(3) == 3
    assert isinstance(dotted.find("own_rows.ten"), functools.partial)
    assert dotted.find("own_rows.small").keywords["lora_rank"] == 2
    assert dotted.find("own_rows.LinearCrossEntropyLoss").__name__ == "LinearCrossEntropyLoss"
    assert str(own) not in sys.path


@pytest.mark.parametrize("name", ["PagedAdamW", "PagedAdamW8bit"])
def test_the_optimizers_of_bitsandbytes_are_found_where_it_is_installed(name, monkeypatch):
    import bitsandbytes

    assert dotted.find(f"bitsandbytes.optim.{name}") is getattr(bitsandbytes.optim, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"not installed; pip install bitsandbytes \(torchtune_lite.optim.PagedAdamW"):
        dotted.find(f"bitsandbytes.optim.{name}")


def test_torchtune_in_front_means_this_package():
    from torchtune_lite import data

    assert dotted.find("torchtune.data.ChatMLTemplate") is data.ChatMLTemplate


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "logging.os.system",
        "torch.load",
        "torch.hub.load",
        "torch.os.system",
        "torch.nn.modules.module.torch.load",
        "torch.nn.modules.module.warnings.sys.exit",
        "torch.nn.functional.cross_entropy",
        "torch.nn.init.normal_",
        "torch.nn.parallel.DistributedDataParallel",
        "torch.optim.optimizer.register_optimizer_step_pre_hook",
        "torchao.quantization.quantize_",
        "torchtune_lite.catalog.re.compile",
        "torchtune_lite.catalog.Path",
        "torchtune_lite.checkpoint.store.disk.remove",
        "torchtune_lite.config.load",
        "torchtune_lite.config.settings_of",
        "torchtune_lite.config.registry.trust.trusting",
        "torchtune_lite.training.WandBLogger.mro",
        "own_rows.os.system",
        "own_rows.loads",
        "own_rows.partial",
        "own_rows.remove",
        "numpy.load",
        "pytest.main",
    ],
)
def test_nothing_else_can_be_named_not_even_through_an_allowed_module(path, own):
    with pytest.raises(
        ConfigError, match=f"'{path}' is not an allowed component; allowed are the builders of torchtune_lite"
    ):
        dotted.find(path)


@pytest.mark.parametrize(("path", "module"), [("this.d", "this"), ("own_rows.json.tool.main", "json.tool")])
def test_a_module_that_is_not_allowed_is_not_even_imported(path, module, own, monkeypatch):
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ConfigError, match="not an allowed component"):
        dotted.find(path)
    assert module not in sys.modules


def test_a_module_outside_is_not_imported_through_a_package_of_the_users_own(own, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("outside")
    (own / "own_space").mkdir()
    (outside / "own_space").mkdir()
    (outside / "own_space/foreign.py").write_text("def rows(): ...\n")
    monkeypatch.syspath_prepend(outside)
    with pytest.raises(ConfigError, match="'own_space.foreign.rows' is not an allowed component"):
        dotted.find("own_space.foreign.rows")
    assert "own_space.foreign" not in sys.modules
    for name in ("own_space", "own_space.foreign"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import no_such_library\n", ModuleNotFoundError),
        ("from json import no_such_name\n", ImportError),
        ("def rows(:\n", SyntaxError),
        ("rows = nothing\n", NameError),
        ("raise RuntimeError\n", RuntimeError),
    ],
)
def test_an_error_in_a_module_of_the_users_stays_as_it_is(text, error, folder):
    (folder / "own_slip.py").write_text(text)
    with pytest.raises(error) as raised:
        dotted.find("own_slip.rows")
    assert users_place(raised.value) == "own_slip.py:1"


def test_an_installed_package_that_cannot_be_imported_is_one_line(folder, monkeypatch):
    installed = folder / ".venv/lib/site-packages"
    installed.mkdir(parents=True)
    (installed / "broken_package.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setenv(trust.VARIABLE, "other.* broken_package.rows")
    with pytest.raises(ConfigError, match="^cannot import broken_package: .*No module named 'no_such_library'$"):
        dotted.find("broken_package.rows")


def test_what_the_user_allows_is_found(own, monkeypatch):
    monkeypatch.setenv(trust.VARIABLE, "sentencepiece.* xml.etree.* json.loads json.JSONDecoder.decode")
    assert dotted.find("sentencepiece.SentencePieceProcessor").__name__ == "SentencePieceProcessor"
    assert dotted.find("xml.etree.ElementTree.Element").__name__ == "Element"
    assert dotted.find("json.loads")("3") == 3
    assert dotted.find("json.JSONDecoder.decode").__name__ == "decode"  # each by its whole name
    for refused in ("sentencepiece.os.system", "json.dumps", "json.decoder.JSONDecoder", "xml.dom.minidom.parse"):
        with pytest.raises(ConfigError, match=f"'{refused}' is not an allowed component"):
            dotted.find(refused)


def test_machinery_of_a_library_is_found_where_the_user_allows_the_library(monkeypatch):
    monkeypatch.setenv(trust.VARIABLE, "torchtune_lite.data.* torch.nn.Linear")
    assert dotted.find("torchtune.data.load_rows").__name__ == "load_rows"
    assert dotted.find("torch.nn.Linear") is torch.nn.Linear
    with pytest.raises(ConfigError, match="'concatenated' of torchtune_lite.datasets is not an allowed component"):
        dotted.find("torchtune.datasets.concatenated")


def test_a_module_of_a_library_that_is_missing_is_an_error_like_any_other(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    with pytest.raises(ConfigError, match="'bitsandbytes.optim' is a module; name a class or function of it$"):
        dotted.find("bitsandbytes.optim")


def test_how_to_trust_a_package_is_said_but_not_for_the_standard_library():
    with pytest.raises(ConfigError, match=r"; to trust it, add --allow-component 'sentencepiece.\*'$"):
        dotted.find("sentencepiece.SentencePieceProcessor")
    with pytest.raises(ConfigError, match="working directory$"):
        dotted.find("os.system")


def test_a_path_is_no_dearer_for_being_long():
    with pytest.raises(ConfigError) as error:
        dotted.find("a." * 10**5 + "b")
    assert len(str(error.value)) < 1500


def test_what_is_installed_in_an_environment_in_the_working_directory_is_not_the_users_own(folder, monkeypatch):
    installed = folder / ".venv/lib/site-packages"
    installed.mkdir(parents=True)
    (installed / "foreign_rows.py").write_text("def rows(): ...\n")
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(ConfigError, match="'foreign_rows.rows' is not an allowed component"):
        dotted.find("foreign_rows.rows")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("AdamW", "'AdamW' is not a dotted path such as torch.optim.AdamW"),
        ("torch..AdamW", "'torch..AdamW' is not a dotted path"),
        (3, "3 is not a dotted path"),
        ("torch.optim.AdamWW", r"cannot find 'AdamWW' in torch.optim; did you mean 'AdamW'\?"),
        ("own_rows.row", r"cannot find 'row' in own_rows; did you mean 'rows'\? \(it has: Rows, rows, ten\)"),
        ("own_rows.Rows.all", "'own_rows.Rows.all' is an attribute of an object; name a class or function of a module"),
        ("own_rows.Rows.mro", "'own_rows.Rows.mro' is an attribute of an object; name a class or function of a module"),
        ("own_rows.number", "'own_rows.number' is neither a class nor a function"),
    ],
)
def test_what_cannot_be_found_is_answered_with_what_there_is(path, message, own):
    with pytest.raises(ConfigError, match=message) as error:
        dotted.find(path)
    assert "\n" not in str(error.value)
