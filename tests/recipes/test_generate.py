"""The generation recipe against transformers' greedy continuation."""

import shutil
import sys

import pytest
import torch
import transformers
from torchtune_lite.models.llama2 import llama2_tokenizer

from torchtune_lite import catalog, config
from torchtune_lite.errors import ConfigError


def test_greedy_continuation_is_that_of_transformers(tiny, tune):
    result = tune("run", "generate", "--config", "generation", f"model_dir={tiny.checkpoint}",
                  "prompt=red green", "max_new_tokens=12", "temperature=0", "device=cpu", "dtype=fp32",
                  "tokenizer.prompt_template=null")  # fmt: skip
    tokenizer = llama2_tokenizer(str(tiny.checkpoint / "tokenizer.model"), prompt_template=None)
    prompt = tokenizer.encode("red green", add_bos=True, add_eos=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    output = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    if 2 in output:
        output = output[: output.index(2)]
    assert result.stdout.rstrip("\n") == tokenizer.decode(output)


def test_the_tokenizer_of_the_checkpoint_is_found_without_its_path(tiny, tune):
    words = ["run", "generate", "--config", "generation", f"model_dir={tiny.checkpoint}"]
    words += ["prompt=red green", "max_new_tokens=4", "temperature=0", "device=cpu", "dtype=fp32"]
    component = "torchtune_lite.models.tokenizer_of_checkpoint"
    found = tune(*words, f"tokenizer={{_component_: {component}, prompt_template: null}}")
    assert found.stdout == tune(*words, "tokenizer.prompt_template=null").stdout != "\n"


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        (
            "prompt=2024",
            "'prompt': expected str or mapping, got int 2024; a text is quoted: '2024', on a command line '",
        ),
        ("prompt=true", "'prompt': expected str or mapping, got true; a text is quoted"),
        ("prompt=null", "'prompt': expected str or mapping, got null"),
        ("prompt=[a,b]", "'prompt': expected str or mapping, got list ['a', 'b']"),
        ("prompt={user: 42}", "'prompt': expected str or mapping, got mapping {'user': 42}; a text is quoted: '42'"),
        ("prompt={user: {text: a}}", "'prompt': expected str or mapping, got mapping {'user': {'text': 'a'}}"),
        ("prompt={}", "prompt has no text"),
        ("prompt={system: null, user: null}", "prompt has no text"),
        ("prompt={human: hi}", "prompt.human is not a role"),
        (f"prompt={'red ' * 200}", "leaves no room for an answer: the model's max_seq_len is 128; shorten the prompt"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_one_line_before_any_weight_is_read(word, problem, tiny, folder):
    shutil.copytree(tiny.checkpoint, folder / "base")
    (folder / "base/model.safetensors").write_bytes(b"no weights")
    words = ["model_dir=base", "tokenizer.prompt_template=null", "device=cpu", "prompt=red", word]
    settings = config.settings_of(catalog.find_recipe("generate").path)
    with pytest.raises(ConfigError) as error:
        sys.modules[settings.__module__].GenerateRecipe(config.load("generation", words, settings)).setup()
    assert problem in str(error.value) and "\n" not in str(error.value)
