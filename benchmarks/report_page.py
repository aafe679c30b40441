"""Measure the report of a long run: the seconds to write it, its size, and the seconds until a browser shows it.

python benchmarks/report_page.py

The run has made-up metrics and rollouts: 10,000 steps with 150 metrics each, and 50,000 completions of 60 words. The
browser is headless Chromium.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from record import RESULTS, write_record

from rgtrain.paths import PROJECT_ROOT
from rgtrain.tables import text_table

NUM_STEPS, GROUP_SIZE, NUM_METRICS, NUM_WORDS = 10_000, 5, 150, 60
WORDS = ("we", "need", "the", "first", "word", "then", "reverse", "so", "answer", "is", "<b>", "&amp;")
COLUMNS = ("write_s", "size_mb", "shown_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="pages to write and to open (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "report_page", help="the folder for the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = write_long_run(Path(folder) / "run")
        repeats = [measured(run, page=Path(folder) / f"{number}.html") for number in range(arguments.repeats)]
    raw = {name: [repeat[name] for repeat in repeats] for name in COLUMNS}
    write_record(
        arguments.out / "long_run.json",
        settings={"steps": NUM_STEPS, "completions": NUM_STEPS * GROUP_SIZE, "metrics": NUM_METRICS},
        packages=("playwright",),
        raw=raw,
        derived={name: median(values) for name, values in raw.items()},
    )
    print(text_table(list(COLUMNS), [[f"{repeat[name]:.3g}" for name in COLUMNS] for repeat in repeats]))


def write_long_run(folder: Path) -> Path:
    """Write the folder of a run that learns."""
    sys.path.insert(0, str(PROJECT_ROOT / "tests"))
    from support.run_folders import kept_group, write_run

    chance = random.Random(0)

    def group(step: int) -> object:
        rewards = [float(chance.random() < step / NUM_STEPS) for _ in range(GROUP_SIZE)]
        return kept_group(step, rewards, text=f"<think>{' '.join(chance.choices(WORDS, k=NUM_WORDS))}</think>")

    run = write_run(folder, num_steps=NUM_STEPS, group=group)
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record |= {f"perf/metric_{number}": chance.random() for number in range(NUM_METRICS - len(record))}
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return run


def chromium() -> str | None:
    """Return the installed Chromium; None for playwright's own."""
    return next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)


def measured(run: Path, *, page: Path) -> dict[str, float]:
    """Write the report of a run, open it in a browser, and return seconds and megabytes."""
    from playwright.sync_api import sync_playwright

    from rgtrain.reporting.run_report import write_run_report

    started = time.perf_counter()
    write_run_report([run], page=page)
    written = time.perf_counter()
    with sync_playwright() as playwright:
        # As root, Chromium's sandbox does not start.
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        tab = browser.new_page()
        opened = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector("#group h3")
        shown = time.perf_counter()
        browser.close()
    return {"write_s": written - started, "size_mb": page.stat().st_size / 1e6, "shown_s": shown - opened}


if __name__ == "__main__":
    main()
