import huggingface_hub
import pytest

from torchtune_lite.hub.card import MOST_ROWS, model_card
from torchtune_lite.hub.facts import RunFacts

FACTS = RunFacts(
    config={"epochs": 2, "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4}, "model": {"lora_rank": 8}},
    base="org/base",
    base_repo="org/base",
    data=["org/rows", "mine.jsonl"],
    hub_data=["org/rows"],
    losses=[{"step": 5, "loss": 2.0}, {"step": 5, "val_loss": 1.5}, {"step": 6, "loss": 1.25}],
    totals={"steps": 6, "tokens": 1200},
    scores=[("exact_match", "exact_match", 0.5)],
)


@pytest.fixture(scope="module")
def read():
    """Reads a card as huggingface_hub does."""
    pytest.importorskip("huggingface_hub")
    return lambda *args, **how: huggingface_hub.ModelCard(model_card(*args, **how))


def test_the_metadata_are_those_of_the_hub(read):
    model = read("me/m", FACTS, "model").data
    assert (model.library_name, model.base_model, model.datasets) == ("transformers", "org/base", ["org/rows"])
    assert (model.pipeline_tag, model.tags) == ("text-generation", ["torchtune_lite"])
    adapter = read("me/m", FACTS, "adapter").data
    assert (adapter.library_name, adapter.base_model_relation, "lora" in adapter.tags) == ("peft", "adapter", True)
    gguf = read("me/m", FACTS, "gguf").data
    assert (gguf.library_name, gguf.base_model_relation) == ("gguf", "quantized")


def test_what_is_not_known_is_left_out(read):
    card = read("me/m", RunFacts(), "model")
    assert card.data.base_model is None and card.data.datasets is None
    assert [line for line in card.text.splitlines() if line.startswith("#")] == ["# m", "## Use"]


def test_the_card_says_how_the_model_was_made(read):
    text = read("me/m", FACTS, "model", curve="loss_curve.png").text
    assert "# m\n\nA model made from `org/base`, trained with torchtune_lite." in text
    assert (
        'AutoModelForCausalLM.from_pretrained("me/m"' in text and "## Training data\n\n- org/rows\n- mine.jsonl" in text
    )
    assert "| epochs | 2 |\n| optimizer | AdamW |\n| learning rate | 0.0001 |\n| rank of the adapters | 8 |" in text
    assert "6 steps, 1,200 tokens" in text and "![loss](loss_curve.png)" in text
    assert "| step | loss | val_loss |\n| --- | --- | --- |\n| 5 | 2 | 1.5 |\n| 6 | 1.25 |  |" in text
    assert "| exact_match | exact_match | 0.5 |" in text and "```yaml\nepochs: 2\n" in text


def test_an_adapter_is_used_on_its_base(read):
    text = read("me/m", FACTS, "adapter").text
    assert "An adapter for `org/base`" in text and 'from_pretrained("org/base"' in text
    assert 'PeftModel.from_pretrained(base, "me/m")' in text


@pytest.mark.parametrize("count", [1, 9, 10, 11, 1000, 1003])
def test_the_table_of_losses_is_short_and_has_the_last(count):
    facts = RunFacts(losses=[{"step": step, "loss": 1.0} for step in range(1, count + 1)])
    text = model_card("me/m", facts, "model")
    rows = text.partition("| --- | --- |\n")[2].splitlines()
    assert 1 <= len(rows) <= MOST_ROWS and rows[-1] == f"| {count:,} | 1 |"
