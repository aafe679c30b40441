"""Measure the speed of scoring untrusted answers, and check that hostile answers are contained.

python benchmarks/scoring.py [--only SECTION ...]

hostile: hostile answers (hostile_answers.py) to every dataset: escapes, late answers and exceptions
poison:  scores of honest answers after each answer that executes code
speed:   answers per second, in confined workers and in this process
delay:   delay that one endless answer causes for the 512 others of its batch
start:   seconds until a pool of workers is ready
"""

import argparse
import functools
import gc
import io
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from hostile_answers import Traps, code_answers, forging_answers, hostile_answers, written
from reasoning_gym.factory import DATASETS
from record import RESULTS, write_record

from rgtrain.machine.environment import fix_hash_seed
from rgtrain.problems import DatasetSpec, Score, Scorer
from rgtrain.problems.mixture import ProblemSource, create_dataset
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.scoring import EXECUTING, FAILURES
from rgtrain.problems.scoring.pool import BLOCKED_FACTOR
from rgtrain.tables import text_table

Pair = tuple[str, Mapping[str, Any]]
# Arguments of `write_record`.
Result = dict[str, dict[str, Any]]
# A way to judge answers: prepares outside of the measured time, and returns the function to measure.
Way = Callable[[Sequence[Pair]], Callable[[], list[float]]]

NUM_WORKERS = 2
HOSTILE_TIMEOUT_S = 1.0
# A blocked worker uses no CPU time, so the wall clock limits it.
LATE_S = HOSTILE_TIMEOUT_S * BLOCKED_FACTOR + 0.5
USUAL = ("chain_sum", "spell_backward", "word_sorting", "simple_equations")
SLOW = ("intermediate_integration", "simple_integration", "polynomial_multiplication", "countdown", "chain_sum")
# The scorers that execute answers give a right answer in Python notation at least this score, and a wrong one less.
PAID_FOR_RIGHT = 0.1


def main() -> None:
    fix_hash_seed()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION", help="(default: all)"
    )
    parser.add_argument(
        "--plugins", nargs="+", metavar="PACKAGE", default=[], help="packages that register further datasets"
    )
    parser.add_argument("--prefix", default="", help="of the datasets that get hostile answers, such as core/")
    parser.add_argument("--out", type=Path, default=RESULTS / "scoring", help="the folder for the results")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    import_plugins(arguments.plugins)
    # The programs of codeio write into the current folder.
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for name in arguments.only:
            started = time.monotonic()
            print(f"\n## {name}\n", flush=True)
            result = hostile(arguments.prefix) if name == "hostile" else SECTIONS[name]()
            seconds = time.monotonic() - started
            print(f"\n({seconds:.0f} s)", flush=True)
            result["derived"]["seconds"] = seconds
            write_record(out / f"{name}.json", packages=("sympy", "reasoning-core"), **result)


# hostile


@dataclass
class Tally:
    """Counts of the outcomes of a group of hostile answers."""

    num_answers: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def add(self, score: Score, seconds: float) -> None:
        self.num_answers += 1
        self.kinds[score.failure or "scored"] += 1
        self.slowest_s = max(self.slowest_s, seconds)

    def as_row(self) -> dict[str, Any]:
        return {"answers": self.num_answers, "kinds": dict(self.kinds), "slowest_s": self.slowest_s}

    def cells(self) -> list[str]:
        counts = [self.kinds[kind] for kind in ("scored", *FAILURES)]
        return [str(self.num_answers), *map(str, counts), f"{self.slowest_s:.2f} s"]


@dataclass
class Findings:
    """Unwanted events, and the scores that executed text can set."""

    escapes: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    forged: list[str] = field(default_factory=list)

    def inspect(self, dataset: str, name: str, score: Score, seconds: float, *, traps: Traps, is_forging: bool) -> None:
        case = f"{dataset}, {name}"
        if seconds > LATE_S:
            self.late.append(f"{case}: {seconds:.2f} s")
        if traps.is_revealed_by(score.error):
            self.escapes.append(f"{case}: canary revealed by the error")
        if _executes(dataset) and score.accuracy >= PAID_FOR_RIGHT and "right answer" not in name:
            (self.forged if is_forging else self.escapes).append(f"{case}: scored {score.accuracy:g}")

    def show(self) -> None:
        _list("escaped (file, connection, signal, process, secret)", self.escapes)
        _list(f"later than {LATE_S} s", self.late)
        _list("exceptions raised by the scorer", self.raised)
        _list("answers that set their score, which executed text can do", self.forged)


