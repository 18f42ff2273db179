"""The generation recipe against transformers' greedy continuation."""

import torch
import transformers

from torchtune_lite.models.llama2 import llama2_tokenizer


def test_greedy_continuation_is_that_of_transformers(tiny, tune):
    result = tune("run", "generate", "--config", "generation", f"checkpointer.checkpoint_dir={tiny.checkpoint}",
                  "prompt=red green", "max_new_tokens=12", "temperature=0", "device=cpu", "dtype=fp32")  # fmt: skip
    tokenizer = llama2_tokenizer(str(tiny.checkpoint / "tokenizer.model"), prompt_template=None)
    prompt = tokenizer.encode("red green", add_bos=True, add_eos=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    output = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    if 2 in output:
        output = output[: output.index(2)]
    assert result.stdout.rstrip("\n") == tokenizer.decode(output)


def test_too_long_a_prompt_is_one_line(tiny, tune):
    result = tune("run", "generate", "--config", "generation", f"checkpointer.checkpoint_dir={tiny.checkpoint}",
                  "prompt=red", "max_new_tokens=500", "device=cpu", check=False)  # fmt: skip
    assert result.returncode != 0
    assert "max_new_tokens" in result.stderr and "Traceback" not in result.stderr
