"""Run an evaluation, from its configuration to a complete results folder."""

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

# A stalled evaluation is reported but not ended, because an endpoint may be busy with other clients.
_REPORT_AFTER_S = 600.0


@dataclass(frozen=True)
class PendingProblem:
    """A problem that lacks answers.

    Attributes:
        prompted: The problem with its chat messages.
        prompt: The prompt for the engine, which asks for as many completions as there are repeats.
        repeats: The numbers of the missing answers, each from 0.
    """

    prompted: PromptedProblem
    prompt: Prompt
    repeats: tuple[int, ...]


@dataclass(frozen=True)
class ReceivedAnswer:
    """A completion that is not judged yet.

    Attributes:
        prompted: The problem.
        repeat: The number of this answer among the answers to the problem, from 0.
        completion: The completion.
        answer: The answer extracted from the completion; None if there is none, or if the request was refused.
    """

    prompted: PromptedProblem
    repeat: int
    completion: Completion
    answer: str | None


@dataclass
class Tally:
    """Counts of an evaluation's answers.

    Attributes:
        num_wanted: Answers of the complete evaluation.
        num_kept: Answers in results.jsonl, including those of earlier processes.
        num_received: Answers that this process has received.
        num_kept_now: Answers that this process has written to results.jsonl.
    """

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
    """Run an evaluation or continue it, and report its progress on stdout.

    Args:
        config: The evaluation.
        command: The command line, for the summary.

    Returns:
        The complete results folder.

    Raises:
        ConfigError: The configuration cannot be used, or the folder is damaged. Nothing has been generated.
        EngineFailed: The engine can't generate more completions. Received answers are kept.
        EvaluationStopped: The evaluation was asked to stop. Received answers are kept.
        ResultsNotWritten: The disk is full or broken. `STOP.outlook` counts the answers that are not kept.
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
        say(_training_overlap(plan))
        if folder.summary.is_file():
            say(f"already finished: {folder.summary}")
            return folder
        _check_belongs(folder, plan, writer, num_samples=config.num_samples)
        seconds = answer_pending(config, plan, writer)
        summary = summarise(config, plan, writer.answers, command=command, seconds=seconds)
        writer.finish(summary)
    say(f"\n{summary_table(summary)}\n\nresults: {folder.path}")
    return folder


def _training_overlap(plan: EvaluationPlan) -> str:
    """Return a sentence with the number of problems that the model was trained on."""
    if plan.num_trained is None:
        return "problems seen in training: unknown, because the model has no record of them (trained_problems.txt)"
    return f"problems seen in training: {plan.num_trained} of {len(plan.prompted)}"


def _check_belongs(folder: ResultsFolder, plan: EvaluationPlan, writer: ResultsWriter, *, num_samples: int) -> None:
    """Raise ConfigError if an answer in the folder belongs to no problem of this evaluation."""
    wanted = [item.problem.fingerprint for item in plan.prompted]
    for number, answer in enumerate(writer.answers, start=1):
        is_there = answer.problem < len(wanted) and answer.repeat < num_samples
        if not is_there or wanted[answer.problem] != answer.fingerprint:
            raise ConfigError(
                f"{folder.results} is damaged in line {number} (answer {answer.repeat} to problem {answer.problem} "
                "does not belong to this evaluation); remove that line, and the same command asks for this answer again"
            )


def find_pending(plan: EvaluationPlan, writer: ResultsWriter, *, num_samples: int) -> list[PendingProblem]:
    """Return the problems that lack answers.

    Args:
        plan: All problems of the evaluation.
        writer: The writer with the answers that are there.
        num_samples: The number of answers wanted for each problem.

    Returns:
        The problems in the order of the evaluation.
    """
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
    """Generate and judge all missing answers.

    Answers are judged in other processes while the engine generates more. If the engine fails or is stopped, the
    answers that it has given are judged and yielded before its error is raised.

    Args:
        pending: The problems that lack answers.
        engine: The engine that generates completions.
        scorer: The scorer that judges the answers.
        sampling: The sampling parameters.
        tally: The counts of answers. Its `num_received` is updated.

    Yields:
        An answer and its score, in the order in which answers are judged.

    Raises:
        EngineFailed: The engine can't generate more completions.
        EvaluationStopped: The evaluation was asked to stop.
    """
    judged_now: queue.SimpleQueue[tuple[ReceivedAnswer, Future[Score]]] = queue.SimpleQueue()
    # For each problem, the numbers of the answers that have not arrived yet.
    wanted = [iter(problem.repeats) for problem in pending]
    num_waiting = 0
    failure: Exception | None = None
    completions = engine.generate([problem.prompt for problem in pending], sampling)
    while True:
        try:
            position, completion = next(completions)
        except StopIteration:
            break
        except Exception as error:  # raised below, after the received answers are yielded
            failure = error
            break
        prompted = pending[position].prompted
        answer = None if completion.refused else extract_answer(completion.full_text)
        received = ReceivedAnswer(prompted, next(wanted[position]), completion, answer)
        tally.num_received += 1
        scored = scorer.submit(received.answer, prompted.problem.entry)
        scored.add_done_callback(functools.partial(_put, judged_now, received))
        num_waiting += 1
        while not judged_now.empty():
            num_waiting -= 1
            yield _take(judged_now)
    for _ in range(num_waiting):
        yield _take(judged_now)
    # A signal may have ended a process of the engine before it reached this process.
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


def answer_pending(config: EvaluationConfig, plan: EvaluationPlan, writer: ResultsWriter) -> dict[str, float]:
    """Start the engine, then generate, judge and write all missing answers.

    Args:
        config: The evaluation.
        plan: The problems, prompts and model.
        writer: The writer with the answers that are there.

    Returns:
        The seconds of the phases `engine_start` and `answering`; empty if no answer is missing.
    """
    pending = find_pending(plan, writer, num_samples=config.num_samples)
    if not pending:
        return {}
    done = len(writer.answers)
    tally = Tally(num_wanted=len(plan.prompted) * config.num_samples, num_kept=done)
    STOP.outlook = tally.__str__
    if done:
        say(f"continuing with {done} answers that are there already")
    say(f"starting {mask_secrets(config.model_path)}")
    started = time.perf_counter()
    # A continued evaluation needs a new seed, so that missing answers don't repeat the random numbers of earlier ones.
    # Copies of the model use consecutive seeds.
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
    plan = f"{num_problems} problems in {len(config.datasets)} datasets, answers per problem: {config.num_samples}"
    if config.num_samples < config.eval_repeats:
        plan += f" (not eval_repeats = {config.eval_repeats}: at temperature 0 all repeats would be the same)"
    return plan
