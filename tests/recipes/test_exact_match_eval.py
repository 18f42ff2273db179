"""The exact-match recipe against transformers' greedy answers."""

import json
from pathlib import Path

import torch
import transformers

from tests.recipes.conftest import Tiny
from torchtune_lite.models.llama2 import llama2_tokenizer


def greedy_answers(tiny: Tiny, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Continues each prompt by itself with transformers."""
    tokenizer = llama2_tokenizer(str(tiny.checkpoint / "tokenizer.model"), prompt_template=None)
    model = transformers.LlamaForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    answers = []
    for prompt in prompts:
        tokens = torch.tensor([tokenizer.encode(prompt, add_eos=False)])
        out = model.generate(tokens, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0)
        new = out[0, tokens.shape[1] :].tolist()
        answers.append(tokenizer.decode(new[: new.index(2)] if 2 in new else new).strip())
    return answers


def arguments(tiny: Tiny, rows: Path, out: Path) -> list[str]:
    return [
        "--config",
        "demo/address_eval",
        f"checkpointer.checkpoint_dir={tiny.checkpoint}",
        "tokenizer.prompt_template=null",
        f"source={rows}",
        "column_map.input=question",
        "column_map.output=right",
        f"output_dir={out}",
        "max_new_tokens=8",
        "batch_size=3",
        "device=cpu",
    ]


def write_rows(path: Path, questions: list[str], answers: list[str]) -> None:
    rows = [{"question": q, "right": a} for q, a in zip(questions, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_it_counts_the_answers_that_are_exactly_right(tiny, tune, tmp_path):
    questions = [json.loads(line)["input"] for line in tiny.train.read_text().splitlines()][:8]
    answers = greedy_answers(tiny, questions, max_new_tokens=8)
    expected = [answer if i not in (1, 6) else answer + " not" for i, answer in enumerate(answers)]
    write_rows(tmp_path / "rows.jsonl", questions, expected)
    result = tune("run", "exact_match_eval", *arguments(tiny, tmp_path / "rows.jsonl", tmp_path / "out"))
    assert "exact match 75.0% (6 of 8 rows" in result.stdout
    report = json.loads((tmp_path / "out" / "exact_match.json").read_text())
    assert report["exact_match"] == 0.75
    assert [row["answer"] for row in report["results"]] == answers
    assert [row["match"] for row in report["results"]] == [i not in (1, 6) for i in range(8)]


def test_a_column_that_is_missing_is_one_line(tiny, tune, tmp_path):
    write_rows(tmp_path / "rows.jsonl", ["a"], ["b"])
    args = arguments(tiny, tmp_path / "rows.jsonl", tmp_path / "out") + ["column_map.output=wrong"]
    result = tune("run", "exact_match_eval", *args, check=False)
    assert result.returncode != 0
    assert "wrong" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "exact_match.json").exists()
