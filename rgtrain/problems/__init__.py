"""Problems, prompts, answers, scores and rewards. Pure Python: importing it loads no torch, verl, vllm or ray."""

from rgtrain.problems.answers import extract_answer
from rgtrain.problems.entries import dump_entry, fingerprint, load_entry
from rgtrain.problems.group_rewards import CompletionReward, FinishedCompletion, GroupRewards
from rgtrain.problems.heldout import HeldOut, TrainingProblems
from rgtrain.problems.mixture import DatasetSpec, Mixture, Problem, build_mixture, parse_mixture
from rgtrain.problems.prompt_rendering import PromptRenderer
from rgtrain.problems.prompts import PromptStyle, build_messages
from rgtrain.problems.question_file import QuestionFile
from rgtrain.problems.rewards import RewardSpec, combine, parse_reward
from rgtrain.problems.scoring import Score, Scorer
from rgtrain.problems.verifiers_tasks import VerifiersTasks

__all__ = [
    "CompletionReward",
    "DatasetSpec",
    "FinishedCompletion",
    "GroupRewards",
    "HeldOut",
    "Mixture",
    "Problem",
    "PromptRenderer",
    "PromptStyle",
    "QuestionFile",
    "RewardSpec",
    "Score",
    "Scorer",
    "TrainingProblems",
    "VerifiersTasks",
    "build_messages",
    "build_mixture",
    "combine",
    "dump_entry",
    "extract_answer",
    "fingerprint",
    "load_entry",
    "parse_mixture",
    "parse_reward",
]
