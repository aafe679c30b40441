"""Measure the time and memory of an export, compared with verl's merger, a plain script and cp.

python benchmarks/checkpoints.py [--sizes NAME ...]

All sides export the same random fp32 checkpoint of four ranks, each in a separate process, in turn, several times.
Prints medians of the seconds until the process ends, of the seconds until all data is on the disk, and of the peak
resident memory, which includes mapped files. The fp32 export is compared bit for bit with the plain script's, and the
bf16 export with verl's. Needs four times the checkpoint's size in --dir.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from record import RESULTS, write_record
from transformers import AutoConfig

from rgtrain.checkpoints.shards.random_checkpoints import write_random_checkpoint
from rgtrain.checkpoints.shards.safetensors_reader import read_safetensors
from rgtrain.checkpoints.shards.tensors import same_values
from rgtrain.models.embedded_model import embedded_tokenizer
from rgtrain.models.model_shapes import SHAPES
from rgtrain.paths import PROJECT_ROOT

WORLD_SIZE = 4
SIDES = ("ours", "ours_bf16", "verl", "plain")
SIZES = ("smollm2-135m", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b")
EXPORT = str(PROJECT_ROOT / "utils" / "load_fsdp_to_hf.py")
PLAIN = str(PROJECT_ROOT / "benchmarks" / "sides" / "load_everything.py")
# Needed memory as a multiple of the checkpoint. Both sides load all of it, and are left out if memory is too small.
LOADING_EVERYTHING = {"verl": 1.5, "plain": 1.3}
# Runs the command from a small process, because the parent's memory at the fork counts as the command's.
MEASURED = """
import resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.call(sys.argv[1:])
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True)
class Cost:
    """Time and memory of one export."""

    seconds: float
    seconds_on_disk: float
    peak_gb: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, on the disk after {self.seconds_on_disk:.1f} s, peak {self.peak_gb:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", choices=tuple(SHAPES), default=list(SIZES), metavar="NAME", help="model shapes"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE", help="(default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="a folder with enough space (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=RESULTS / "checkpoints", help="the folder for the results")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
            _report(size, Path(folder), sides=["cp", *arguments.sides], repeats=arguments.repeats, out=arguments.out)


def _report(size: str, folder: Path, *, sides: list[str], repeats: int, out: Path) -> None:
    shape = dict(SHAPES[size])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    actor = write_random_checkpoint(folder / "global_step_1", config, world_size=WORLD_SIZE)
    embedded_tokenizer().save_pretrained(actor / "huggingface")
    num_bytes = sum(path.stat().st_size for path in actor.glob("*.pt"))
    print(f"\n{size}: {num_bytes / 1e9:.2f} GB in {WORLD_SIZE} shards, {repeats} times")
    costs: dict[str, list[Cost]] = {}
    for repeat in range(repeats):
        for side, command in _commands(actor, folder, num_bytes).items():
            if side not in sides:
                continue
            costs.setdefault(side, []).append(cost := _measure(command))
            print(f"{size} {repeat + 1}/{repeats} {side}: {cost}", file=sys.stderr, flush=True)
        if not repeat:
            compared = _compare(folder)
        for side in costs:
            shutil.rmtree(folder / side)
    medians = {
        side: {name: median(getattr(cost, name) for cost in measured) for name in Cost.__dataclass_fields__}
        for side, measured in costs.items()
    }
    print("| | seconds | on the disk | of cp's | peak GB |\n|---|---|---|---|---|")
    cp = medians["cp"]["seconds"]
    for side, values in medians.items():
        seconds, on_disk, peak = values.values()
        print(f"| {side} | {seconds:.1f} | {on_disk:.1f} | {seconds / cp:.2f} | {peak:.2f} |", flush=True)
    write_record(
        out / f"{size}.json",
        packages=("safetensors",),
        settings={"size": size, "ranks": WORLD_SIZE, "repeats": repeats, "checkpoint_bytes": num_bytes},
        raw={side: [asdict(cost) for cost in measured] for side, measured in costs.items()},
        derived={"medians": medians, "equal_bit_for_bit": compared},
    )


def _commands(actor: Path, folder: Path, num_bytes: int) -> dict[str, list[str]]:
    """Return the command of each side that this machine has enough memory for."""
    python = sys.executable
    merger = [python, "-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(actor)]
    commands = {
        "cp": ["cp", "-r", str(actor), str(folder / "cp")],
        "ours": [python, EXPORT, str(actor), str(folder / "ours")],
        "ours_bf16": [python, EXPORT, str(actor), str(folder / "ours_bf16"), "--dtype", "bf16"],
        "verl": [*merger, "--target_dir", str(folder / "verl")],
        "plain": [python, PLAIN, str(actor), str(folder / "plain")],
    }
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _cached_bytes()
    return {
        side: command for side, command in commands.items() if LOADING_EVERYTHING.get(side, 0) * num_bytes + 2e9 < free
    }


def _measure(command: list[str]) -> Cost:
    os.sync()
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True)
    syncing = time.perf_counter()
    os.sync()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    seconds, peak_kb = map(float, done.stdout.split()[-2:])
    return Cost(seconds, seconds + time.perf_counter() - syncing, peak_kb * 1024 / 1e9)


def _compare(folder: Path) -> dict[str, bool]:
    """Return for each measured pair of sides whether both wrote the same tensors."""
    outcomes = {}
    for one, other in (("ours", "plain"), ("ours_bf16", "verl")):
        if not ((folder / one).is_dir() and (folder / other).is_dir()):
            continue
        ours, theirs = read_safetensors(folder / one), read_safetensors(folder / other)
        same = ours.keys() == theirs.keys() and all(same_values(ours[name], theirs[name]) for name in ours)
        print(f"{one} and {other}: {len(ours)} tensors, {'bit for bit the same' if same else 'DIFFERENT'}")
        outcomes[f"{one} and {other}"] = same
    return outcomes


def _cached_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["Cached"].split()[0]) * 1024


if __name__ == "__main__":
    main()
