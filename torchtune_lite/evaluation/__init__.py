"""Scores of a model: tasks of lm-evaluation-harness, perplexity, answers that are right."""

from torchtune_lite.evaluation.continuations import Continuation, Score, score_all, score_row
from torchtune_lite.evaluation.documents import Documents
from torchtune_lite.evaluation.harness import check_version, find_tasks, run_harness, score_tables
from torchtune_lite.evaluation.harness_model import as_harness_model
from torchtune_lite.evaluation.perplexity import perplexity
from torchtune_lite.evaluation.result_file import ResultFile
from torchtune_lite.evaluation.texts import generate_texts

__all__ = [
    "Continuation",
    "Documents",
    "ResultFile",
    "Score",
    "as_harness_model",
    "check_version",
    "find_tasks",
    "generate_texts",
    "perplexity",
    "run_harness",
    "score_all",
    "score_row",
    "score_tables",
]
