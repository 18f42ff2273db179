"""From the words after `tune chat` to those of `tune run`: the folder's values, options, overrides."""

import argparse

import pytest

from tests.cli.words import settings
from tests.demo_run import BASE, make_run
from torchtune_lite.cli import asking
from torchtune_lite.cli.verbs import chat, generate
from torchtune_lite.errors import CheckpointError, ConfigError

TEXTS = [
    "plain",
    "a: b # c",
    "'\"",
    "${HOME} \\\\${x} \\\\\\\\${",
    "null",
    "None",
    "- a",
    "{",
    "2024",
    "é市😀\n\ttab\\\\",
    "~x=1",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_as_it_is_typed(words, text):
    assert settings(words("generate", BASE, text)).prompt == {"user": text}
    assert settings(words("chat", BASE, "--system", text)).system == (None if text == "null" else text)
    assert settings(words("chat", BASE, asking.override("system", text))).system == text


def test_options_and_overrides_are_keys_of_the_recipe_and_the_folder_gives_the_rest(words):
    given = [
        "--temperature",
        "0.5",
        "top_k=7",
        "--max-new-tokens=9",
        "--log-level",
        "ERROR",
        "tokenizer.max_seq_len=200",
    ]
    cfg = settings(words("chat", BASE, *given))
    assert (cfg.temperature, cfg.top_k, cfg.max_new_tokens, cfg.log_level) == (0.5, 7, 9, "ERROR")
    assert cfg.checkpointer["checkpoint_dir"] == str(BASE) and cfg.tokenizer["prompt_template"] is None
    assert cfg.tokenizer["max_seq_len"] == 200 and cfg.system is None and cfg.dtype == "auto"
    assert settings(words("chat", BASE, "dtype=fp32", debug=True)).dtype == "fp32"


def test_a_run_gives_its_own_and_may_be_contradicted(words, tmp_path):
    make_run(tmp_path / "x", "dataset.new_system_prompt=Answer in JSON: {}", adapter_only=True)
    found = words("chat", tmp_path / "x", "--allow-component", "pkg.*")
    assert "--allow-component=pkg.*" in found
    cfg = settings(found)
    assert cfg.system == "Answer in JSON: {}" and cfg.dtype == "fp32" and cfg.model["lora_rank"] == 16
    cfg = settings(words("chat", tmp_path / "x", "system=null", "model.quantize_base=false", "--dtype", "bf16"))
    assert cfg.system is None and cfg.dtype == "bf16" and cfg.model["quantize_base"] is False
    cfg = settings(words("chat", tmp_path / "x", "--base", BASE))
    assert cfg.checkpointer["checkpoint_dir"] == str(BASE)
    with pytest.raises(CheckpointError, match="--base nowhere is not the folder of a model"):
        words("chat", tmp_path / "x", "--base", "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("torchtune_lite.models.llama2.llama2_tokenizer", "os.system", "'os.system' is not an allowed component"),
        ("lora_rank: 16", "lora_rank: ${oc.env:HOME}", "got text '${oc.env:HOME}'"),
    ],
)
def test_the_config_of_a_run_may_do_no_more_than_any_other(words, tmp_path, old, new, problem):
    make_run(tmp_path / "x", adapter_only=True)
    text = (tmp_path / "x/config.yaml").read_text()
    assert old in text
    (tmp_path / "x/config.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as error:
        settings(words("chat", tmp_path / "x"))
    assert problem in str(error.value)


@pytest.mark.parametrize("verb", ["chat", "generate", "serve"])
def test_each_recipe_has_the_keys_that_a_folder_gives(words, tmp_path, verb):
    make_run(tmp_path / "x", "dataset.new_system_prompt=s")
    cfg = settings(words(verb, tmp_path / "x"))
    assert (cfg.system, cfg.question_template) == ("s", None)


@pytest.mark.parametrize("verb", [chat, generate])
def test_each_key_is_an_option_with_its_meaning(verb):
    parser = argparse.ArgumentParser()
    verb.configure(parser)
    text = " ".join(parser.format_help().split())
    assert "--temperature float 0: always the likeliest token (default: 0.6)" in text
    assert "--model" not in text and "--prompt" not in text
