"""Run an evaluation, from its configuration to a complete results folder."""

import functools
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass

from rgtrain.evaluation.engine_interface import Completion, Engine, Prompt, Sampling
from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.evaluation_plan import EvaluationPlan, opened_plan
from rgtrain.evaluation.evaluation_progress import ACTIVITY, EvaluationProgress, say
from rgtrain.evaluation.evaluation_prompts import PromptedProblem
from rgtrain.evaluation.evaluation_stopping import STOP
from rgtrain.evaluation.judged_answers import Answer, judged
from rgtrain.evaluation.received_completions import ReceivedCompletion
from rgtrain.evaluation.results import ResultsFolder, ResultsWriter
from rgtrain.evaluation.summary import figures_of, identity_of, identity_with_limit, summarise, summary_table
from rgtrain.jobs.watchdog import watched
from rgtrain.problems.answers import judged_text
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.scoring import Score, Scorer
from rgtrain.provenance import mask_secrets

# A stalled evaluation is reported but not ended, because an endpoint may be busy with other clients.
_REPORT_AFTER_S = 600.0
# The number of damaged lines that are listed.
_MAX_LISTED = 5
# The errors of a scorer whose processes were killed from outside or can't be started.
_SCORER_ERRORS = (RuntimeError, OSError, EOFError)


@dataclass(frozen=True)
class PendingProblem:
    """A problem that lacks answers.

    Attributes:
        prompted: The problem with its chat messages.
        prompt: The prompt for the engine, which asks for as many completions as there are repeats.
        repeats: The numbers of the missing answers, each from 0.
        thinking_begun: Whether the prompt ends with an opening think tag.
    """

    prompted: PromptedProblem
    prompt: Prompt
    repeats: tuple[int, ...]
    thinking_begun: bool = False


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
        num_judged: Answers in results.jsonl, including those of earlier processes.
        num_received: Those answers, and the completions in received.jsonl that are not judged yet.
    """

    num_wanted: int
    num_judged: int
    num_received: int

    def __str__(self) -> str:
        text = f"{self.num_received} of {self.num_wanted} answers are kept"
        if self.num_received > self.num_judged:
            text += f", {self.num_received - self.num_judged} of them not judged yet"
        return f"{text}; the same command continues"


@dataclass
class RunningEvaluation:
    """An evaluation while it generates answers. Other threads may read it.

    Attributes:
        config: The evaluation.
        answers: The judged answers so far, which grow.
        tally: The counts of answers.
        num_before: The number of completions that earlier processes have received.
        answering_since: The time of `time.monotonic` at which the engine began to answer; None before.
    """

    config: EvaluationConfig
    answers: Sequence[Answer]
    tally: Tally
    num_before: int
    answering_since: float | None = None


# Shows a running evaluation to somebody in its block.
LiveView = Callable[[RunningEvaluation], AbstractContextManager[object]]


def evaluate(config: EvaluationConfig, *, command: Sequence[str], live_view: LiveView = nullcontext) -> ResultsFolder:
    """Run an evaluation or continue it, and report its progress on stdout.

    Args:
        config: The evaluation.
        command: The command line, for the summary.
        live_view: Shows the evaluation while it generates and judges answers.

    Returns:
        The complete results folder.

    Raises:
        ConfigError: The configuration cannot be used, or the folder is damaged. Nothing has been generated.
        EngineFailed: The engine can't generate more completions. Received answers are kept.
        ScorerFailed: The answers can't be judged. Received answers are kept.
        EvaluationStopped: The evaluation was asked to stop. Received answers are kept.
        ResultsNotWritten: The disk is full or broken. `STOP.outlook` counts the answers that are kept.
    """
    say(f"{config.name}: {_plan(config)}")
    for note in (*config.prompt_notes, *import_plugins(config.plugins)):
        say(note)
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
        folder.writing(
            identity_of(config, plan),
            belongs=_belongs_to(plan, config),
            with_limit=functools.partial(identity_with_limit, config, plan),
        ) as writer,
    ):
        say(_training_overlap(plan))
        _report_dropped(folder, writer)
        is_finished = folder.summary.is_file() and len(writer.answers) == _num_wanted(plan, config)
        if is_finished:
            say("already finished; no answer was generated")
        else:
            folder.summary.unlink(missing_ok=True)
            seconds = answer_pending(config, plan, writer, live_view=live_view)
            writer.finish(summarise(config, plan, writer.answers, command=command, seconds=seconds))
    say(f"\n{summary_table(figures_of(config, writer.answers))}\n\nresults: {folder.path}")
    return folder


def _num_wanted(plan: EvaluationPlan, config: EvaluationConfig) -> int:
    return len(plan.prompted) * config.num_samples


def _belongs_to(plan: EvaluationPlan, config: EvaluationConfig) -> Callable[[tuple[int, int], str], bool]:
    """Return a function that returns whether an answer with a key and fingerprint is one of this evaluation."""
    fingerprints = {item.number: item.problem.fingerprint for item in plan.prompted}

    def belongs(key: tuple[int, int], fingerprint: str) -> bool:
        problem, repeat = key
        return repeat < config.num_samples and fingerprints.get(problem) == fingerprint

    return belongs


def _report_dropped(folder: ResultsFolder, writer: ResultsWriter) -> None:
    for line in writer.dropped[:_MAX_LISTED]:
        say(f"warning: {line}")
    if len(writer.dropped) > _MAX_LISTED:
        say(f"warning: {len(writer.dropped) - _MAX_LISTED} more lines are not usable")
    if writer.dropped:
        say(f"such lines are moved to {folder.damaged}, and missing answers are asked for again")


def _training_overlap(plan: EvaluationPlan) -> str:
    """Return a sentence with the number of problems that the model was trained on."""
    if plan.num_trained is None:
        return "problems seen in training: unknown, because the model has no record of them (trained_problems.txt)"
    return f"problems seen in training: {plan.num_trained} of {len(plan.prompted)}"


def find_pending(plan: EvaluationPlan, writer: ResultsWriter, *, num_samples: int) -> list[PendingProblem]:
    """Return the problems that lack completions.

    Args:
        plan: All problems of the evaluation.
        writer: The writer with the answers and completions that are there.
        num_samples: The number of answers wanted for each problem.

    Returns:
        The problems in the order of the evaluation.
    """
    there = {answer.key for answer in writer.answers} | {completion.key for completion in writer.unjudged}
    pending = []
    for item, token_ids in zip(plan.prompted, plan.token_ids, strict=True):
        repeats = tuple(repeat for repeat in range(num_samples) if (item.number, repeat) not in there)
        if repeats:
            label = f"dataset {item.dataset.name!r} of category {item.dataset.category!r}"
            prompt = Prompt(item.messages, token_ids, len(repeats), label)
            pending.append(PendingProblem(item, prompt, repeats, plan.thinking_begun))
    return pending


class ScorerFailed(RuntimeError):
    """The answers can't be judged, because the scorer's processes were killed or the machine can't start them."""


