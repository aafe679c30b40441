"""Export malformed and hostile checkpoints, and check that each is refused or exported correctly.

python benchmarks/malformed_checkpoints.py [--family NAME ...]

Each case damages a copy of a sound checkpoint in one way. The real command exports it in a forked child under a time
limit. A case passes in two ways:

- The command refuses it in one line with exit code 2 and leaves no file behind.
- It exports exactly the tensors of the sound checkpoint, and no text of a file outside of the checkpoint.

Prints a Markdown table by family. The exit code is 1 if any case ends in a traceback, hangs, takes 2 GB or more, or is
exported wrong.
"""

import argparse
import logging
import os
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from malformed_cases import CASES, MARKER, SECRET, Case, write_sound_runs
from record import RESULTS, write_record
from safetensors.torch import load_file

from rgtrain.paths import PROJECT_ROOT

EXPORT = str(PROJECT_ROOT / "utils" / "load_fsdp_to_hf.py")
MOST_BYTES = 2 * 10**9
# Children fail to allocate more than this, so that no case exhausts the machine's memory.
_MORE_ADDRESS_SPACE = 6 * 2**30
_MOST_LINE_CHARACTERS = 2_000
VERDICTS = ("refused in one line", "exported right", "exported wrong", "traceback", "hung", "over 2 GB", "leaked")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one case."""

    case: Case
    verdict: str
    peak_bytes: int
    seconds: float
    output: str

    @property
    def passed(self) -> bool:
        return self.verdict in VERDICTS[:2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", help="export only these families")
    parser.add_argument("--case", help="export only cases with this text in their name")
    parser.add_argument(
        "--most-seconds",
        type=float,
        default=60,
        help="seconds after which a case counts as hung (default: %(default)s)",
    )
    parser.add_argument("--verbose", action="store_true", help="print the command's output in each case")
    parser.add_argument("--out", type=Path, help="the folder for the result (default: results/malformed_checkpoints)")
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.family or case.family in arguments.family]
    cases = [case for case in cases if not arguments.case or arguments.case in case.name]
    started = time.perf_counter()
    outcomes = run_cases(cases, most_seconds=arguments.most_seconds, verbose=arguments.verbose)
    print(_table(outcomes))
    seconds = time.perf_counter() - started
    print(f"\n{len(outcomes)} cases in {seconds:.0f} s")
    # The outcome of a selection of cases is not published.
    if arguments.out or len(cases) == len(CASES):
        publish(arguments, outcomes, seconds)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        print(f"\n{outcome.case.family}: {outcome.case.name}: {outcome.verdict}\n{outcome.output[-3000:]}")
    sys.exit(bool(failed))


def publish(arguments: argparse.Namespace, outcomes: list[Outcome], seconds: float) -> None:
    columns = ("family", "case", "verdict", "peak_mb", "seconds")
    rows = [
        [outcome.case.family, outcome.case.name, outcome.verdict, round(outcome.peak_bytes / 1e6), outcome.seconds]
        for outcome in outcomes
    ]
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    write_record(
        (arguments.out or RESULTS / "malformed_checkpoints") / "cases.json",
        packages=("safetensors",),
        settings={"most_seconds": arguments.most_seconds},
        raw={"columns": columns, "cases": rows},
        derived={
            "cases": len(outcomes),
            "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
            "peak_mb": max(outcome.peak_bytes for outcome in outcomes) / 1e6,
            "slowest_s": max(outcome.seconds for outcome in outcomes),
            "seconds": seconds,
        },
    )


def run_cases(cases: list[Case], *, most_seconds: float = 60, verbose: bool = False) -> list[Outcome]:
    """Export each case in a child of this process, which imports the packages once for all children."""
    import transformers  # noqa: F401 (imported once for all children)

    import rgtrain.checkpoints  # noqa: F401

    # Forking a process that has threads is not safe.
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="malformed-") as temporary:
        folder = Path(temporary)
        expected = write_sound_runs(folder / "sound")
        for number, case in enumerate(cases):
            outcome = _run_case(case, folder, expected, most_seconds=most_seconds)
            outcomes.append(outcome)
            if verbose or not outcome.passed:
                said = outcome.output.strip().replace(temporary, "")
                size = f"{outcome.peak_bytes / 1e6:.0f} MB"
                head = f"[{number + 1}/{len(cases)}] {case.family}: {case.name}: {outcome.verdict}"
                print(f"{head} ({outcome.seconds:.1f} s, {size})\n    {said[-1500:]}", flush=True)
    return outcomes


def _run_case(
    case: Case, folder: Path, expected: dict[str, dict[str, torch.Tensor]], *, most_seconds: float
) -> Outcome:
    work = folder / "work"
    work.mkdir()
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret").write_text(f'{{"secret": "{SECRET}"}}')
    try:
        shutil.copytree(folder / "sound" / case.base, work / "run", symlinks=True)
        case.spoil(work / "run", outside)
        before = {path.name for path in work.iterdir()}
        status, peak, seconds = _export_in_child(case, work, log=folder / "log", most_seconds=most_seconds)
        output = (folder / "log").read_bytes().decode(errors="backslashreplace")
        left = {path.name for path in work.iterdir()} - before
        verdict = _verdict(case, work, status=status, output=output, left=left, expected=expected[case.base])
        if (outside / MARKER).exists():
            verdict = "leaked"
        elif peak >= MOST_BYTES:
            verdict = "over 2 GB"
        return Outcome(case, verdict, peak, seconds, output)
    finally:
        shutil.rmtree(work)
        shutil.rmtree(outside)


def _export_in_child(case: Case, work: Path, *, log: Path, most_seconds: float) -> tuple[int | None, int, float]:
    """Return the child's wait status (None if it hung), its peak memory in bytes, and its seconds."""
    sys.stdout.flush()
    started = time.perf_counter()
    if not (child := os.fork()):
        _run_command(case, work, log)
    while time.perf_counter() - started < most_seconds:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            return status, usage.ru_maxrss * 1024, time.perf_counter() - started
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    _, _, usage = os.wait4(child, 0)
    return None, usage.ru_maxrss * 1024, time.perf_counter() - started