def hostile(prefix: str = "") -> Result:
    """Judge every hostile answer to one problem of every dataset whose name starts with `prefix`."""
    entries = _one_entry_each(prefix)
    findings = Findings()
    before = _descendants(os.getpid())
    with Traps() as traps:
        answers = hostile_answers(traps)
        with Scorer(num_workers=NUM_WORKERS, timeout_s=HOSTILE_TIMEOUT_S) as scorer:
            # Load all scorers first, because some import packages for seconds.
            scorer.score_many(("4", entry) for entry in entries.values())
            memory_before = _resident_mb()
            tallies = {name: _attack(scorer, name, entry, traps, findings) for name, entry in entries.items()}
            memory_after = _resident_mb()
        findings.escapes += [f"process {pid} is left" for pid in _descendants(os.getpid()) - before]
    print(_tally_table(tallies))
    print(
        f"\n{len(answers)} answers to each of {len(entries)} datasets, {NUM_WORKERS} workers of {HOSTILE_TIMEOUT_S} s"
    )
    findings.show()
    print(f"resident memory of this process: {memory_before:.0f} MB before, {memory_after:.0f} MB after")
    total = _sum(tallies.values())
    return {
        "settings": {"workers": NUM_WORKERS, "timeout_s": HOSTILE_TIMEOUT_S, "late_s": LATE_S},
        "raw": {
            "datasets": {name: tally.as_row() for name, tally in tallies.items()},
            "escapes": findings.escapes,
            "late": findings.late,
            "raised": findings.raised,
            "forged": findings.forged,
        },
        "derived": {
            "answers": total.num_answers,
            "answers_per_dataset": len(answers),
            "datasets": len(entries),
            "outcomes": {kind: total.kinds[kind] for kind in ("scored", *FAILURES)},
            "slowest_s": total.slowest_s,
            "escapes": len(findings.escapes),
            "late": len(findings.late),
            "raised": len(findings.raised),
            "forged": len(findings.forged),
            "memory_before_mb": memory_before,
            "memory_after_mb": memory_after,
        },
    }


def _attack(scorer: Scorer, dataset: str, entry: Mapping[str, Any], traps: Traps, findings: Findings) -> Tally:
    answers = hostile_answers(traps)
    forging = forging_answers(traps)
    outcomes = _judge_timed(scorer, [(written(answer, entry), entry) for answer in answers.values()])
    tally = Tally()
    for name, (score, seconds) in zip(answers, outcomes, strict=True):
        if isinstance(score, Exception):
            findings.raised.append(f"{dataset}, {name}: {score!r}")
            continue
        tally.add(score, seconds)
        findings.inspect(dataset, name, score, seconds, traps=traps, is_forging=name in forging)
    findings.escapes += [f"{dataset}: {trap}" for trap in traps.sprung()]
    _progress(f"{dataset}: {', '.join(f'{number} {kind}' for kind, number in tally.kinds.most_common())}")
    return tally


def _tally_table(tallies: Mapping[str, Tally]) -> str:
    shown = {name: tally for name, tally in tallies.items() if _executes(name) or tally.kinds.keys() & _HARD}
    others = _sum([tally for name, tally in tallies.items() if name not in shown])
    rows = [[name + (" (executes)" if _executes(name) else ""), *tally.cells()] for name, tally in shown.items()]
    rows += [[f"{len(tallies) - len(shown)} others", *others.cells()], ["all", *_sum(tallies.values()).cells()]]
    return text_table(["dataset", "answers", "scored", *FAILURES, "slowest"], rows)


_HARD = {"timeout", "memory", "crash"}


def _executes(dataset: str) -> bool:
    """Return whether the verifier of a dataset passes answers to `eval` or the like."""
    return dataset in EXECUTING or getattr(DATASETS[dataset][0], "executes_answers", False)


def _judge_timed(scorer: Scorer, pairs: Sequence[Pair]) -> list[tuple[Score | Exception, float]]:
    """Return each answer's score or the exception raised, and its seconds; one answer per worker is in flight."""

    def judge(pair: Pair) -> tuple[Score | Exception, float]:
        started = time.monotonic()
        try:
            score: Score | Exception = scorer.score(*pair)
        except Exception as error:
            score = error
        return score, time.monotonic() - started

    with ThreadPoolExecutor(NUM_WORKERS) as threads:
        return list(threads.map(judge, pairs))


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.num_answers += tally.num_answers
        total.kinds += tally.kinds
        total.slowest_s = max(total.slowest_s, tally.slowest_s)
    return total


def _list(title: str, found: Sequence[str]) -> None:
    print(f"{title}: {len(found)}")
    for line in found[:40]:
        print(f"  {line}")


def _one_entry_each(prefix: str) -> dict[str, Mapping[str, Any]]:
    names = sorted(name for name in DATASETS if name != "composite" and name.startswith(prefix))
    # The programs of bf and codeio print.
    with redirect_stdout(io.StringIO()):
        return {name: ProblemSource(DatasetSpec(name), seed=0, size=10)[0].entry for name in names}


