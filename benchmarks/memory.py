"""Compare measured peaks of GPU memory with preflight's estimates.

python benchmarks/memory.py

For each setting, train_grpo.py trains a random model of a known shape for three steps with full-length answers.
Meanwhile this process reads the memory in use on the first GPU from the driver every 10 ms. The peaks are taken from
the second and third step: during generation, during the update, and during the whole step, which includes the weight
sync. The file keeps the largest sample of each tenth of a second. A setting with a result is skipped.

--dry-run trains tiny models on a CPU and reads resident memory instead. It only shows that the benchmark runs; its
figures are meaningless.
"""

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from record import RESULTS, read_record, write_record

from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.machine.environment import fix_hash_seed
from rgtrain.models.random_models import make_random_model, make_tiny_model
from rgtrain.paths import PROJECT_ROOT
from rgtrain.preflight.memory import estimate
from rgtrain.preflight.training_model import find_model
from rgtrain.tables import text_table

_ROLLOUT = "actor_rollout_ref.rollout"


@dataclass(frozen=True)
class Setting:
    """A model's shape, the number of groups per micro-batch, and whether adapters and checkpointing are used."""

    shape: str
    groups: int
    lora: bool
    checkpointing: bool


SETTINGS = {
    "135m": Setting("smollm2-135m", groups=8, lora=False, checkpointing=False),
    "135m_lora": Setting("smollm2-135m", groups=8, lora=True, checkpointing=False),
    "1.5b": Setting("qwen2.5-1.5b", groups=4, lora=False, checkpointing=True),
    "1.5b_lora": Setting("qwen2.5-1.5b", groups=4, lora=True, checkpointing=True),
    "135m_checkpointing": Setting("smollm2-135m", groups=8, lora=False, checkpointing=True),
    "1.5b_kept": Setting("qwen2.5-1.5b", groups=2, lora=False, checkpointing=False),
    "1.5b_lora_kept": Setting("qwen2.5-1.5b", groups=2, lora=True, checkpointing=False),
}
PROMPT_TOKENS, RESPONSE_TOKENS, GROUP_SIZE = 256, 512, 8
# Phases are located by their lengths. The gaps between them are at most this long.
SECONDS_BETWEEN_PHASES = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=RESULTS / "memory", type=Path, help="the folder for results (runs: its work/)")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS)[:4], help="(default: the first four)"
    )
    parser.add_argument("--dry-run", action="store_true", help="train tiny models on a CPU")
    arguments = parser.parse_args()
    (arguments.out / "work").mkdir(parents=True, exist_ok=True)
    results = [result_of(name, arguments.out.absolute(), dry_run=arguments.dry_run) for name in arguments.settings]
    print(table(results))


def result_of(name: str, out: Path, *, dry_run: bool) -> dict[str, Any]:
    """Return the result of a setting, measuring it unless there is a file."""
    path, work = out / f"{name}.json", out / "work"
    if not path.is_file():
        run_dir, setting = work / f"run_{name}", SETTINGS[name]
        with Sampler(resident_bytes if dry_run else gpu_bytes_in_use) as sampler:
            command = command_of(setting, model_of(setting, work, dry_run=dry_run), run_dir, dry_run=dry_run)
            subprocess.run(command, check=True, stdout=(work / f"{name}.log").open("w"), stderr=subprocess.STDOUT)
        raw, derived = compared(run_dir, sampler, dry_run=dry_run)
        settings = asdict(setting) | {"name": name, "prompt": PROMPT_TOKENS, "response": RESPONSE_TOKENS}
        write_record(path, settings=settings, raw=raw, derived=derived, packages=("peft",))
    return read_record(path)["derived"] | {"setting": name}


def model_of(setting: Setting, out: Path, *, dry_run: bool) -> Path:
    if dry_run:
        return make_tiny_model(out / "tiny")
    path = out / setting.shape
    return path if path.exists() else make_random_model(path, like=setting.shape)


def command_of(setting: Setting, model: Path, run_dir: Path, *, dry_run: bool) -> list[str]:
    response, groups = (16, 2) if dry_run else (RESPONSE_TOKENS, setting.groups)
    hardware = "cpu" if dry_run else "gpu"
    model_choice = "[smollm2_135m,lora]" if setting.lora else "smollm2_135m"
    vllm = str(not dry_run).lower()
    return [
        *(sys.executable, "-u", str(PROJECT_ROOT / "train_grpo.py"), "--config-name", "quickstart"),
        *(f"hardware={hardware}", f"model={model_choice}", f"run_dir={run_dir}"),
        f"actor_rollout_ref.model.path={model}",
        f"actor_rollout_ref.model.enable_gradient_checkpointing={str(setting.checkpointing).lower()}",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={groups * (PROMPT_TOKENS + GROUP_SIZE * response)}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={4 * groups}",
        *(f"{_ROLLOUT}.n={GROUP_SIZE}", f"{_ROLLOUT}.ignore_eos=true", f"{_ROLLOUT}.gpu_memory_utilization=0.3"),
        *(f"{_ROLLOUT}.free_cache_engine={vllm}", f"{_ROLLOUT}.enable_sleep_mode={vllm}"),
        *(f"data.train_batch_size={4 * groups}", f"data.max_prompt_length={PROMPT_TOKENS}"),
        *(f"data.max_response_length={response}", "trainer.total_training_steps=3", "trainer.save_freq=-1"),
    ]


