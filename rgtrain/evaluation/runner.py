"""One evaluation from its configuration to a complete folder of results."""

import functools
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass

from rgtrain.errors import ConfigError
from rgtrain.evaluation.engine_interface import Completion, Engine, Prompt, Sampling
from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.evaluation_plan import EvaluationPlan, opened_plan
from rgtrain.evaluation.evaluation_progress import ACTIVITY, EvaluationProgress, say
from rgtrain.evaluation.evaluation_prompts import PromptedProblem
from rgtrain.evaluation.evaluation_stopping import STOP
from rgtrain.evaluation.judged_answers import judged
from rgtrain.evaluation.results import ResultsFolder, ResultsWriter
from rgtrain.evaluation.summary import identity_of, summarise, summary_table
from rgtrain.jobs.watchdog import watched
from rgtrain.problems.answers import extract_answer
from rgtrain.problems.scoring import Score, Scorer
from rgtrain.provenance import mask_secrets

# A standstill is reported and not ended: an endpoint may be busy with others.
_REPORT_AFTER_S = 600.0


@dataclass(frozen=True)
class PendingProblem:
    """The answers that are still wanted to one problem: `repeats` are their numbers."""

    prompted: PromptedProblem
    prompt: Prompt
    repeats: tuple[int, ...]


@dataclass(frozen=True)
class ReceivedAnswer:
    """One completion with the answer in it; `answer` is None if there is none."""

    prompted: PromptedProblem
    repeat: int
    completion: Completion
    answer: str | None


@dataclass
class Tally:
    """Answers of an evaluation: wanted in all, received by this process, and kept in results.jsonl by any."""

    num_wanted: int
    num_kept: int
    num_received: int = 0
    num_kept_now: int = 0

    def __str__(self) -> str:
        text = f"{self.num_kept} of {self.num_wanted} answers are kept"
        if self.num_received > self.num_kept_now:
            text += f", {self.num_received - self.num_kept_now} that were received are not"
        return f"{text}; the same command continues"


def evaluate(config: EvaluationConfig, *, command: Sequence[str]) -> ResultsFolder:
    """Run an evaluation, or what is left of it, and say on stdout how it goes.

    Args:
        config: The evaluation.
        command: The command line, for the summary.

    Returns:
        The complete folder of results.

    Raises:
        ConfigError: The configuration cannot be used, or the folder is damaged. Nothing has been generated.
        EndpointFailed: The endpoint gave up. Answers that were received are kept.
        EvaluationStopped: The evaluation was asked to stop, with the same promise.
        ResultsNotWritten: The disk takes no more answers; `STOP.outlook` counts those that are not kept.
    """
    say(f"{config.name}: {_plan(config)}")
    folder = ResultsFolder(config.results_folder)
    with (
        watched(
            ACTIVITY,
            report_after_s=_REPORT_AFTER_S,
            end_after_s=None,
            end=lambda *_: None,
            announce=lambda line: say(f"\n{line}"),
            traces_in="this command's error output",
        ),
        opened_plan(config) as plan,
        folder.writing(identity_of(config, plan)) as writer,
    ):
        if folder.summary.is_file():
            say(f"finished before: {folder.summary}")
            return folder
        _check_belongs(folder, plan, writer, num_samples=config.num_samples)
        seconds = answer_what_is_left(config, plan, writer)
        summary = summarise(config, plan, writer.answers, command=command, seconds=seconds)
        writer.finish(summary)
    say(f"\n{summary_table(summary)}\n\nresults: {folder.path}")
    return folder


def _check_belongs(folder: ResultsFolder, plan: EvaluationPlan, writer: ResultsWriter, *, num_samples: int) -> None:
    """Raise ConfigError if an answer in the folder belongs to no problem of this evaluation."""
    wanted = [item.problem.fingerprint for item in plan.prompted]
    for number, answer in enumerate(writer.answers, start=1):
        is_there = answer.problem < len(wanted) and answer.repeat < num_samples
        if not is_there or wanted[answer.problem] != answer.fingerprint:
            raise ConfigError(
                f"{folder.results} is damaged in line {number}: its answer {answer.repeat} to problem {answer.problem} "
                "is none of this evaluation's; remove that line, and the same command asks for this answer again"
            )