class _Judging:
    """Judges completions in other processes, and yields the answers in the order in which they are judged."""

    def __init__(self, scorer: Scorer):
        self._scorer = scorer
        self._judged: queue.SimpleQueue[tuple[ReceivedAnswer, Future[Score]]] = queue.SimpleQueue()
        self._num_waiting = 0

    def submit(self, received: ReceivedAnswer) -> None:
        """Start judging an answer."""
        try:
            scored = self._scorer.submit(received.answer, received.prompted.problem.entry)
        except _SCORER_ERRORS as error:
            raise ScorerFailed(_scorer_failure(error)) from error
        scored.add_done_callback(lambda done: self._judged.put((received, done)))
        self._num_waiting += 1

    def finished(self) -> Iterator[tuple[ReceivedAnswer, Score]]:
        """Yield the answers that are judged, without waiting."""
        while not self._judged.empty():
            yield self._next()

    def rest(self) -> Iterator[tuple[ReceivedAnswer, Score]]:
        """Yield all other answers, as soon as they are judged."""
        while self._num_waiting:
            yield self._next()

    def _next(self) -> tuple[ReceivedAnswer, Score]:
        received, scored = self._judged.get()
        self._num_waiting -= 1
        try:
            return received, scored.result()
        except _SCORER_ERRORS as error:
            raise ScorerFailed(_scorer_failure(error)) from error


def _scorer_failure(error: Exception) -> str:
    # Once the scorer has ended, it refuses answers with the error that ended it as the cause.
    cause = error.__cause__ or error
    return f"answers can't be judged, because the scorer ended ({type(cause).__name__}: {cause})"


def answer_all(
    pending: Sequence[PendingProblem],
    engine: Engine,
    scorer: Scorer,
    writer: ResultsWriter,
    *,
    sampling: Sampling,
    tally: Tally,
) -> Iterator[tuple[ReceivedAnswer, Score]]:
    """Generate and judge all missing answers.

    Each completion is written to `writer` as soon as it is received. Answers are judged in other processes while the
    engine generates more. If the engine fails or is stopped, the answers that it has given are judged and yielded
    before its error is raised.

    Args:
        pending: The problems that lack completions.
        engine: The engine that generates completions.
        scorer: The scorer that judges the answers.
        writer: The writer of the results folder.
        sampling: The sampling parameters.
        tally: The counts of answers. Received completions are added to them.

    Yields:
        An answer and its score, in the order in which answers are judged.

    Raises:
        EngineFailed: The engine can't generate more completions.
        ScorerFailed: The answers can't be judged.
        EvaluationStopped: The evaluation was asked to stop.
        ResultsNotWritten: The disk is full or broken.
    """
    judging = _Judging(scorer)
    # For each problem, the numbers of the answers that have not arrived yet.
    wanted = [iter(problem.repeats) for problem in pending]
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
        asked = pending[position]
        received = _received(asked.prompted, next(wanted[position]), completion, thinking_begun=asked.thinking_begun)
        fingerprint = received.prompted.problem.fingerprint
        writer.receive(ReceivedCompletion(received.prompted.number, received.repeat, fingerprint, completion))
        tally.num_received += 1
        judging.submit(received)
        yield from judging.finished()
    yield from judging.rest()
    # A signal may have ended a process of the engine before it reached this process.
    STOP.check()
    if failure is not None:
        raise failure


