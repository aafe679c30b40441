"""Trace an update on one GPU: its time, how long the GPU is busy, its kernels, and the lines that wait for the GPU.

python benchmarks/update_trace.py --model models/qwen2.5-1.5b-shape --name torch_16384
python benchmarks/update_trace.py --model models/SmolLM2-135M-Instruct --name small --prompts 8 --tokens 64

Builds the actor of a run as a worker does, without vLLM, and updates it with random tokens. The first update is a
warm-up. A result is written to benchmarks/results/update_trace/NAME.json, and a table of all results is printed.
key=value words are settings of train_grpo.py. Without a GPU, only the time is measured.
"""

import argparse
import collections
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, read_record, write_record

from rgtrain.tables import text_table

OUT = RESULTS / "update_trace"
COLUMNS = ("update_s", "gpu_busy_s", "gpu_busy_share", "micro_batches", "kernels_per_micro_batch", "waits", "peak_gb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face model folder")
    parser.add_argument("--name", required=True, help="the name of the result")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of an update (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=8, help="answers per prompt (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=272, help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens per answer (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=16384, help="tokens per micro-batch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measured updates (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of train_grpo.py")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        worker = build_actor(arguments, folder)
        seconds = [update(worker, arguments) for _ in range(1 + arguments.repeats)]
        derived = {"first_update_s": seconds[0], "update_s": statistics.median(seconds[1:])}
        raw: dict[str, Any] = {"update_s": seconds}
        if torch.cuda.is_available():
            raw |= {"kernels": trace(worker, arguments, derived), "waits": waits(worker, arguments)}
            derived["waits"] = sum(raw["waits"].values())
            derived["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    write_record(OUT / f"{arguments.name}.json", raw=raw, derived=derived, settings=vars(arguments))
    print(table(sorted(OUT.glob("*.json"))))


def build_actor(arguments: argparse.Namespace, folder: str) -> Any:
    """Return the actor of a run with one GPU, as verl's worker builds it."""
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if not torch.cuda.is_available():
        environment |= {"VERL_USE_EXTERNAL_MODULES": "rgtrain.upstream.on_cpu", "VERL_PLATFORM": "cpu"}
    os.environ.update(environment, DIST_INIT_METHOD=f"file://{folder}/rendezvous")
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from rgtrain.config.composition import checked_config, register_plugins
    from rgtrain.paths import CONFIGS
    from rgtrain.upstream import in_worker  # noqa: F401

    register_plugins()
    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    overrides = [
        "trainer.experiment_name=update_trace",
        "trainer.n_gpus_per_node=1",
        f"{model}.path={Path(arguments.model).absolute()}",
        f"{model}.enable_gradient_checkpointing=false",
        f"{actor}.ppo_max_token_len_per_gpu={arguments.budget}",
        f"{actor}.optim.lr=1e-9",
        *arguments.overrides,
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = checked_config(compose("quickstart", overrides=overrides)).actor_rollout_ref
    # Loading the tokenizer takes seconds, and an update does not use it.
    OmegaConf.set_struct(config, False)
    config.model.load_tokenizer = False
    worker = ActorRolloutRefWorker(config=config, role="actor")
    worker.init_model()
    return worker.actor


def update(worker: Any, arguments: argparse.Namespace) -> float:
    """Return the seconds of an update with the samples of a step."""
    from verl.utils import tensordict_utils as tu

    fields = {
        name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in random_rows(arguments).items()
    }
    num_samples = arguments.prompts * arguments.group_size
    settings = {"temperature": 1.0, "global_batch_size": num_samples, "calculate_entropy": False}
    data = tu.get_tensordict(fields, {**settings, "max_token_len_per_gpu": arguments.budget})
    synchronize()
    started = time.perf_counter()
    worker.train_batch(data)
    synchronize()
    return time.perf_counter() - started


def random_rows(arguments: argparse.Namespace) -> dict[str, list[torch.Tensor]]:
    """Return the samples' fields. The log-probabilities are those of a model with random weights, nearly."""
    generator = torch.Generator().manual_seed(0)
    rows = collections.defaultdict(list)
    for _ in range(arguments.prompts):
        prompt = torch.randint(1000, 30000, (arguments.prompt_tokens,), generator=generator)
        for _ in range(arguments.group_size):
            response = torch.randint(1000, 30000, (arguments.tokens,), generator=generator)
            mask = torch.ones(arguments.tokens, dtype=torch.int64)
            log_probs = -11 + 0.1 * torch.randn(arguments.tokens, generator=generator)
            sample = {
                "prompts": prompt,
                "responses": response,
                "input_ids": torch.cat([prompt, response]),
                "position_ids": torch.arange(arguments.prompt_tokens + arguments.tokens),
                "response_mask": mask,
                "loss_mask": mask,
                "advantages": torch.randn(1, generator=generator).repeat(arguments.tokens),
                "old_log_probs": log_probs,
                "rollout_log_probs": log_probs,
            }
            for name, row in sample.items():
                rows[name].append(row)
    return rows


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def trace(worker: Any, arguments: argparse.Namespace, derived: dict[str, Any]) -> list[list[Any]]:
    """Return the 20 kernels that take most time, with counts and seconds, and add totals to `derived`."""
    micro_batches: list[None] = []
    forward_step = worker.engine.forward_step

    def counted(*words: Any, **options: Any) -> Any:
        micro_batches.append(None)
        return forward_step(*words, **options)

    worker.engine.forward_step = counted
    # Without the operators of the CPU, whose recording would slow down Python.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        update(worker, arguments)
    worker.engine.forward_step = forward_step
    intervals, seconds, counts = [], collections.Counter(), collections.Counter()
    for event in profile.profiler.kineto_results.events():
        # Ranges that verl names, such as mini_batch0, span many kernels.
        if event.device_type() == torch.autograd.DeviceType.CUDA and not event.name().startswith(("mini_", "micro_")):
            intervals.append((event.start_ns(), event.start_ns() + event.duration_ns()))
            seconds[event.name()] += event.duration_ns() / 1e9
            counts[event.name()] += 1
    derived["gpu_busy_s"] = union_s(intervals)
    derived["gpu_busy_share"] = derived["gpu_busy_s"] / derived["update_s"]
    derived["micro_batches"] = len(micro_batches)
    derived["kernels_per_micro_batch"] = sum(counts.values()) / len(micro_batches)
    return [[name[:100], counts[name], value] for name, value in seconds.most_common(20)]


def union_s(intervals: Iterable[tuple[int, int]]) -> float:
    """Return the seconds that intervals cover, given in nanoseconds.

    >>> union_s([(0, 10**9), (5 * 10**8, 2 * 10**9)])
    2.0
    """
    total = end = 0
    for start, stop in sorted(intervals):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total / 1e9


def waits(worker: Any, arguments: argparse.Namespace) -> dict[str, int]:
    """Return how often each line of Python waits for the GPU in an update."""
    found: collections.Counter[str] = collections.Counter()

    def show(message: Any, category: Any, filename: str, line: int, *_: Any) -> None:
        if "synchroniz" in str(message):
            found[f"{Path(filename).parent.name}/{Path(filename).name}:{line}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            update(worker, arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(found.most_common())


def table(files: Iterable[Path]) -> str:
    rows = []
    for file in files:
        derived = read_record(file)["derived"]
        rows.append([file.stem, *(f"{derived[name]:.4g}" if name in derived else "" for name in COLUMNS)])
    return text_table(["", *COLUMNS], rows)


if __name__ == "__main__":
    main()
