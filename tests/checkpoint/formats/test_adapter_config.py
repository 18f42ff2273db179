"""LoraConfigs that fit the adapters of a model, by PEFT's own fields and meaning, and values that no field may have."""

import dataclasses
import json
import math

import peft
import pytest
from peft import LoraConfig

from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.checkpoint.formats.adapter_config import config_misfits, peft_config
from torchtune_lite.checkpoint.layout import HFLayout
from torchtune_lite.models.llama import LLAMA
from torchtune_lite.peft import FILES

QK = {"lora_attn_modules": ["q_proj", "k_proj"], "lora_rank": 4, "lora_alpha": 12}
LORA = FILES["LORA"]
FIELDS = {field.name for field in dataclasses.fields(LoraConfig)}
EARLIER_FIELDS = {  # of PEFT 0.18 to 0.21, which may be gone from the one that is installed
    *("r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora"),
    *("modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("megatron_config", "megatron_core", "trainable_token_indices", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "use_dora", "velora_config", "alora_invocation_tokens", "use_qalora", "qalora_group_size"),
    *("monteclora_config", "layer_replication", "runtime_config", "lora_bias", "target_parameters", "use_bdlora"),
    *("arrow_config", "kasa_config", "ensure_weight_tying", "task_type", "peft_type", "auto_mapping", "peft_version"),
    *("base_model_name_or_path", "revision", "inference_mode"),
}
ODD = (0, 1, -3, 2.5, True, "x", [1], {"a": 1}, [[0, 2], [1, 3]], 10**400, float("nan"))


@pytest.fixture(scope="module")
def model(hf_base):
    """A model with adapters on q and k, of rank 4 and alpha 12."""
    import torch

    from torchtune_lite.models import llama2

    with torch.device("meta"):
        return llama2.lora_llama2(**FullModelHFCheckpointer(hf_base.dir).decoder_args, **QK)


@pytest.fixture(scope="module")
def config() -> dict:
    """The config that PEFT writes for such a model."""
    given = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "k_proj"], task_type="CAUSAL_LM")
    return json.loads(json.dumps(given.to_dict(), default=lambda value: sorted(value)))


def test_what_peft_and_we_write_is_taken(model, config, hf_base):
    assert config_misfits(config, model, HFLayout(LLAMA, model.config)) == []
    assert (
        config_misfits(
            peft_config(model, HFLayout(LLAMA, model.config), hf_base.dir), model, HFLayout(LLAMA, model.config)
        )
        == []
    )


@pytest.mark.parametrize("field", sorted(FIELDS | EARLIER_FIELDS | {"a_field_of_a_later_version"}))
def test_a_field_is_compared_harmless_or_off(model, config, field):
    """Any value of a field that is not known to be harmless is refused, naming the field."""
    is_harmless = field in LORA.harmless and field not in ("modules_to_save", "trainable_token_indices")
    harmless = [value for value in ODD if is_harmless or value in LORA.allowed.get(field, ())]
    if field not in {"peft_type", *LORA.compared, *LORA.patterns}:
        harmless += [None, False, "", [], {}]
    if field in ("alpha_pattern", "rank_pattern"):
        harmless.append({"a": 1})  # names no module
    for value in harmless:
        assert config_misfits(config | {field: value}, model, HFLayout(LLAMA, model.config)) == [], value
    for value in ODD:
        if value not in harmless:
            [problem] = config_misfits(config | {field: value}, model, HFLayout(LLAMA, model.config))
            assert field in problem and len(problem) < 300 and "\n" not in problem, value


@pytest.mark.parametrize("kind", FILES)
def test_every_field_of_peft_has_been_thought_of(kind):
    """The lists name only fields that PEFT has, so that a typo in them opens no gap."""
    file, fields = FILES[kind], set(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__)
    compared = {*file.compared, *file.patterns}
    earlier = {*EARLIER_FIELDS, "layers_to_transform", "layers_pattern"}
    assert file.harmless | compared | file.allowed.keys() <= fields | earlier
    assert not file.harmless & compared and not (file.harmless | compared) & file.allowed.keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changed the base weights; save it in"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changed"),
        ({"init_lora_weights": "olora"}, "'olora', which changed"),
        ({"init_lora_weights": "loftq"}, "'loftq', which changed"),
        ({"init_lora_weights": "corda"}, "'corda', which changed"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga', which changed"),
        (
            {"layer_replication": [[0, 1]], "bias": "all"},
            "bias is 'all', layer_replication is [[0, 1]], which",
        ),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', which is not served; merge it in PEFT (merge_and_unload)"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', the model's is 'LORA'"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is [[0, 2], [1, 2]], which is not served"),
        ({"modules_to_save": ["v_proj"]}, "modules_to_save is ['v_proj'], which is not served; merge it"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head'], the model's is None"),
        (
            {"trainable_token_indices": list(range(999))},
            "trainable_token_indices is [0, 1, 2, 3, 4, 5, ...], the model trains no rows alone",
        ),
    ],
)
def test_what_changes_the_function_is_refused_with_what_to_do(model, config, values, message):
    [problem] = config_misfits(config | values, model, HFLayout(LLAMA, model.config))
    assert message in problem


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "orthogonal", "eva"])
def test_a_start_that_leaves_the_base_alone_is_taken(model, config, init):
    assert config_misfits(config | {"init_lora_weights": init}, model, HFLayout(LLAMA, model.config)) == []


@pytest.mark.parametrize("field", ["r", "lora_alpha"])
@pytest.mark.parametrize("value", ["8", None, True, [4], math.nan, math.inf, -math.inf, 10**400, "missing"])
def test_a_value_of_another_type_is_malformed(model, config, field, value):
    given = config | {field: value}
    if value == "missing":
        del given[field]
    [problem] = config_misfits(given, model, HFLayout(LLAMA, model.config))
    assert problem.startswith(f"{field} is ") and ", not a " in problem


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    "pattern", [[1], "q_proj", {"q_proj": "4"}, {"q_proj": None}, {"(": 4}, {"q_proj{9999999999}": 4}]
)
def test_a_pattern_that_is_none_is_malformed(model, config, field, pattern):
    [problem] = config_misfits(config | {field: pattern}, model, HFLayout(LLAMA, model.config))
    assert problem.startswith(field) and ", not a" in problem


def test_patterns_and_rslora_together_are_those_of_each_module(model, config):
    """alpha / sqrt(r) of the module's own rank."""
    scaled = config | {"use_rslora": True, "lora_alpha": 6, "rank_pattern": {"k_proj": 4}, "alpha_pattern": {}}
    assert config_misfits(scaled, model, HFLayout(LLAMA, model.config)) == []
    for values, problem in (
        ({"rank_pattern": {"k_proj": 9}}, "r is 9, the model's is 4"),
        ({"lora_alpha": 6.00001}, "lora_alpha is 12.00002 by use_rslora, the model's is 12"),
        ({"alpha_pattern": {"layers.1.self_attn.k_proj": 5}}, "lora_alpha is 10 by use_rslora, the model's is 12"),
        ({"use_dora": True}, "use_dora is True, the model's is False"),
    ):
        assert config_misfits(scaled | values, model, HFLayout(LLAMA, model.config)) == [problem]
