"""Classifiers and reward models against transformers: read, computed, trained and written."""

import pytest
import torch
import transformers
from torch.testing import assert_close

from tests.models import tiny
from torchtune_lite.checkpoint import FullModelHFCheckpointer
from torchtune_lite.models import from_checkpoint, llama2, mistral
from torchtune_lite.modules import sequence_values

LENS = [5, 9, 2]


@pytest.fixture
def theirs(tmp_path):
    config = tiny.config("llama2")
    config.num_labels, config.pad_token_id = 3, 0
    model = transformers.LlamaForSequenceClassification(config).eval()
    tiny.randomise(model)
    model.save_pretrained(tmp_path / "base")
    return model


@pytest.mark.parametrize("lora", [{}, {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4}])
def test_a_classifier_is_read_trained_and_written(lora, theirs, tmp_path):
    checkpointer = FullModelHFCheckpointer(tmp_path / "base")
    assert checkpointer.decoder_args["num_classes"] == 3
    with torch.device("meta"):
        model = from_checkpoint(**checkpointer.decoder_args, **lora)
    checkpointer.load(model, device=torch.device("cpu"), dtype=torch.float32)
    tokens = [torch.randint(3, 500, (n,)) for n in LENS]
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)

    def values(model):
        return sequence_values(model(torch.cat(tokens)[None], seq_lens=LENS), LENS)

    with torch.no_grad():
        expected = theirs(padded, attention_mask=(padded > 0).long()).logits
        assert_close(values(model), expected, atol=1e-4, rtol=1e-4)
    before = values(model).detach()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.nn.functional.cross_entropy(values(model), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    trained = values(model).detach()
    assert (trained - before).abs().max() > 1e-3
    checkpointer.save(tmp_path / "out", model, verify=True)
    back = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert_close(back(padded, attention_mask=(padded > 0).long()).logits, trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("module", [llama2, mistral])
def test_reward_builders_have_one_output(module):
    name = "llama2" if module is llama2 else "mistral"
    with torch.device("meta"):
        model = getattr(module, f"lora_{name}_reward_7b")(lora_attn_modules=["q_proj"])
    assert model.output.weight.shape == (1, 4096)
