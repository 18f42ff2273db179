"""The generation recipe against transformers' greedy continuation; a file of prompts whose run is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from torchtune_lite.models.llama2 import llama2_tokenizer

from tests import scripted_model
from tests.demo_run import BASE, make_run
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
            "'prompt': expected str or mapping or null, got int 2024; a text is quoted: '2024', on a command line '",
        ),
        ("prompt=true", "'prompt': expected str or mapping or null, got true; a text is quoted"),
        ("prompt=null", "give a prompt, or file=..., the rows to answer"),
        ("file=rows.jsonl", "give a prompt, or file=..., the rows to answer, not both"),
        ("out=answers.jsonl", "file and out belong together: the rows, and the file of the answers to them"),
        ("top_p=1.5", "top_p is 1.5; it must be above 0 and at most 1, or null for all tokens"),
        ("prompt=[a,b]", "'prompt': expected str or mapping or null, got list ['a', 'b']"),
        (
            "prompt={user: 42}",
            "'prompt': expected str or mapping or null, got mapping {'user': 42}; a text is quoted: '42'",
        ),
        ("prompt={user: {text: a}}", "'prompt': expected str or mapping or null, got mapping {'user': {'text': 'a'}}"),
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


def test_a_run_is_asked_by_its_folder_as_by_all_that_it_was_trained_with(tune, tmp_path):
    make_run(tmp_path / "my run", adapter_only=True)
    found = tune("generate", tmp_path / "my run", "金門縣 5", "temperature=0", "max_new_tokens=9").stdout
    words = ["run", "generate", "--config", "generation", f"model_dir={BASE}", "temperature=0", "max_new_tokens=9"]
    words += ["prompt.user=金門縣 5", "dtype=fp32", "tokenizer.prompt_template=torchtune_lite.data.Llama2ChatTemplate"]
    words += ["model={_component_: torchtune_lite.models.llama2.qlora_llama2, apply_lora_to_mlp: true, lora_rank: 16}"]
    words += ["model.lora_attn_modules=[q_proj,k_proj,v_proj,output_proj]", "model.apply_lora_to_output=true"]
    words += ["model.lora_alpha=32", f"checkpointer.adapter_checkpoint={tmp_path}/my run/epoch_0"]
    assert found == tune(*words).stdout and len(found) > 3


def test_a_file_is_answered_to_its_end_though_the_run_is_killed(tmp_path, tune):
    scripted_model.make(tmp_path / "m", {"A": "路市", "B": "大安" * 2})
    texts = ["B", "A"] * 15
    rows = [json.dumps({"prompt": text, "id": i}) for i, text in enumerate(texts)]
    rows[11] = "not json"
    (tmp_path / "rows.jsonl").write_text("".join(f"{row}\n" for row in rows))
    words = ["generate", tmp_path / "m", "--file", "rows.jsonl", "temperature=0", "max_new_tokens=80", "batch_size=2"]
    words = list(map(str, [*words, "device=cpu", "dtype=fp32", "--out"]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "torchtune_lite", *words, out.name]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (out.exists() and out.read_bytes().count(b"\n") > 3):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = out.read_bytes()
    assert 3 < before.count(b"\n") < len(rows)
    said = tune(*words, out.name).stderr
    assert f"out.jsonl has the results of {before.count(chr(10).encode())} rows: going on from there" in said
    assert out.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    tune(*words, "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each["row"] for each in results] == list(range(len(rows)))
    assert results[11]["problem"].startswith("rows.jsonl:12:1: invalid JSON")
    assert [each["given"]["id"] for each in results if "given" in each] == [i for i in range(30) if i != 11]
    assert {each["answer"] for each in results[1::2] if "answer" in each} == {"路市"}
    assert {each["num_tokens"] for each in results[::2]} == {80}


def test_a_file_of_which_no_row_can_be_answered_is_an_error(tmp_path, tune):
    (tmp_path / "rows.jsonl").write_text('{"q": 1}\n{"q": 2}\n')
    done = tune("generate", BASE, "--file", "rows.jsonl", "--out", "out.jsonl", "device=cpu", check=False)
    assert done.returncode == 3
    problem = "none of 2 rows could be answered: rows.jsonl:1: has none of the columns messages, instruction"
    assert f"tune: error: {problem}" in done.stderr
