"""Measure the seconds per training step on a machine that also runs other programs.

python benchmarks/busy_machine.py [--steps 4] [--loops 2]

Trains the quickstart for a few steps on the CPU, alone and beside busy loops at normal priority. Compares the project's
environment variables with the defaults of Ray and OpenMP. Prints a Markdown table. Run it on an otherwise quiet
machine. A run that does not finish takes --limit-s seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from record import RESULTS, write_record

from rgtrain.machine.devices import num_cpus
from rgtrain.paths import PROJECT_ROOT

# The defaults of GNU's and Intel's OpenMP. Variables that the user has set override the project's.
_SPINNING = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}
SETTINGS: dict[str, Mapping[str, str]] = {
    "the project's": {},
    "threads that spin": _SPINNING,
    "threads that spin, niceness 15 (Ray's)": _SPINNING | {"RAY_worker_niceness": "15"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="of each run; the first one is left out of the median")
    parser.add_argument("--loops", type=int, default=num_cpus(), help="busy loops beside a run")
    parser.add_argument("--limit-s", type=float, default=600, help="seconds after which a run is ended")
    parser.add_argument("--out", type=Path, default=RESULTS / "busy_machine", help="the folder for the result")
    arguments = parser.parse_args()
    rows, raw = [], []
    for name, environment in SETTINGS.items():
        for loops in (0, arguments.loops):
            with busy_loops(loops):
                ready_s, steps_s = train(environment, num_steps=arguments.steps, limit_s=arguments.limit_s)
            step_median = median(steps_s[1:]) if steps_s[1:] else None
            values = {"first_step_after_s": ready_s, "step_s": steps_s, "median_step_s": step_median}
            raw.append({"settings": name, "loops": loops} | values)
            row = [name, str(loops), _seconds(ready_s), _seconds(step_median)]
            rows.append(f"| {' | '.join([*row, ', '.join(f'{s:.1f}' for s in steps_s)])} |")
            print(rows[-1], flush=True)
    header = "| settings | busy loops | s to the first step's end | s per step, median | all steps |"
    print(f"\n{header}\n|---|---|---|---|---|\n" + "\n".join(rows))
    settings = {"steps": arguments.steps, "loops": arguments.loops, "limit_s": arguments.limit_s}
    derived = {"rows": [{name: value for name, value in row.items() if name != "step_s"} for row in raw]}
    write_record(arguments.out / "busy_machine.json", settings=settings, raw=raw, derived=derived)


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Run `number` busy processes at normal priority within the block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train(environment: Mapping[str, str], *, num_steps: int, limit_s: float) -> tuple[float | None, list[float]]:
    """Train the quickstart with additional environment variables.

    Args:
        environment: Variables added to those of this process.
        num_steps: Steps to train.
        limit_s: Seconds after which the run is terminated.

    Returns:
        Seconds until the end of the first step (None if it never ended), and the seconds of each finished step.
    """
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / "metrics.jsonl"
        command = [sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-name", "quickstart", "hardware=cpu"]
        command += [f"run_dir={metrics.parent}", f"trainer.total_training_steps={num_steps}", "trainer.save_freq=-1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
        started, ready_s = time.monotonic(), None
        while process.poll() is None and time.monotonic() - started < limit_s:
            if ready_s is None and metrics.exists() and metrics.stat().st_size:
                ready_s = time.monotonic() - started
            time.sleep(0.2)
        if process.poll() is None:
            process.terminate()
            process.wait()
        # The run's other processes end a little later.
        time.sleep(5)
        records = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        return ready_s, [record["timing_s/step"] for record in records]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
