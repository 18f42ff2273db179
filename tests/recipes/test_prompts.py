"""Runs that train virtual tokens: their files, their answers, and their resume."""

import shutil

import pytest
import sentencepiece
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.recipes.conftest import common_keys, digest, metrics

METHODS = {
    "prompt": "{_component_: torchtune_lite.peft.PromptTuning, num_virtual_tokens: 4, prompt_tuning_init: TEXT, "
    "prompt_tuning_init_text: red cat}",
    "prefix": "{_component_: torchtune_lite.peft.PrefixTuning, num_virtual_tokens: 4, prefix_projection: True}",
    "P-tuning": "{_component_: torchtune_lite.peft.PTuning, num_virtual_tokens: 4, encoder_hidden_size: 16, "
    "encoder_reparameterization_type: LSTM, encoder_dropout: 0.1}",
}


@pytest.fixture(params=METHODS)
def words(request, tiny, tmp_path):
    """A recipe and its config, with a name for the run that is left to give."""
    path = tmp_path / "run.yaml"
    path.write_text(
        common_keys(tiny, tmp_path / "out")
        + "model: {_component_: torchtune_lite.models.from_checkpoint, adapter: "
        + METHODS[request.param]
        + "}\nbatch_size: 4\nepochs: 2\noptimizer: {_component_: torch.optim.AdamW, lr: 3.0e-2}\n"
        + "enable_activation_checkpointing: True\n"
    )
    return "run", "lora_finetune_single_device", "--config", path


def greedy(model, tokens, count):
    """The likeliest tokens after a prompt, up to EOS, without a cache; those beyond the vocabulary left out."""
    row = list(tokens)
    for _ in range(count):
        batch = torch.tensor([row])
        with torch.no_grad():
            logits = model(batch, attention_mask=torch.ones_like(batch)).logits
        row.append(logits[0, -1].argmax().item())
    answer = row[len(tokens) :]
    answer = answer[: answer.index(2)] if 2 in answer else answer
    return [token for token in answer if token < 100]


def test_a_run_learns_and_answers_as_peft_computes(words, tiny, tune, tmp_path):
    done = tune(*words, f"dataset_val={{_component_: torchtune_lite.datasets.instruct_dataset, source: {tiny.val}}}")
    losses = metrics(tmp_path / "out", "loss")
    assert min(losses[4:]) < losses[0]
    [line] = [line for line in done.stderr.splitlines() if "virtual tokens are not weights" in line]
    assert line.endswith("checkpoints have the adapter alone, which PEFT reads")
    folder = tmp_path / "out/epoch_1"
    assert not (folder / "config.json").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, folder / "adapter").eval()
    tokenizer = sentencepiece.SentencePieceProcessor(str(tiny.checkpoint / "tokenizer.model"))
    answers = []
    for prompt in ("red cat", "big house under", "fish"):
        start = [1, *tokenizer.encode(prompt)]
        answers.append(tokenizer.decode(greedy(theirs, start, 6)))
        said = tune("generate", folder, prompt, "temperature=0", "max_new_tokens=6").stdout
        assert said.strip() == answers[-1].strip()
    assert any(answers)
    refused = tune("export", folder, "--to", "hf", "--out", "hf", check=False)
    assert refused.stderr.splitlines()[-1].endswith(
        "--to hf: virtual tokens are not weights and cannot be merged; use --to adapter, which PEFT reads"
    )
    tune("export", folder, "--to", "adapter", "--out", "alone")
    assert ", 4 virtual tokens." in (tmp_path / "alone/README.md").read_text()


def test_a_resume_goes_on_as_if_never_stopped(words, tune, tmp_path):
    tune(*words)
    tune(*words, "output_dir=parts", "save_every_n_steps=5")
    for each in (tmp_path / "parts").iterdir():
        if each.is_dir() and each.name != "step_5":
            shutil.rmtree(each)
    tune(*words, "output_dir=parts", "resume_from_checkpoint=True")
    assert digest(tmp_path / "parts", "epoch_1") == digest(tmp_path / "out", "epoch_1")
