"""A small run under random faults, and an undisturbed one beside it: python benchmarks/chaos.py [--faults 30]

After every fault that ends it, the same command is started again. Prints a Markdown table: how often the run survived
(went on by itself), resumed (the same command continued it after the last sound checkpoint), or lost something.
Exit code 1 if anything was lost. The faults of a full disk need root: the run's folder is a file system of its own.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from chaos_faults import FAULTS, Fault, disk_of, freed
from chaos_run import STARTED, STEP, Start, command, model_that_answers, sound_steps

from rgtrain.provenance import commit

# How much of a start is over, at most, when it is struck; and how long after a step, when one of those is.
_STARTING_SECONDS, _STEP_SECONDS = 25.0, 1.0
# Every step is saved. One may not have been when the run was struck, and the last one be the one that was truncated.
_MAY_BE_REPEATED = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="chaos") as folder, disk_of(Path(folder)) as disk:
        model = model_that_answers(Path(folder) / "model")
        undisturbed = Path(folder) / "undisturbed"
        print("undisturbed run", flush=True)
        assert Start(command(model, undisturbed, arguments.steps)).end() == 0
        faults = drawn(arguments.faults, rng, with_disk=disk is not None)
        outcomes: list[tuple[str, str]] = []
        wrong: list[str] = []
        while faults:
            run_dir = (disk or Path(folder)) / f"disturbed_{len(outcomes)}"
            outcomes += endure(command(model, run_dir, arguments.steps), run_dir, faults, rng)
            wrong += differences(run_dir, undisturbed, arguments.steps)
    print(f"\n{table(outcomes)}\n\n{provenance(arguments)}")
    print("\n".join(wrong) if wrong else "every step is on record once, in order, with the undisturbed run's prompts")
    sys.exit(bool(wrong) or any(outcome == "lost" for _, outcome in outcomes))


def drawn(number: int, rng: random.Random, *, with_disk: bool) -> list[Fault]:
    """All kinds of faults as often as each other, in random order."""
    kinds = [fault for fault in FAULTS if with_disk or not fault.needs_disk]
    faults = [kinds[i % len(kinds)] for i in range(number)]
    rng.shuffle(faults)
    return faults


def endure(start_again: list[str], run_dir: Path, faults: list[Fault], rng: random.Random) -> list[tuple[str, str]]:
    """Strike the run with `faults`, which are used up, until it is finished; each one's name and what came of it."""
    outcomes = []
    start = Start(start_again)
    while True:
        if faults:
            moment = await_moment(start, faults[0], rng)
        if not faults or start.is_over():
            code = start.end()
            return outcomes if code == 0 else [*outcomes, (f"the end, exit code {code}", "lost")]
        try:
            faults[0].strike(start, run_dir, rng)
        except (OSError, StopIteration, IndexError):
            if start.is_over():
                continue  # It came to its end just before.
            raise
        fault = faults.pop(0)
        outcome, start = outcome_of(start, start_again, run_dir)
        outcomes.append((fault.name, outcome))
        print(f"{run_dir.name}: {fault.name}, {moment}: {outcome}", flush=True)


def await_moment(start: Start, fault: Fault, rng: random.Random) -> str:
    """Wait for when to strike, a random time in the start or one of the next steps; in words."""
    if rng.random() < 0.25 and not fault.needs_steps:
        start.wait_seconds(rng.uniform(0, _STARTING_SECONDS))
    else:
        start.wait_lines(STEP, rng.randint(1, 2))
        start.wait_seconds(rng.uniform(0, _STEP_SECONDS))
    return f"in step {start.last_step() + 1}" if start.num_lines(STEP) else "while starting"


def outcome_of(start: Start, start_again: list[str], run_dir: Path) -> tuple[str, Start]:
    """What comes of a start that was struck, and the start that goes on."""
    if start.wait_lines(STEP, 2):
        freed(run_dir)
        return "survived", start
    if not start.is_over():
        start.kill()
        return "lost", Start(start_again)
    if start.end() == 0:
        return "survived", start
    freed(run_dir)
    last_sound = max(sound_steps(run_dir), default=0)
    again = Start(start_again)
    again.wait_lines(STARTED, 1)
    is_resumed = again.resumed_after() == last_sound >= start.last_step() - _MAY_BE_REPEATED
    return "resumed" if is_resumed else "lost", again


def differences(run_dir: Path, undisturbed: Path, num_steps: int) -> list[str]:
    """What the disturbed run's record lacks, or has otherwise."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records]
    wrong = [] if steps == list(range(1, num_steps + 1)) else [f"{run_dir.name} has the steps {steps}"]
    if num_steps not in sound_steps(run_dir):
        wrong.append(f"{run_dir.name} has no sound last checkpoint")
    for step in range(1, num_steps + 1):
        theirs, ours = (_prompts(folder, step) for folder in (undisturbed, run_dir))
        if theirs != ours:
            wrong.append(f"{run_dir.name} has other prompts in step {step}")
    return wrong


def _prompts(run_dir: Path, step: int) -> Counter[str]:
    lines = (run_dir / "rollouts" / f"{step}.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["input"] for line in lines)


def table(outcomes: list[tuple[str, str]]) -> str:
    counts = Counter(outcomes)
    kinds = ("survived", "resumed", "lost")
    lines = [f"| fault | {' | '.join(kinds)} |", f"|{'---|' * 4}"]
    for name in sorted({name for name, _ in outcomes}):
        lines.append(f"| {name} | {' | '.join(str(counts[name, kind]) for kind in kinds)} |")
    totals = Counter(outcome for _, outcome in outcomes)
    return "\n".join([*lines, f"| all | {' | '.join(str(totals[kind]) for kind in kinds)} |"])


def provenance(arguments: argparse.Namespace) -> str:
    words = f"--faults {arguments.faults} --steps {arguments.steps} --seed {arguments.seed}"
    return f"`python benchmarks/chaos.py {words}` at {commit()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
