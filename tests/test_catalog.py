import pytest

from torchtune_lite import catalog
from torchtune_lite.errors import ConfigError


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A catalogue of two recipes, one of which has a config."""
    files = {
        "recipes/generate.py": "",
        "recipes/lora_finetune_single_device.py": "",
        "configs/llama2/7B_lora.yaml": "# what it is\n\nrecipe: lora_finetune_single_device  # whose\nseed: 1\n",
        "configs/other.yaml": "seed: 1\nrecipe: generate\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(catalog, "folder", lambda name: tmp_path / name)
    return tmp_path


def test_recipes_are_listed_with_the_configs_that_name_them_first_and_their_aliases(shipped):
    generate, lora = catalog.recipes()
    assert generate == ("generate", shipped / "recipes/generate.py", (), ("dev/generate_v2",))
    assert (lora.name, lora.configs, lora.aliases) == (
        "lora_finetune_single_device",
        ("llama2/7B_lora",),
        ("lora_finetune_distributed",),
    )


def test_a_recipe_is_found_by_name_alias_and_path(shipped, folder):
    (folder / "mine.py").write_text("")
    assert catalog.find_recipe("lora_finetune_distributed").name == "lora_finetune_single_device"
    assert catalog.find_recipe("generate").path == shipped / "recipes/generate.py"
    assert catalog.find_recipe("mine.py") == ("mine", folder / "mine.py", (), ())


def test_a_config_is_found_by_name_and_path(shipped, folder):
    (folder / "my.yaml").write_text("seed: 1")
    assert catalog.find_config("llama2/7B_lora") == shipped / "configs/llama2/7B_lora.yaml"
    assert catalog.find_config("my.yaml").read_text() == "seed: 1"


@pytest.mark.parametrize(
    ("find", "given", "meant"),
    [
        (catalog.find_recipe, "lora_finetune_singel_device", "lora_finetune_single_device"),
        (catalog.find_recipe, "generat.py", "generate"),
        (catalog.find_config, "llama2/7B_lorra", "llama2/7B_lora"),
        (catalog.find_config, "llama2/7B_lora.yaml", "llama2/7B_lora"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(find, given, meant, shipped, folder):
    with pytest.raises(ConfigError, match=rf"there is no \w+ '{given}'; did you mean '{meant}'\?"):
        find(given)


def test_every_alias_of_the_package_leads_to_a_script():
    assert {catalog.find_recipe(alias).name for alias in catalog.ALIASES} == set(catalog.ALIASES.values())
