"""Run small trainings under random faults and compare them with undisturbed runs.

python benchmarks/chaos.py [--faults 60]

After every fault that ends a run, the same command is started again. Prints a Markdown table with the outcome of each
fault:

survived: the run continued without a restart
resumed:  the same command continued the run after the last sound checkpoint
lost:     anything else, such as a step missing from the record, or an exit whose cause the output does not name

The exit code is 1 if anything was lost. The faults of a full disk need root, because the runs' folder is then a
separate file system.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos_faults import FAULTS, Fault, disk_of, free_disk, names_cause, records
from chaos_run import STARTED, STEP, TEST_FREQ, Start, command, model_that_answers, prompts_of_step, sound_steps
from record import RESULTS, write_record

# The longest time between the start, or a step, and a fault.
_STARTING_SECONDS, _STEP_SECONDS = 25.0, 1.0
# Every step is saved. The in-flight step is repeated, and so is the last step if its checkpoint was truncated.
_MAX_REPEATED_STEPS = 2
_SCORER_FAILURES = ("num_timeout", "num_crash")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one fault: "survived", "resumed" or "lost", with the reason if lost."""

    fault: str
    result: str
    reason: str = ""


@dataclass(frozen=True)
class Lane:
    """Faults to inflict one after the other on runs of one kind in one folder."""

    folder: Path
    faults: list[Fault]
    dapo: bool
    rng: random.Random


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60, help="number of faults (default: %(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        default=40,
        help="steps per run; runs are repeated until all faults are used (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, for machines with many cores")
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos", help="the folder for the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as name:
        folder = Path(name)
        model = model_that_answers(folder / "model")
        lanes = make_lanes(arguments, folder)
        kinds = sorted({lane.dapo for lane in lanes})
        print("undisturbed runs", flush=True)
        for dapo in kinds:
            start = Start(command(model, undisturbed(folder, dapo), arguments.steps, dapo=dapo))
            if start.end() != 0:
                sys.exit(f"the undisturbed run failed:\n{start.output()}")
        with ThreadPoolExecutor(arguments.at_once) as pool:
            outcomes = [
                outcome
                for of_lane in pool.map(lambda lane: run_lane(lane, model, folder, arguments.steps), lanes)
                for outcome in of_lane
            ]
    print(f"\n{table(outcomes)}")
    publish(arguments, outcomes)
    lost = [outcome for outcome in outcomes if outcome.result == "lost"]
    print("\n".join(f"lost: {outcome.fault}: {outcome.reason}" for outcome in lost) or "nothing was lost")
    sys.exit(bool(lost))


def make_lanes(arguments: argparse.Namespace, folder: Path) -> list[Lane]:
    """Distribute all kinds of faults equally, in random order; faults of DAPO runs get a separate lane."""
    rng = random.Random(arguments.seed)
    with disk_of(folder / "probe") as disk:
        kinds = [fault for fault in FAULTS if disk is not None or not fault.needs_disk]
    faults = [kinds[i % len(kinds)] for i in range(arguments.faults)]
    rng.shuffle(faults)
    lanes = []
    for dapo in (True, False):
        of_kind = [fault for fault in faults if fault.dapo == dapo]
        num_lanes = 1 if dapo else max(1, arguments.at_once - 1)
        for part in (of_kind[i::num_lanes] for i in range(num_lanes)):
            if part:
                lane_folder = folder / f"lane_{len(lanes)}"
                lanes.append(Lane(lane_folder, part, dapo, random.Random(f"{arguments.seed} {len(lanes)}")))
    return lanes


def undisturbed(folder: Path, dapo: bool) -> Path:
    return folder / f"undisturbed_{'dapo' if dapo else 'grpo'}"


def run_lane(lane: Lane, model: Path, folder: Path, num_steps: int) -> list[Outcome]:
    """Disturb runs until the lane's faults are used up, and compare each run with the undisturbed one."""
    outcomes: list[Outcome] = []
    faults = list(lane.faults)
    with disk_of(lane.folder) as disk:
        while faults:
            # The small disk holds only one run at a time.
            run_dir = (disk or lane.folder / "folder") / f"run_{len(outcomes)}"
            outcomes += run_with_faults(command(model, run_dir, num_steps, dapo=lane.dapo), run_dir, faults, lane.rng)
            reasons = differences(run_dir, undisturbed(folder, lane.dapo), num_steps)
            outcomes += [Outcome("the whole run", "lost", reason) for reason in reasons]
            shutil.rmtree(run_dir)
    return outcomes


