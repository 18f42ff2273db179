"""The model card of a run: what it was made of, how it was trained, how it scored; with the metadata of the hub."""

from collections.abc import Mapping
from typing import Any, Literal

from torchtune_lite.config.text import document
from torchtune_lite.hub.facts import RunFacts
from torchtune_lite.peft import FILES
from torchtune_lite.utils import counted

CARD = "README.md"
Kind = Literal["model", "adapter", "gguf"]
LIBRARIES: dict[Kind, str] = {"model": "transformers", "adapter": "peft", "gguf": "gguf"}
RELATIONS: dict[Kind, str] = {"model": "finetune", "adapter": "adapter", "gguf": "quantized"}
"""What the hub calls the library that reads each, and its relation to the base model."""

MOST_ROWS = 10
"""How many losses the table of a card has."""

SETTINGS = {
    "epochs": "epochs",
    "batch_size": "samples in a batch",
    "gradient_accumulation_steps": "batches in a step",
    "optimizer": "optimizer",
    "optimizer.lr": "learning rate",
    "lr_scheduler": "schedule",
    "model.lora_rank": "rank of the adapters",
    "model.lora_alpha": "alpha of the adapters",
    "model.quantize_base": "base in NF4",
    "tokenizer.max_seq_len": "longest sample (tokens)",
    "dtype": "dtype",
    "seed": "seed",
}
"""Keys of a config, or components by their key, that a card names; those that a run has not are left out."""


def model_card(repo: str, facts: RunFacts, kind: Kind, curve: str | None = None) -> str:
    """Write the card of what is in the repository or folder `repo`; `curve` is a picture of the loss in it."""
    sections = [
        _purpose(repo, facts, kind),
        _section("Use", _use(repo, facts, kind)),
        _section("Training data", "\n".join(f"- {name}" for name in facts.data)),
        _section("Training", _training(facts)),
        _section("Loss", _losses(facts, curve)),
        _section("Scores", _table(("file", "measure", "value"), facts.scores)),
        _section("Config", _config(facts)),
    ]
    metadata = document.written(_metadata(facts, kind))
    return f"---\n{metadata}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _metadata(facts: RunFacts, kind: Kind) -> dict[str, Any]:
    """Return what the hub reads of a card; only names that it knows."""
    metadata: dict[str, Any] = {"library_name": LIBRARIES[kind]}
    if facts.base_repo:
        metadata |= {"base_model": facts.base_repo, "base_model_relation": RELATIONS[kind]}
    if facts.hub_data:
        metadata["datasets"] = facts.hub_data
    tags = ["torchtune_lite", *(["lora"] if kind == "adapter" else [])]
    return metadata | {"pipeline_tag": "text-generation", "tags": tags}


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _purpose(repo: str, facts: RunFacts, kind: Kind) -> str:
    is_adapter = kind == "adapter"
    base = f" {'for' if is_adapter else 'made from'} `{facts.base}`" if facts.base else ""
    what = f"{'An adapter' if is_adapter else 'A model'}{base}, trained with torchtune_lite."
    return f"# {repo.rpartition('/')[2]}\n\n{what}{_shape(facts.adapter)}"


def _shape(adapter: Mapping[str, Any]) -> str:
    """Say of what kind and size an adapter is, and where it sits; nothing of none, or of a kind that is not served."""
    if adapter.get("peft_type") not in FILES:
        return ""
    kind, numbers = FILES[adapter["peft_type"]].described(adapter)
    targets = adapter.get("target_modules")
    places = ", ".join(targets) if isinstance(targets, list) else targets
    return f" It is {kind}{numbers}{f', on {places}' if places else ''}."


def _use(repo: str, facts: RunFacts, kind: Kind) -> str:
    if kind == "gguf":
        return ""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if kind == "adapter":
        lines.insert(0, "from peft import PeftModel")
        lines.append(f'base = AutoModelForCausalLM.from_pretrained("{facts.base}", dtype="auto")')
        lines.append(f'model = PeftModel.from_pretrained(base, "{repo}")')
    else:
        lines.append(f'model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto")')
    lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{repo}")')
    return "```python\n" + "\n".join(lines) + "\n```"


def _training(facts: RunFacts) -> str:
    rows = [(name, value) for key, name in SETTINGS.items() if (value := _setting(facts.config, key)) is not None]
    total = [counted(facts.totals[name], name[:-1]) for name in ("steps", "tokens") if name in facts.totals]
    return "\n\n".join(filter(None, [_table(("setting", "value"), rows), ", ".join(total)]))


def _setting(config: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key, None where there is none; of a component the last part of its name."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        return str(node.get("_component_", "")).rpartition(".")[2] or None
    return node


def _losses(facts: RunFacts, curve: str | None) -> str:
    steps: dict[int, dict[str, Any]] = {}
    for row in facts.losses:
        steps.setdefault(row["step"], {}).update(row)
    rows = [row for row in steps.values() if len(row) > 1]
    every = -(-len(rows) // MOST_ROWS) or 1
    shown = rows[(len(rows) - 1) % every :: every]  # the last one among them
    names = [name for name in ("loss", "val_loss") if any(name in row for row in shown)]
    table = _table(("step", *names), [(row["step"], *(row.get(name, "") for name in names)) for row in shown])
    return "\n\n".join(filter(None, [curve and f"![loss]({curve})", table]))


def _config(facts: RunFacts) -> str:
    text = document.written(facts.config) if facts.config else ""
    return text and f"<details>\n<summary>config.yaml</summary>\n\n```yaml\n{text}```\n\n</details>"


def _table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Write a table in Markdown; nothing where it has no row."""
    lines = [heads, ["---"] * len(heads), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    text = f"{value:.4g}" if isinstance(value, float) else text
    return text.replace("|", "\\|")