def _received(
    prompted: PromptedProblem, repeat: int, completion: Completion, *, thinking_begun: bool
) -> ReceivedAnswer:
    entry = prompted.problem.entry
    answer = None if completion.refused else judged_text(completion.full_text, entry, thinking_begun=thinking_begun)
    return ReceivedAnswer(prompted, repeat, completion, answer)


def judge_unjudged(
    plan: EvaluationPlan, writer: ResultsWriter, scorer: Scorer
) -> Iterator[tuple[ReceivedAnswer, Score]]:
    """Judge the completions that an earlier process has received and not judged.

    Args:
        plan: All problems of the evaluation.
        writer: The writer with the completions.
        scorer: The scorer that judges the answers.

    Yields:
        An answer and its score, in the order in which answers are judged.

    Raises:
        ScorerFailed: The answers can't be judged.
        EvaluationStopped: The evaluation was asked to stop.
    """
    judging = _Judging(scorer)
    prompted = {item.number: item for item in plan.prompted}
    for kept in writer.unjudged:
        STOP.check()
        item = prompted[kept.problem]
        judging.submit(_received(item, kept.repeat, kept.completion, thinking_begun=plan.thinking_begun))
        yield from judging.finished()
    yield from judging.rest()


def answer_pending(
    config: EvaluationConfig, plan: EvaluationPlan, writer: ResultsWriter, *, live_view: LiveView = nullcontext
) -> dict[str, float]:
    """Judge completions that are not judged yet, then generate, judge and write all missing answers.

    Args:
        config: The evaluation.
        plan: The problems, prompts and model.
        writer: The writer with the answers and completions that are there.
        live_view: Shows the evaluation meanwhile.

    Returns:
        The seconds of the phases `engine_start` and `answering`; empty if no completion is missing.

    Raises:
        EngineFailed: The engine can't generate more completions.
        ScorerFailed: The answers can't be judged.
        EvaluationStopped: The evaluation was asked to stop.
        ResultsNotWritten: The disk is full or broken.
    """
    pending = find_pending(plan, writer, num_samples=config.num_samples)
    num_judged, done = len(writer.answers), len(writer.answers) + len(writer.unjudged)
    if not (pending or writer.unjudged):
        return {}
    tally = Tally(num_wanted=_num_wanted(plan, config), num_judged=num_judged, num_received=done)
    running = RunningEvaluation(config, writer.answers, tally, done)
    STOP.outlook = tally.__str__
    if done:
        say(f"continuing with {done} answers that are there already")

    def write(received: ReceivedAnswer, score: Score) -> None:
        answer = judged(
            received.prompted,
            repeat=received.repeat,
            completion=received.completion,
            answer=received.answer,
            score=score,
            with_text=config.save_full_results,
            with_entry=config.save_metadata,
        )
        writer.add(answer)
        tally.num_judged += 1

    with ExitStack() as opened:
        opened.enter_context(live_view(running))
        try:
            scorer = opened.enter_context(Scorer(**config.scorer))
        except _SCORER_ERRORS as error:
            raise ScorerFailed(_scorer_failure(error)) from error
        if writer.unjudged:
            say(f"judging {len(writer.unjudged)} of them, which an earlier command received")
            with STOP.answering(), ACTIVITY.within("judging"):
                for received, score in judge_unjudged(plan, writer, scorer):
                    write(received, score)
        if not pending:
            return {}
        say(f"starting {mask_secrets(config.model_path)}")
        started = time.perf_counter()
        # A continued evaluation needs a new seed, so that missing answers don't repeat the random numbers of earlier
        # ones. Copies of the model use consecutive seeds.
        with ACTIVITY.within("starting the model"):
            num_refused = sum(bool(answer.refused) for answer in writer.answers)
            engine = opened.enter_context(closing(plan.start(config.seed + done * config.num_copies, num_refused)))
        ready = time.perf_counter()
        running.answering_since = time.monotonic()
        with (
            STOP.answering(),
            ACTIVITY.within("answering"),
            EvaluationProgress(total=tally.num_wanted, done=done) as progress,
        ):
            for received, score in answer_all(pending, engine, scorer, writer, sampling=config.sampling, tally=tally):
                write(received, score)
                progress.add(num_tokens=received.completion.num_tokens)
        return {"engine_start": ready - started, "answering": time.perf_counter() - ready}


def _plan(config: EvaluationConfig) -> str:
    num_problems = sum(dataset.num_problems(config.limit) for dataset in config.datasets)
    plan = f"{num_problems} problems in {len(config.datasets)} datasets, answers per problem: {config.num_samples}"
    if config.num_samples < config.eval_repeats:
        plan += f" (not eval_repeats = {config.eval_repeats}: at temperature 0 all repeats would be the same)"
    return plan