def compared(run_dir: Path, sampler: "Sampler", *, dry_run: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the samples and the lengths of the phases, and the measured and estimated bytes of each phase."""
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    pairs = list(itertools.pairwise(steps))
    config = RunConfig.of(yaml.safe_load((run_dir / "config.yaml").read_text()))
    size = find_model(config).size
    assert size is not None
    total = 80e9 if dry_run else gpu_bytes_total()
    estimated = estimate(size, TrainingSettings.of(config), gpu_bytes=total)
    peaks = {
        "training": [sampler.while_updating(pair) for pair in pairs],
        "generating": [sampler.while_generating(pair) for pair in pairs],
        "whole step": [sampler.in_step(pair) for pair in pairs],
    }
    estimates = {"training": estimated.training, "generating": estimated.generating, "whole step": estimated.peak}
    raw = {
        "peaks": peaks,
        # Seconds since the first sample.
        "step_ends": [step["time"] - sampler.samples[0][0] for step in steps],
        "steps": [{name: step[name] for name in step if "timing_s" in name} for step in steps],
        "samples": thinned(sampler.samples),
        "base_bytes": sampler.first,
        "allocated_by_torch_gb": [step.get("actor/perf/max_memory_allocated_gb") for step in steps],
        "reserved_by_torch_gb": [step.get("actor/perf/max_memory_reserved_gb") for step in steps],
        "prompt_tokens_mean": steps[-1]["prompt_length/mean"],
    }
    phases = {name: {"measured": max(peaks[name]), "estimated": estimates[name]} for name in peaks}
    return raw, {"gpu_bytes": total, **phases, "parts": dict(estimated.parts)}


def thinned(samples: Sequence[tuple[float, float]], every_s: float = 0.1) -> list[list[float]]:
    """Return seconds since the first sample and bytes of the largest sample per `every_s` seconds."""
    largest: dict[int, float] = {}
    for moment, value in samples:
        slot = int((moment - samples[0][0]) / every_s)
        largest[slot] = max(value, largest.get(slot, 0.0))
    return [[round(slot * every_s, 1), value] for slot, value in largest.items()]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return a table of measured and estimated GB and their difference."""
    rows = []
    for result in results:
        for phase in ("training", "generating", "whole step"):
            measured, estimated = (result[phase][name] for name in ("measured", "estimated"))
            off = f"{100 * (estimated / measured - 1):+.0f} %"
            rows.append([result["setting"], phase, f"{measured / 1e9:.2f}", f"{estimated / 1e9:.2f}", off])
    return text_table(["setting", "phase", "measured, GB", "estimated, GB", "difference"], rows, num_left=2)


Steps = tuple[dict[str, Any], dict[str, Any]]


class Sampler:
    """Reads a number of bytes every 10 ms in a separate thread within its block."""

    def __init__(self, read: Callable[[], float]):
        self._read = read
        self.samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Sampler":
        # The first reading can take seconds.
        self.samples.append((time.time(), self._read()))
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self.samples.append((time.time(), self._read()))

    @property
    def first(self) -> float:
        """The bytes in use before the run."""
        return self.samples[0][1]

    def while_generating(self, steps: Steps) -> float:
        """Return the peak during the later step's generation; `steps` are the metrics of two consecutive steps."""
        before, step = steps
        return self._peak(before["time"] + SECONDS_BETWEEN_PHASES, before["time"] + step["timing_s/gen"])

    def while_updating(self, steps: Steps) -> float:
        """Return the peak during the later step's update; after it, vLLM allocates its memory again."""
        before, step = steps
        began = before["time"] + sum(step.get(f"timing_s/{phase}", 0) for phase in ("gen", "old_log_prob", "adv"))
        return self._peak(began + SECONDS_BETWEEN_PHASES, began + step["timing_s/update_actor"])

    def in_step(self, steps: Steps) -> float:
        """Return the peak during the later step."""
        return self._peak(steps[0]["time"], steps[1]["time"])

    def _peak(self, began: float, ended: float) -> float:
        return max(value for moment, value in self.samples if began <= moment <= ended)


def gpu_bytes_in_use() -> float:
    """Return the bytes in use by all processes on the first GPU, as its driver counts them."""
    nvml, device = _first_gpu()
    return float(nvml.nvmlDeviceGetMemoryInfo(device).used)


def gpu_bytes_total() -> float:
    """Return the bytes of memory of the first GPU."""
    nvml, device = _first_gpu()
    return float(nvml.nvmlDeviceGetMemoryInfo(device).total)


@cache
def _first_gpu() -> tuple[Any, Any]:
    # NVML's own package is not part of the CUDA stack, but vLLM contains it.
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)


def resident_bytes() -> float:
    """Return the resident bytes of this process's descendants."""
    import psutil

    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    fix_hash_seed()
    main()
