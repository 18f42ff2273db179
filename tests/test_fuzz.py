"""Randomly damaged files and words give a value or a one-line TuneError, never anything else."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchtune_lite import catalog, config
from torchtune_lite.checkpoint.formats.files import hf_weight_files
from torchtune_lite.checkpoint.formats.hf import FullModelHFCheckpointer
from torchtune_lite.checkpoint.formats.safetensors_stream import read_safetensors
from torchtune_lite.checkpoint.store.manifest import MANIFEST, read_manifest, seal, verify
from torchtune_lite.config.text.document import Document
from torchtune_lite.config.text.overrides import apply
from torchtune_lite.data import SentencePieceTokenizer
from torchtune_lite.datasets import chat_dataset, instruct_dataset
from torchtune_lite.errors import TuneError

BASE = Path(catalog.__file__).parent / "assets" / "base"
CONFIGS = [path.read_text(encoding="utf-8") for path in catalog.configs().values()]
LORA = config.settings_of(catalog.find_recipe("lora_finetune_single_device").path)

RANDOM = st.integers(0, 2**32).map(random.Random)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=8) | st.just("../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def fuzz(count: int) -> Callable:
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def survives(call: Callable[[], object]) -> None:
    try:
        call()
    except TuneError as error:
        first, *problems = str(error).split("\n")
        assert not problems or first == f"{len(problems)} problems:"
        assert all(line.isprintable() for line in (first, *problems))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Flip, double, drop or replace some bytes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 8, 40])
        what = rng.choice([b"", data[at : at + length] * 2, rng.randbytes(length), rng.choice(SPECIAL)])
        data[at : at + length] = what
    return bytes(data)


SPECIAL = [bytes([each]) for each in b"{}[]:,-?'\"\n\t\0\xff"] + [b"[" * 2000, b"9" * 20, b"9e9999", b"\xef\xbb\xbf"]
SPECIAL += [b"&a", b"*a", b"!!", b"${", b"null", b"\\ud800", b"_component_"]


def changed(node: Any, rng: random.Random, value: Any) -> Any:
    """Replace, rename or remove something at a random depth of a JSON value."""
    if not isinstance(node, dict | list) or not node or rng.random() < 0.1:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    action = rng.choice(["into", "into", "replace", "remove", "rename"])
    if action == "remove":
        del copy[key]
    elif action == "rename" and isinstance(copy, dict):
        copy[str(value)] = copy.pop(key)
    else:
        copy[key] = changed(copy[key], rng, value) if action == "into" else value
    return copy


OTHER_VALUES = ["null", "[1, 2]", "{a: 1}", "-1", "yes", "'x'", "1e999", "${x}", "${model}"]


def mutated_lines(text: str, rng: random.Random) -> str:
    """Drop, double, rename, indent, retype or swap lines of a YAML file."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        line, key = lines[at], lines[at].partition(":")[0]
        lines[at : at + 1] = rng.choice(
            [
                [],
                [line, line],
                ["  " + line],
                [line.replace(":", "x:", 1)],
                [rng.choice(lines), line],
                *(
                    [f"{key}: {value}"]
                    for value in ("null", "[1, 2]", "{a: 1}", "-1", "yes", "'x'", "1e999", "${x}", "${model}")
                ),
            ]
        )
        lines = lines or ["a: 1"]
    return "\n".join(lines)


@given(st.sampled_from(CONFIGS), RANDOM, st.booleans())
@fuzz(250)
def test_config_files(folder, text, rng, by_bytes):
    path = Path("my.yaml")
    path.write_bytes(damaged(text.encode(), rng) if by_bytes else mutated_lines(text, rng).encode())
    survives(lambda: config.load(path, [], LORA))


@given(st.lists(st.from_regex(r"[~+]?[a-c.\[\]0-9]{0,6}=?([\[{'\"$]?.{0,9})", fullmatch=True) | st.text(), max_size=4))
@fuzz(400)
def test_overrides(words):
    document = Document("my.yaml", {"a": 1, "b": {"c": [1, {"a": None}]}, "c": None}, {})
    survives(lambda: apply(document, words))


CHAT = {
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "input": "x",
    "output": "y",
}
TOKENIZER = SentencePieceTokenizer(str(BASE / "tokenizer.model"), max_seq_len=12)


@given(RANDOM, st.lists(VALUES, min_size=1, max_size=3), st.sampled_from(["error", "skip"]), st.booleans())
@fuzz(250)
def test_data_files(folder, rng, values, on_bad_sample, by_bytes):
    rows = [json.dumps(changed(CHAT, rng, value)) for value in values] + [json.dumps(CHAT)]
    data = rng.choice(["\n", "\r\n", ",\n", "\n\n"]).join(rows).encode()
    data = rng.choice([data, b"[" + data + b"]"])
    Path("rows.json").write_bytes(damaged(data, rng) if by_bytes else data)
    common = {"source": "rows.json", "on_bad_sample": on_bad_sample}
    survives(lambda: instruct_dataset(TOKENIZER, **common))
    survives(lambda: chat_dataset(TOKENIZER, conversation_column="messages", conversation_style="openai", **common))


MANIFEST_OF = {"format": 1, "run_id": "ab", "step": 3, "files": {"config.json": {"size": 2, "sha256": "ab"}}}


@given(RANDOM, VALUES, st.sampled_from(["bytes", "values", "values with their hash"]))
@fuzz(250)
def test_manifests(folder, rng, value, how):
    Path("config.json").write_text("{}")
    content = MANIFEST_OF if how == "bytes" else changed(MANIFEST_OF, rng, value)
    if how != "values" and isinstance(content, dict):
        content = seal(content)
    data = json.dumps(content).encode()
    Path(MANIFEST).write_bytes(damaged(data, rng) if how == "bytes" else data)
    survives(lambda: read_manifest("."))
    survives(lambda: verify("."))


HEADER = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
}


@given(RANDOM, VALUES, st.booleans(), st.none() | st.integers(0, 2**64 - 1))
@fuzz(250)
def test_safetensors_headers(folder, rng, value, by_bytes, length):
    header = json.dumps(HEADER if by_bytes else changed(HEADER, rng, value)).encode()
    data = (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(10)
    Path("m.safetensors").write_bytes(damaged(data, rng) if by_bytes else data)
    survives(lambda: [weight.read() for weight in read_safetensors(Path("m.safetensors")).values()])


INDEX = {"metadata": {"total_size": 3}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@given(RANDOM, VALUES | st.sampled_from(["../a", "x" * 300, "a\0b", "\ud800"]), st.booleans())
@fuzz(200)
def test_indices_and_model_configs(folder, rng, value, by_bytes):
    for name, content in (("model.safetensors.index.json", INDEX), ("config.json", MODEL)):
        data = json.dumps(content if by_bytes else changed(content, rng, value)).encode()
        Path(name).write_bytes(damaged(data, rng) if by_bytes else data)
    survives(lambda: hf_weight_files(Path()))
    Path("model.safetensors.index.json").unlink()
    Path("model.safetensors").touch()
    survives(lambda: FullModelHFCheckpointer("."))
    Path("model.safetensors").unlink()


MODEL = json.loads((BASE / "config.json").read_text())
