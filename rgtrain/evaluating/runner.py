"""One evaluation from its configuration to a complete folder of results."""

import functools
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass

from rgtrain.evaluating.answers import judged
from rgtrain.evaluating.config import EvaluationConfig
from rgtrain.evaluating.engine import Completion, Engine, Prompt, Sampling
from rgtrain.evaluating.progress import Progress
from rgtrain.evaluating.prompts import PromptedProblem
from rgtrain.evaluating.results import ResultsFolder, ResultsWriter
from rgtrain.evaluating.sources import Source, opened_source
from rgtrain.evaluating.summary import identity_of, summarise, summary_table
from rgtrain.problems.answers import extract_answer
from rgtrain.problems.scoring import Score, Scorer

_say = functools.partial(print, flush=True)


@dataclass(frozen=True)
class Gap:
    """The answers that are still wanted to one problem: `repeats` are taken from as they come."""

    prompted: PromptedProblem
    prompt: Prompt
    repeats: list[int]


def evaluate(config: EvaluationConfig, *, command: Sequence[str]) -> ResultsFolder:
    """Run the whole evaluation, or what is left of it, telling on stdout what it does; the complete folder of results.

    Everything that can be wrong with the configuration raises ConfigError before anything is generated.
    """
    _say(f"{config.name}: {_plan(config)}")
    folder = ResultsFolder(config.results_folder)
    with opened_source(config) as source, folder.writing(identity_of(config, source)) as writer:
        if folder.summary.is_file():
            _say(f"finished before: {folder.summary}")
            return folder
        seconds = answer_what_is_left(config, source, writer)
        summary = summarise(config, source, writer.answers, command=command, seconds=seconds)
        writer.finish(summary)
    _say(f"\n{summary_table(summary)}\n\nresults: {folder.path}")
    return folder


def find_gaps(source: Source, writer: ResultsWriter, *, num_samples: int) -> list[Gap]:
    """What is still wanted of each problem that lacks answers."""
    there = {answer.key for answer in writer.answers}
    gaps = []
    for item, token_ids in zip(source.prompted, source.token_ids, strict=True):
        repeats = [repeat for repeat in range(num_samples) if (item.number, repeat) not in there]
        if repeats:
            label = f"dataset {item.dataset.name!r} of category {item.dataset.category!r}"
            gaps.append(Gap(item, Prompt(item.messages, token_ids, len(repeats), label), repeats))
    return gaps


def answer_all(
    gaps: Sequence[Gap], engine: Engine, scorer: Scorer, *, config: EvaluationConfig
) -> Iterator[tuple[Gap, Completion, str | None, Score]]:
    """Every wanted completion with its extracted answer and score, in the order in which they are judged.

    Answers are judged in other processes while others are still generated.
    """
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    judged_now: queue.SimpleQueue[tuple[Gap, Completion, str | None, Future[Score]]] = queue.SimpleQueue()
    num_waiting = 0
    for position, completion in engine.generate([gap.prompt for gap in gaps], sampling):
        answer = extract_answer(completion.text)
        gap = gaps[position]
        scored = scorer.submit(answer, gap.prompted.problem.entry)
        scored.add_done_callback(functools.partial(_put, judged_now, gap, completion, answer))
        num_waiting += 1
        while not judged_now.empty():
            num_waiting -= 1
            yield _take(judged_now)
    for _ in range(num_waiting):
        yield _take(judged_now)


def _put(judged_now: queue.SimpleQueue, gap: Gap, completion: Completion, answer: str | None, scored: Future) -> None:
    judged_now.put((gap, completion, answer, scored))


def _take(judged_now: queue.SimpleQueue) -> tuple[Gap, Completion, str | None, Score]:
    gap, completion, answer, scored = judged_now.get()
    return gap, completion, answer, scored.result()


def answer_what_is_left(config: EvaluationConfig, source: Source, writer: ResultsWriter) -> dict[str, float]:
    """Answer every problem that lacks answers; the seconds that starting and answering took."""
    gaps = find_gaps(source, writer, num_samples=config.num_samples)
    if not gaps:
        return {}
    done = len(writer.answers)
    if done:
        _say(f"continuing: {done} answers are there")
    _say(f"starting {config.model_path}")
    started = time.perf_counter()
    # Another seed when continuing: missing answers must not repeat random numbers of those that are there. Copies of
    # the model count on from it.
    seed = config.seed + done * config.num_copies
    with Scorer(**config.scorer) as scorer, closing(source.start(seed)) as engine:
        ready = time.perf_counter()
        with Progress(total=len(source.prompted) * config.num_samples, done=done) as progress:
            for gap, completion, answer, score in answer_all(gaps, engine, scorer, config=config):
                writer.add(
                    judged(
                        gap.prompted,
                        repeat=gap.repeats.pop(0),
                        completion=completion,
                        answer=answer,
                        score=score,
                        with_text=config.save_full_results,
                        with_entry=config.save_metadata,
                    )
                )
                progress.add(num_tokens=completion.num_tokens)
        return {"engine_start": ready - started, "answering": time.perf_counter() - ready}


def _plan(config: EvaluationConfig) -> str:
    num_problems = sum(dataset.size for dataset in config.datasets)
    plan = f"{num_problems} problems in {len(config.datasets)} datasets, answers a problem: {config.num_samples}"
    if config.num_samples < config.eval_repeats:
        plan += f" (not eval_repeats = {config.eval_repeats}: at temperature 0 all repeats would be the same)"
    return plan
