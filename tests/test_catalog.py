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


def test_recipes_are_listed_with_the_configs_that_name_them_and_their_aliases(shipped):
    generate, lora = catalog.recipes()
    assert generate == ("generate", shipped / "recipes/generate.py", ("other",), ("dev/generate_v2",))
    assert (lora.name, lora.configs, lora.aliases) == (
        "lora_finetune_single_device",
        ("llama2/7B_lora",),
        ("lora_finetune_distributed",),
    )


PLACES = {
    "last": "seed: 1\nrecipe: generate\n",
    "spaced": "recipe : generate\n",
    "quoted": "\"recipe\": 'generate'  # whose\n",
    "after a directive": "%YAML 1.1\n---\nrecipe: generate\n",
    "in braces": "{seed: 1, recipe: generate}",
    "nested only": "model: {recipe: something}\n",
    "in a text": "note: |\n  x\n  recipe: something\nrecipe: generate\n",
    "nowhere": "seed: 1\n",
}


@pytest.mark.parametrize("encode", ["{}", "\ufeff{}", "CRLF"])
@pytest.mark.parametrize("place", PLACES)
def test_the_recipe_of_a_config_is_what_yaml_says(place, encode, folder):
    text = PLACES[place].replace("\n", "\r\n") if encode == "CRLF" else encode.format(PLACES[place])
    (folder / "my.yaml").write_bytes(text.encode())
    assert catalog.recipe_key("my.yaml") == (None if place in ("nested only", "nowhere") else "generate")


def test_the_recipe_must_be_a_name(folder):
    (folder / "my.yaml").write_text("recipe: [generate]\n")
    with pytest.raises(ConfigError, match=r"my.yaml: 'recipe' is \['generate'\], not the name of a recipe"):
        catalog.recipe_key("my.yaml")


def test_the_listing_which_reads_no_yaml_agrees_with_it():
    listed = {config: recipe.name for recipe in catalog.recipes() for config in recipe.configs}
    assert listed == {config: catalog.recipe_key(config) for config in catalog.configs()}


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


def test_a_recipe_of_torchtune_that_is_not_here_is_said_to_be_so():
    with pytest.raises(ConfigError, match=r"no recipe .qat_distributed.: quantisation-aware training is not served"):
        catalog.find_recipe("qat_distributed")
    assert not catalog.NOT_SERVED.keys() & catalog.recipes_by_name().keys()
