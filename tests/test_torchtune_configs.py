"""A config with every key of torchtune's LoRA configs: it runs, with a warning, or the error says why not."""

import sys

import pytest
import torch

from torchtune_lite import catalog, config
from torchtune_lite.cli.main import main
from torchtune_lite.peft import is_quantized

CONFIG = """
output_dir: /tmp/torchtune/llama2_7B/lora_single_device
model:
  _component_: torchtune.models.llama2.lora_llama2_7b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 8
  lora_alpha: 16
  lora_dropout: 0.0
tokenizer:
  _component_: torchtune.models.llama2.llama2_tokenizer
  path: /tmp/Llama-2-7b-hf/tokenizer.model
  max_seq_len: null
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/Llama-2-7b-hf
  checkpoint_files: {filename_format: "pytorch_model-{}-of-{}.bin", max_filename: "00002"}
  adapter_checkpoint: null
  recipe_checkpoint: null
  output_dir: ${output_dir}
  model_type: LLAMA2
resume_from_checkpoint: False
save_adapter_weights_only: False
dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset, packed: False, split: "train[:95%]"}
seed: null
shuffle: True
batch_size: 2
optimizer: {_component_: torch.optim.AdamW, fused: True, weight_decay: 0.01, lr: 3e-4}
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss: {_component_: torchtune.modules.loss.LinearCrossEntropyLoss}
epochs: 1
max_steps_per_epoch: null
gradient_accumulation_steps: 8
clip_grad_norm: null
compile: False
metric_logger: {_component_: torchtune.training.metric_logging.DiskLogger, log_dir: "${output_dir}/logs"}
log_every_n_steps: 1
log_peak_memory_stats: True
log_level: INFO
device: cuda
dtype: bf16
enable_activation_checkpointing: True
enable_activation_offloading: False
low_cpu_ram: False
profiler:
  _component_: torchtune.training.setup_torch_profiler
  enabled: False
  output_dir: ${output_dir}/profiling_outputs
  profile_memory: False
  num_cycles: 1
"""


def validate(text, monkeypatch, capsys):
    with open("theirs.yaml", "w") as file:
        file.write(text)
    words = ["tune", "validate", "theirs.yaml", "--recipe", "lora_finetune_distributed"]
    monkeypatch.setattr(sys, "argv", words)
    try:
        main()
    except SystemExit as end:
        assert end.code == 2
    return capsys.readouterr()


def test_it_runs_with_one_warning_of_what_has_no_effect(folder, monkeypatch, capsys):
    out, err = validate(CONFIG, monkeypatch, capsys)
    assert out == "Config is well-formed.\n"
    assert err.startswith("tune: warning: theirs.yaml: without effect here: ") and err.count("\n") == 1
    assert "low_cpu_ram" in err


@pytest.mark.parametrize("loss", ["LinearCrossEntropyLoss", "NoSuchLoss"])
def test_it_cannot_run_for_each_of_these_reasons(loss, folder, monkeypatch, capsys):
    text = CONFIG.replace("low_cpu_ram: False", "fsdp_cpu_offload: True").replace("LinearCrossEntropyLoss", loss)
    out, err = validate(text.replace("lora_rank: 8", "lora_rnak: 8"), monkeypatch, capsys)
    assert out == ""
    for reason in (
        "'fsdp_cpu_offload' is not served here; with parallel.data: fsdp processes share the weights",
        "has no argument 'lora_rnak'; did you mean 'lora_rank'?",
    ):
        assert reason in err
    assert ("cannot find 'NoSuchLoss' in torchtune_lite.modules.loss" in err) == (loss == "NoSuchLoss")


ATTN = ("q_proj", "k_proj", "v_proj", "output_proj")


@pytest.mark.parametrize("modules", [["q_proj"], ["q_proj", "v_proj", "output_proj"], list(ATTN)], ids=len)
@pytest.mark.parametrize(("mlp", "output"), [(False, True), (True, False)])
@pytest.mark.parametrize(
    ("builder", "more"), [("qlora_llama2_7b", {}), ("lora_llama2_7b", {"quantize_base": True}), ("lora_llama2_7b", {})]
)
def test_its_model_has_torchtunes_modules_and_nf4_weights(builder, more, modules, mlp, output, folder):
    """With `quantize_base` every projection of a layer is in NF4 there, adapted or not, and the output never is."""
    keys = {"lora_attn_modules": modules, "apply_lora_to_mlp": mlp, "apply_lora_to_output": output, **more}
    given = ", ".join(f"{key}: {value}" for key, value in keys.items())
    before, _, after = CONFIG.partition("model:\n")
    model = f"model: {{_component_: torchtune.models.llama2.{builder}, {given}}}\n"
    (folder / "theirs.yaml").write_text(before + model + "tokenizer:\n" + after.partition("tokenizer:\n")[2])
    cls = config.settings_of(catalog.find_recipe("lora_finetune_single_device").path)
    with torch.device("meta"):
        built = config.instantiate(config.load("theirs.yaml", [], cls).model)

    def kind(module):
        return type(module).__name__, is_quantized(module.weight)

    quantised = builder.startswith("qlora") or bool(more)
    adapted, plain = ("LoRALinear", quantised), ("FrozenNF4Linear", True) if quantised else ("Linear", False)
    for layer in built.layers:
        assert {name: kind(getattr(layer.attn, name)) for name in ATTN} == {
            name: adapted if name in modules else plain for name in ATTN
        }
        assert {kind(getattr(layer.mlp, name)) for name in ("w1", "w2", "w3")} == {adapted if mlp else plain}
    assert kind(built.output) == (("LoRALinear" if output else "Linear"), False)