def run_with_faults(start_command: list[str], run_dir: Path, faults: list[Fault], rng: random.Random) -> list[Outcome]:
    """Run until the end, inflicting faults from the front of `faults` and removing them."""
    outcomes: list[Outcome] = []
    start = Start(start_command)
    while True:
        if faults:
            moment = wait_for_moment(start, faults[0], rng)
        if not faults or start.is_over():
            code = start.end()
            return outcomes if code == 0 else [*outcomes, Outcome("no fault", "lost", f"exit code {code}")]
        try:
            faults[0].inflict(start, run_dir, rng)
        except (OSError, StopIteration, IndexError):
            if start.is_over():
                continue  # The run ended just before the fault.
            raise
        fault = faults.pop(0)
        outcome, start = outcome_of(fault, start, start_command, run_dir)
        outcomes.append(outcome)
        print(f"{run_dir}: {fault.name}, {moment}: {outcome.result} {outcome.reason}", flush=True)


def wait_for_moment(start: Start, fault: Fault, rng: random.Random) -> str:
    """Wait for a random time during the start or one of the next steps, and return its description."""
    if rng.random() < 0.25 and not fault.needs_steps:
        start.wait_seconds(rng.uniform(0, _STARTING_SECONDS))
    else:
        start.wait_lines(STEP, rng.randint(1, 2))
        start.wait_seconds(rng.uniform(0, _STEP_SECONDS))
    return f"in step {start.last_step() + 1}" if start.num_lines(STEP) else "while starting"


def outcome_of(fault: Fault, start: Start, start_command: list[str], run_dir: Path) -> tuple[Outcome, Start]:
    """Return the outcome of a fault, and the start that continues the run."""
    if start.wait_lines(STEP, 2):
        free_disk(run_dir)
        return Outcome(fault.name, "survived"), start
    if not start.is_over():
        start.kill()
        return Outcome(fault.name, "lost", "the run stood still"), Start(start_command)
    code = start.end()
    if code == 0:
        return Outcome(fault.name, "survived"), start
    free_disk(run_dir)
    last_sound = max(sound_steps(run_dir), default=0)
    again = Start(start_command)
    again.wait_lines(STARTED, 1)
    if fault.exit_code not in (None, code):
        reason = f"exit code {code} instead of {fault.exit_code}"
    elif not again.resumed_after() == last_sound >= start.last_step() - _MAX_REPEATED_STEPS:
        reason = f"after step {start.last_step()}, resumed after {again.resumed_after()}, last sound {last_sound}"
    else:
        again.wait_lines(STEP, 1)
        if names_cause(fault, start.output(), again.output()):
            return Outcome(fault.name, "resumed"), again
        reason = f"no cause named:\n{start.output()[-2000:]}"
    return Outcome(fault.name, "lost", reason), again


def differences(run_dir: Path, undisturbed_dir: Path, num_steps: int) -> list[str]:
    """List the differences between the records of a disturbed and an undisturbed run."""
    of_run = records(run_dir)
    steps = [record["step"] for record in of_run]
    wrong = [] if steps == list(range(1, num_steps + 1)) else [f"{run_dir} has the steps {steps}"]
    if num_steps not in sound_steps(run_dir):
        wrong.append(f"{run_dir} has no sound last checkpoint")
    for record in of_run:
        step = record["step"]
        if step % TEST_FREQ == 0 and not any(name.startswith("val-core/") for name in record):
            wrong.append(f"{run_dir} has no validation in step {step}")
        failed = [name for name, value in record.items() if name.endswith(_SCORER_FAILURES) and value]
        if failed:
            wrong.append(f"{run_dir} has scorer failures in step {step}: {', '.join(failed)}")
        if step <= num_steps and prompts_of_step(undisturbed_dir, step) != prompts_of_step(run_dir, step):
            wrong.append(f"{run_dir} has other prompts in step {step}")
    return wrong


def table(outcomes: list[Outcome]) -> str:
    results = ("survived", "resumed", "lost")
    counts = Counter((outcome.fault, outcome.result) for outcome in outcomes)
    lines = [f"| fault | {' | '.join(results)} |", f"|{'---|' * 4}"]
    for name in sorted({outcome.fault for outcome in outcomes}):
        lines.append(f"| {name} | {' | '.join(str(counts[name, result]) for result in results)} |")
    totals = Counter(outcome.result for outcome in outcomes)
    return "\n".join([*lines, f"| all | {' | '.join(str(totals[result]) for result in results)} |"])


def publish(arguments: argparse.Namespace, outcomes: list[Outcome]) -> None:
    counts = {
        fault: dict(Counter(outcome.result for outcome in outcomes if outcome.fault == fault))
        for fault in sorted({outcome.fault for outcome in outcomes})
    }
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    raw = [asdict(outcome) for outcome in outcomes]
    totals = dict(Counter(outcome.result for outcome in outcomes))
    write_record(arguments.out / "faults.json", settings=settings, raw=raw, derived={"faults": counts, "all": totals})


if __name__ == "__main__":
    main()