def _resident_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def _descendants(pid: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: set[int] = set()
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


# poison


def poison() -> Result:
    """Judge honest answers before and after each hostile piece of code, and compare their scores."""
    changed: list[str] = []
    rows = []
    with Traps() as traps, Scorer(num_workers=1, timeout_s=0.3) as scorer:
        answers = code_answers(traps)
        for dataset in sorted(EXECUTING):
            source = ProblemSource(DatasetSpec(dataset), seed=0, size=10)
            entry = source[0].entry
            honest = [(problem.entry["answer"], entry) for problem in (source[0], source[1])] + [("0", entry)]
            before = [score[:2] for score in scorer.score_many(honest)]
            num_changed = len(changed)
            for name, answer in answers.items():
                poisoned = (written(answer, entry), entry)
                # In the same batch and in the next one.
                together = [score[:2] for score in scorer.score_many([*honest, poisoned, *honest])]
                after = [score[:2] for score in scorer.score_many(honest)]
                if not together[: len(honest)] == together[-len(honest) :] == after == before:
                    changed.append(f"{dataset} after {name}: {before} -> {after}")
            paid = ", ".join(f"{accuracy:g}" for accuracy, _ in before)
            rows.append([dataset, paid, str(3 * len(honest) * len(answers)), str(len(changed) - num_changed)])
            _progress(f"{dataset}: {len(changed) - num_changed} changed")
    print(text_table(["dataset", "right, another's, 0", "judged again", "changed"], rows))
    _list("changed", changed)
    names = ("dataset", "paid", "judged_again", "changed")
    judged = sum(int(row[2]) for row in rows)
    return {
        "raw": {"datasets": [dict(zip(names, row, strict=True)) for row in rows], "changed": changed},
        "derived": {
            "datasets": len(rows),
            "answers_per_dataset": len(answers),
            "judged_again": judged,
            "changed": len(changed),
        },
    }


# speed


def speed() -> Result:
    """Judge the same answers in the pool and in this process, in turn."""
    with Scorer(num_workers=NUM_WORKERS, timeout_s=30) as scorer:
        bare, reward, confined = (
            ("in this process, bare", _bare),
            ("in this process, as a reward", _as_reward),
            ("confined", lambda pairs: lambda: [score.accuracy for score in scorer.score_many(pairs)]),
        )
        usual = _compare("usual", USUAL, [bare, reward, confined], num_answers=512, num_repeats=21)
        print()
        # Only one way runs in this process, because sympy caches its simplifications.
        slow = _compare("slow", SLOW, [bare, confined], num_answers=60, num_repeats=15)
    raw = {"usual": usual, "slow": slow}
    medians = {
        mixture: {way: 1000 * median(seconds) for way, seconds in of_mixture["seconds"].items()}
        for mixture, of_mixture in raw.items()
    }
    return {"settings": {"workers": NUM_WORKERS}, "raw": raw, "derived": {"median_ms": medians}}


def _compare(
    title: str,
    datasets: Sequence[str],
    ways: Sequence[tuple[str, Way]],
    *,
    num_answers: int,
    num_repeats: int,
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name, _ in ways}
    for repeat in range(num_repeats + 1):
        pairs = _honest_and_wrong(datasets, num_answers=num_answers, first=repeat * num_answers)
        accuracies = []
        for name, way in _rotated(ways, repeat):
            judge = way(pairs)
            started = time.perf_counter()
            accuracies.append(judge())
            seconds[name].append(time.perf_counter() - started)
        if any(found != accuracies[0] for found in accuracies):
            raise AssertionError("confined and unconfined scores differ")
        _progress(f"{title}: repeat {repeat}/{num_repeats}")
    # The first repeat is a warm-up.
    taken = {name: sorted(times[1:]) for name, times in seconds.items()}
    confined = median(taken["confined"])
    rows = [
        [
            name,
            *(f"{1000 * time:.2f}" for time in (median(times), times[0], times[-1])),
            f"{num_answers / median(times):,.0f}",
            f"{confined / median(times):.2f}",
        ]
        for name, times in taken.items()
    ]
    print(f"{title}: {num_answers} answers to {', '.join(datasets)}, a third of them wrong, {num_repeats} repeats")
    print(text_table(["", "median ms", "least", "most", "answers/s", "confined / this"], rows))
    return {
        "datasets": datasets,
        "answers": num_answers,
        "seconds": {name: times[1:] for name, times in seconds.items()},
    }


def _rotated(items: Sequence[Any], by: int) -> list[Any]:
    by %= len(items)
    return [*items[by:], *items[:by]]


# Larger than the distance between the problems of any two repeats.
_FAR = 500_000


def _honest_and_wrong(datasets: Sequence[str], *, num_answers: int, first: int) -> list[Pair]:
    """Return answers to the same number of problems per dataset; every third is the answer to another problem."""
    sources = [_source(dataset) for dataset in datasets]
    pairs = []
    for i in range(num_answers):
        source, index = sources[i % len(sources)], first + i
        answer = source[index + (_FAR if i % 3 == 0 else 0)].entry["answer"]
        pairs.append((answer, source[index].entry))
    return pairs


@functools.cache
def _source(dataset: str) -> ProblemSource:
    return ProblemSource(DatasetSpec(dataset), seed=0)


@functools.cache
def _dataset(name: str) -> Any:
    return create_dataset(DatasetSpec(name), seed=0, size=1)


def _bare(pairs: Sequence[Pair]) -> Callable[[], list[float]]:
    judged = [(_dataset(entry["metadata"]["source_dataset"]).score_answer, answer, entry) for answer, entry in pairs]
    return lambda: [score_answer(answer, entry) for score_answer, answer, entry in judged]


def _as_reward(pairs: Sequence[Pair]) -> Callable[[], list[float]]:
    """Judge as a reward has to: look up the dataset, catch exceptions, measure seconds, and make a Score."""

    def judge(answer: str, entry: Mapping[str, Any]) -> Score:
        started = time.monotonic()
        try:
            accuracy = float(_dataset(entry["metadata"]["source_dataset"]).score_answer(answer, entry))
            return Score(accuracy, None, time.monotonic() - started)
        except Exception as error:
            return Score(0.0, f"exception: {type(error).__name__}", time.monotonic() - started)

    return lambda: [judge(*pair).accuracy for pair in pairs]


# delay


def delay() -> Result:
    """Measure how an endless answer among 512 delays the batch and the other answers."""
    timeout_s, num_repeats = 2.0, 5
    usual = _honest_and_wrong(USUAL, num_answers=512, first=0)
    endless = ("9**9**9", ProblemSource(DatasetSpec("n_queens"), seed=0, size=1)[0].entry)
    together = [*usual[:256], endless, *usual[256:]]
    with Scorer(num_workers=NUM_WORKERS, timeout_s=timeout_s) as scorer:
        _prepare(scorer, together)
        rows, raw = [], {}
        for name, pairs in (("without", usual), ("with", together)):
            batch = [_seconds(lambda pairs=pairs: scorer.score_many(pairs)) for _ in range(num_repeats)]
            others = [_seconds_of_others(scorer, pairs, endless) for _ in range(num_repeats)]
            rows.append([name, *(f"{1000 * median(taken):.0f}" for taken in (batch, others))])
            raw[name] = {"batch_s": batch, "last_other_s": others}
    print(f"512 answers, {NUM_WORKERS} workers, timeout {timeout_s} s, medians of {num_repeats}, in ms")
    print(text_table(["9**9**9", "score_many", "last other answer, by submit"], rows))
    medians = {
        name: {
            part: 1000 * median(seconds)
            for part, seconds in (("batch_ms", raw[name]["batch_s"]), ("last_other_ms", raw[name]["last_other_s"]))
        }
        for name in raw
    }
    settings = {"workers": NUM_WORKERS, "timeout_s": timeout_s, "answers": len(usual)}
    return {"settings": settings, "raw": raw, "derived": medians}


def _prepare(scorer: Scorer, pairs: Sequence[Pair]) -> None:
    """Start the scorers of all datasets in `pairs`."""
    by_dataset = {entry["metadata"]["source_dataset"]: entry for _, entry in pairs}
    scorer.score_many([("0", entry) for entry in by_dataset.values()])


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _seconds_of_others(scorer: Scorer, pairs: Sequence[Pair], endless: Pair) -> float:
    """Return the seconds until all answers but `endless` have scores, with each submitted separately."""
    started = time.perf_counter()
    futures = [(pair, scorer.submit(*pair)) for pair in pairs]
    wait([future for pair, future in futures if pair is not endless])
    taken = time.perf_counter() - started
    wait([future for _, future in futures])
    return taken


# start


def start() -> Result:
    """Measure the seconds until a pool accepts answers."""
    taken = []
    for _ in range(5):
        scorer = Scorer(num_workers=NUM_WORKERS)
        taken.append(_seconds(scorer.__enter__))
        scorer.__exit__(None, None, None)
    print(
        f"{NUM_WORKERS} workers ready after {median(taken):.2f} s (median of 5; {min(taken):.2f} to {max(taken):.2f})"
    )
    return {"settings": {"workers": NUM_WORKERS}, "raw": {"seconds": taken}, "derived": {"median_s": median(taken)}}


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


SECTIONS = {"hostile": hostile, "poison": poison, "speed": speed, "delay": delay, "start": start}

if __name__ == "__main__":
    main()
