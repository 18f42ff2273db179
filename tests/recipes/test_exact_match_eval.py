"""The exact-match recipe against transformers' greedy answers."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torchtune_lite.models.llama2 import llama2_tokenizer

from tests.recipes.conftest import Tiny
from torchtune_lite.cli.main import main
from torchtune_lite.generation import AnswerFile


def greedy_answers(tiny: Tiny, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Continue each prompt by itself with transformers."""
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


def test_rows_that_cannot_be_answered_are_wrong_and_named_and_the_others_are_scored(tiny, tune, tmp_path):
    questions = [json.loads(line)["input"] for line in tiny.train.read_text().splitlines()][:3]
    answers = greedy_answers(tiny, questions, max_new_tokens=8)
    questions, answers = ["red " * 200, *questions, "red"], ["x", *answers, None]
    write_rows(tmp_path / "rows.jsonl", questions, answers)
    result = tune("run", "exact_match_eval", *arguments(tiny, tmp_path / "rows.jsonl", tmp_path / "out"))
    assert "exact match 60.0% (3 of 5 rows" in result.stdout
    report = json.loads((tmp_path / "out" / "exact_match.json").read_text())
    assert [row["match"] for row in report["results"]] == [False, True, True, True, False]
    problems = [row.get("problem", "") for row in report["results"]]
    assert "rows.jsonl:1: a prompt of" in problems[0] and "rows.jsonl:5: column 'right'" in problems[4]
    assert problems[1:4] == [""] * 3
    assert all(f"{problem}; it counts as wrong" in result.stderr for problem in (problems[0], problems[4]))


def test_a_prompt_that_the_tokenizer_would_cut_is_wrong_too(tiny, tune, tmp_path):
    write_rows(tmp_path / "rows.jsonl", ["red " * 20, "red"], ["x", "y"])
    args = [*arguments(tiny, tmp_path / "rows.jsonl", tmp_path / "out"), "tokenizer.max_seq_len=16"]
    result = tune("run", "exact_match_eval", *args)
    assert (
        "rows.jsonl:1: prompt is longer than tokenizer.max_seq_len=16; raise it or set null; it counts as wrong"
        in result.stderr
    )


def test_what_no_row_survives_or_no_file_takes_is_known_before_any_weight_is_read(tiny, tune, tmp_path):
    write_rows(tmp_path / "rows.jsonl", ["red " * 200] * 9, ["x"] * 9)
    shutil.copytree(tiny.checkpoint, tmp_path / "base")
    (tmp_path / "base/model.safetensors").write_bytes(b"no weights")
    args = [*arguments(tiny, tmp_path / "rows.jsonl", tmp_path / "out"), "checkpointer.checkpoint_dir=base"]
    for word, code, problem in (
        ("num_examples=1", 3, "none of 9 rows can be answered"),
        ("output_dir=rows.jsonl/out", 2, "output_dir rows.jsonl/out cannot be used"),
    ):
        result = tune("run", "exact_match_eval", *args, word, check=False)
        assert (result.returncode, result.stderr.count("\n")) == (code, 1)
        assert problem in result.stderr


def test_an_evaluation_that_is_killed_goes_on_with_the_rows_that_are_left(tiny, tune, tmp_path, monkeypatch):
    """Killed by its loss of the disk; then the whole file is asked, and the same answers come out as without a kill."""
    questions = [json.loads(line)["input"] for line in tiny.train.read_text().splitlines()][:8]
    write_rows(tmp_path / "rows.jsonl", questions, ["x"] * 8)
    whole = [*arguments(tiny, tmp_path / "rows.jsonl", tmp_path / "whole"), "batch_size=1"]
    tune("run", "exact_match_eval", *whole)
    expected = json.loads((tmp_path / "whole/exact_match.json").read_text())["results"]
    assert [row["prompt"] for row in expected] == questions

    words = [*arguments(tiny, tmp_path / "rows.jsonl", tmp_path / "out"), "batch_size=1"]
    monkeypatch.setattr(sys, "argv", ["tune", "run", "exact_match_eval", *words])
    write, written = AnswerFile.write, []

    def killed(*args):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(args)
        write(*args)

    monkeypatch.setattr(AnswerFile, "write", killed)
    with pytest.raises(SystemExit):
        main()
    written[0][0].close()  # as the end of its process would
    assert not (tmp_path / "out/exact_match.json").exists()
    result = tune("run", "exact_match_eval", *words)
    assert "3 of 8 rows were answered before, and are kept" in result.stderr
    assert json.loads((tmp_path / "out/exact_match.json").read_text())["results"] == expected
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["exact_match.json"]


def test_numbers_and_fields_of_json_are_compared_by_their_value(tiny, tune, tmp_path):
    [question, *_] = [json.loads(line)["input"] for line in tiny.train.read_text().splitlines()]
    [answer] = greedy_answers(tiny, [question], max_new_tokens=8)
    write_rows(tmp_path / "rows.jsonl", [question, question], [f"{answer} or so", "else"])
    args = arguments(tiny, tmp_path / "rows.jsonl", tmp_path / "out")
    word = answer.split()[0]
    result = tune("run", "exact_match_eval", *args, "extract=regex", f"extract_regex='({word})'", "metrics=[contains]")
    assert "exact match 50.0% (1 of 2 rows" in result.stdout and "\ncontains 0.5000\n" in result.stdout
    result = tune("run", "exact_match_eval", *args, "extract=json", check=False)
    assert result.returncode == 3 and "none of 2 rows can be answered: " in result.stderr
    result = tune("run", "exact_match_eval", *args, "metrics=[f2]", check=False)
    assert result.returncode == 2 and "metrics: 'f2' is not one of exact_match" in result.stderr
