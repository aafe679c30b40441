"""Judge untrusted answers in confined processes."""

from rgtrain.problems.scoring.execution import EXECUTING
from rgtrain.problems.scoring.score import FAILURES, Score
from rgtrain.problems.scoring.scorer import MAX_ANSWER_CHARS, Scorer, check_confinement, parse_scorer

__all__ = ["EXECUTING", "FAILURES", "MAX_ANSWER_CHARS", "Score", "Scorer", "check_confinement", "parse_scorer"]
