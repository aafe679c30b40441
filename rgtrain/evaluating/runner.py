"""One evaluation from its configuration to judged answers."""

import functools
import time
from collections.abc import Sequence
from pathlib import Path

from rgtrain.evaluating.config import EvaluationConfig
from rgtrain.evaluating.engine import Engine, Sampling, VllmEngine
from rgtrain.evaluating.measures import JudgedAnswer
from rgtrain.evaluating.prompts import PromptedProblem, prompt_problems
from rgtrain.evaluating.results import ResultsFolder
from rgtrain.evaluating.summary import summary_table
from rgtrain.problems.answers import extract_answer
from rgtrain.problems.scoring import Scorer
from rgtrain.vllm_settings import attention_backend


def evaluate(config: EvaluationConfig, *, command: Sequence[str]) -> Path:
    """Run the whole evaluation, telling what it does on stdout; the folder with its results.

    Everything that can be wrong with the configuration raises ConfigError before the model is loaded.
    """
    say = functools.partial(print, flush=True)
    say(f"{config.name}: {_plan(config)}")
    attention_backend()
    prompted, num_tokens = prompt_problems(config)
    folder = ResultsFolder(config)
    folder.prepare()
    started = time.perf_counter()
    say(f"starting vLLM with {config.model_path}")
    engine = VllmEngine(config.model_path, dtype=config.dtype, max_model_len=num_tokens, seed=config.seed)
    ready = time.perf_counter()
    answers = answer_all(prompted, engine, config)
    seconds = {"engine_start": ready - started, "answering": time.perf_counter() - ready}
    summary = folder.write(answers, command=command, seconds=seconds)
    say(f"\n{summary_table(summary)}\n\nresults: {folder.path}")
    return folder.path


def answer_all(prompted: Sequence[PromptedProblem], engine: Engine, config: EvaluationConfig) -> list[JudgedAnswer]:
    """Every problem answered in one submission to `engine` and judged, in the problems' order."""
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p, config.num_samples)
    completions = engine.generate([item.token_ids for item in prompted], sampling)
    answered = [
        (item, repeat, completion, extract_answer(completion.text))
        for item, repeats in zip(prompted, completions, strict=True)
        for repeat, completion in enumerate(repeats)
    ]
    with Scorer(**config.scorer) as scorer:
        scores = scorer.score_many((answer, item.problem.entry) for item, _, _, answer in answered)
    return [
        JudgedAnswer(item.dataset, item.problem, repeat, completion, answer, score)
        for (item, repeat, completion, answer), score in zip(answered, scores, strict=True)
    ]


def _plan(config: EvaluationConfig) -> str:
    num_problems = sum(dataset.size for dataset in config.datasets)
    plan = f"{num_problems} problems in {len(config.datasets)} datasets, answers a problem: {config.num_samples}"
    if config.num_samples < config.eval_repeats:
        plan += f" (not eval_repeats = {config.eval_repeats}: at temperature 0 all repeats would be the same)"
    return plan