def find_pending(plan: EvaluationPlan, writer: ResultsWriter, *, num_samples: int) -> list[PendingProblem]:
    """The problems that lack answers."""
    there = {answer.key for answer in writer.answers}
    pending = []
    for item, token_ids in zip(plan.prompted, plan.token_ids, strict=True):
        repeats = tuple(repeat for repeat in range(num_samples) if (item.number, repeat) not in there)
        if repeats:
            label = f"dataset {item.dataset.name!r} of category {item.dataset.category!r}"
            pending.append(PendingProblem(item, Prompt(item.messages, token_ids, len(repeats), label), repeats))
    return pending


def answer_all(
    pending: Sequence[PendingProblem], engine: Engine, scorer: Scorer, *, sampling: Sampling, tally: Tally
) -> Iterator[tuple[ReceivedAnswer, Score]]:
    """Every wanted answer with its score, in the order in which they are judged.

    Answers are judged in other processes while others are still generated. If the engine fails or is stopped, those
    that it has given are judged and yielded before its error is raised.
    """
    judged_now: queue.SimpleQueue[tuple[ReceivedAnswer, Future[Score]]] = queue.SimpleQueue()
    # The numbers of each problem's answers that have not come yet.
    wanted = [iter(problem.repeats) for problem in pending]
    num_waiting = 0
    failure: Exception | None = None
    completions = engine.generate([problem.prompt for problem in pending], sampling)
    while True:
        try:
            position, completion = next(completions)
        except StopIteration:
            break
        except Exception as error:  # raised below, after the answers that have come are kept
            failure = error
            break
        prompted = pending[position].prompted
        received = ReceivedAnswer(prompted, next(wanted[position]), completion, extract_answer(completion.text))
        tally.num_received += 1
        scored = scorer.submit(received.answer, prompted.problem.entry)
        scored.add_done_callback(functools.partial(_put, judged_now, received))
        num_waiting += 1
        while not judged_now.empty():
            num_waiting -= 1
            yield _take(judged_now)
    for _ in range(num_waiting):
        yield _take(judged_now)
    # A signal may have ended a part of the engine before this process heard of it.
    STOP.check()
    if failure is not None:
        raise failure


def _put(
    judged_now: "queue.SimpleQueue[tuple[ReceivedAnswer, Future[Score]]]",
    received: ReceivedAnswer,
    scored: "Future[Score]",
) -> None:
    judged_now.put((received, scored))


def _take(judged_now: "queue.SimpleQueue[tuple[ReceivedAnswer, Future[Score]]]") -> tuple[ReceivedAnswer, Score]:
    received, scored = judged_now.get()
    return received, scored.result()


def answer_what_is_left(config: EvaluationConfig, plan: EvaluationPlan, writer: ResultsWriter) -> dict[str, float]:
    """Answer every problem that lacks answers; the seconds that starting and answering took."""
    pending = find_pending(plan, writer, num_samples=config.num_samples)
    if not pending:
        return {}
    done = len(writer.answers)
    tally = Tally(num_wanted=len(plan.prompted) * config.num_samples, num_kept=done)
    STOP.outlook = tally.__str__
    if done:
        say(f"continuing: {done} answers are there")
    say(f"starting {mask_secrets(config.model_path)}")
    started = time.perf_counter()
    # Another seed when continuing: missing answers must not repeat random numbers of those that are there. Copies of
    # the model count on from it.
    seed = config.seed + done * config.num_copies
    with (
        Scorer(**config.scorer) as scorer,
        ACTIVITY.within("starting the model"),
        closing(plan.start(seed)) as engine,
    ):
        ready = time.perf_counter()
        with (
            STOP.answering(),
            ACTIVITY.within("answering"),
            EvaluationProgress(total=tally.num_wanted, done=done) as progress,
        ):
            for received, score in answer_all(pending, engine, scorer, sampling=config.sampling, tally=tally):
                writer.add(
                    judged(
                        received.prompted,
                        repeat=received.repeat,
                        completion=received.completion,
                        answer=received.answer,
                        score=score,
                        with_text=config.save_full_results,
                        with_entry=config.save_metadata,
                    )
                )
                tally.num_kept += 1
                tally.num_kept_now += 1
                progress.add(num_tokens=received.completion.num_tokens)
        return {"engine_start": ready - started, "answering": time.perf_counter() - ready}


def _plan(config: EvaluationConfig) -> str:
    num_problems = sum(dataset.size for dataset in config.datasets)
    plan = f"{num_problems} problems in {len(config.datasets)} datasets, answers a problem: {config.num_samples}"
    if config.num_samples < config.eval_repeats:
        plan += f" (not eval_repeats = {config.eval_repeats}: at temperature 0 all repeats would be the same)"
    return plan