def _run_command(case: Case, work: Path, log: Path) -> None:
    code = 1
    try:
        for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
            os.dup2(os.open(path, flags), number)
        os.dup2(1, 2)
        # Under pytest, replaced streams and handlers would send the output elsewhere.
        sys.stdout, sys.stderr = (open(number, "w", errors="backslashreplace") for number in (1, 2))  # noqa: SIM115, PTH123
        logging.getLogger().handlers.clear()
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + _MORE_ADDRESS_SPACE,) * 2)
        os.chdir(work)
        sys.argv = [EXPORT, case.given, *case.options, "out"]
        try:
            runpy.run_path(EXPORT, run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _verdict(
    case: Case, work: Path, *, status: int | None, output: str, left: set[str], expected: dict[str, torch.Tensor]
) -> str:
    if status is None:
        return "hung"
    written_files = [path for path in work.glob("out/**/*") if path.is_file()]
    if SECRET in output or any(SECRET.encode() in path.read_bytes() for path in written_files):
        return "leaked"
    code = os.waitstatus_to_exitcode(status)
    if code == 2:
        errors = [line for line in output.splitlines() if not line.startswith("WARNING: ")]
        is_one_line = len(errors) == 1 and errors[0].startswith("error: ") and len(errors[0]) <= _MOST_LINE_CHARACTERS
        # Running out of memory is no proper refusal: a smaller machine would fail earlier.
        return VERDICTS[0] if is_one_line and not left and "MemoryError" not in output else "traceback"
    if code != 0:
        return "traceback"
    written = load_file(work / "out" / case.weights)
    same = written.keys() == expected.keys() and all(torch.equal(written[name], expected[name]) for name in written)
    return "exported right" if same and left == {"out"} and not case.must_be_refused else "exported wrong"


def _table(outcomes: list[Outcome]) -> str:
    lines = [
        "| family | cases | " + " | ".join(VERDICTS) + " | peak MB | slowest s |",
        "|---" * (4 + len(VERDICTS)) + "|",
    ]
    families = list(dict.fromkeys(outcome.case.family for outcome in outcomes))
    for family in [*families, "all"]:
        of_family = [outcome for outcome in outcomes if family in (outcome.case.family, "all")]
        counts = Counter(outcome.verdict for outcome in of_family)
        numbers = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
        peak = max((outcome.peak_bytes for outcome in of_family), default=0) / 1e6
        slowest = max((outcome.seconds for outcome in of_family), default=0)
        lines.append(f"| {family} | {len(of_family)} | {numbers} | {peak:.0f} | {slowest:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
