"""Scores of a model: tasks of lm-evaluation-harness, perplexity, answers that are right."""

from torchtune_lite.evaluation.continuations import Continuation, Score, score_all, score_row
from torchtune_lite.evaluation.documents import Documents
from torchtune_lite.evaluation.extraction import EXTRACTIONS
from torchtune_lite.evaluation.harness import check_version, find_tasks, run_harness, score_tables
from torchtune_lite.evaluation.harness_model import as_harness_model
from torchtune_lite.evaluation.questions import (
    Question,
    Scoring,
    answer_questions,
    read_questions,
    summary,
    warn_of_problems,
)
from torchtune_lite.evaluation.samples import SampleQuestions
from torchtune_lite.evaluation.sliding_windows import perplexity
from torchtune_lite.evaluation.texts import generate_texts
from torchtune_lite.utils.result_file import ResultFile

__all__ = [
    "EXTRACTIONS",
    "Continuation",
    "Documents",
    "Question",
    "ResultFile",
    "Score",
    "SampleQuestions",
    "Scoring",
    "answer_questions",
    "as_harness_model",
    "check_version",
    "find_tasks",
    "generate_texts",
    "perplexity",
    "read_questions",
    "run_harness",
    "score_all",
    "score_row",
    "score_tables",
    "summary",
    "warn_of_problems",
]
