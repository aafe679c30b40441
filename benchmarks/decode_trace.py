r"""Trace decoding steps on one GPU: their time by the number of sequences, how long the GPU is busy, and its kernels.

python benchmarks/decode_trace.py --model models/qwen2.5-1.5b-shape --name default
python benchmarks/decode_trace.py --model models/qwen2.5-1.5b-shape --name compiled \
    actor_rollout_ref.rollout.engine_kwargs.vllm.compilation_config.mode=3

Builds vLLM as a training worker does, and decodes groups of eight sequences with prompts of 272 tokens. The time of a
step is the mean of 100 steps after 300 generated tokens. A result is written to benchmarks/results/decode_trace/, and a
table of all results is printed. key=value words are settings of train_grpo.py. Without a GPU, only the time is
measured.
"""

import argparse
import asyncio
import collections
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, read_record, write_record

from rgtrain.tables import text_table

OUT = RESULTS / "decode_trace"
GROUP_SIZE, PROMPT_TOKENS = 8, 272
COLUMNS = ("sequences", "step_ms", "gpu_busy_ms", "kernels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face model folder")
    parser.add_argument("--name", required=True, help="the name of the result")
    parser.add_argument("--sequences", type=int, nargs="+", default=[64, 128, 256, 512], help="(default: %(default)s)")
    parser.add_argument("--first-token", type=int, default=300, help="tokens before the first measured step")
    parser.add_argument("--steps", type=int, default=100, help="measured steps (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of train_grpo.py")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        rollout = build_rollout(arguments, folder)
        measured = [decode(rollout, number, arguments) for number in arguments.sequences]
    steps = [{name: row[name] for name in COLUMNS} for row in measured]
    write_record(OUT / f"{arguments.name}.json", raw=measured, derived={"steps": steps}, settings=vars(arguments))
    print(table(sorted(OUT.glob("*.json"))), flush=True)
    # After a trace of CUDA graphs, the process would not end by itself.
    os._exit(0)


def build_rollout(arguments: argparse.Namespace, folder: str) -> Any:
    """Return the engine of a run with one GPU, as a training worker builds it, with the model's weights."""
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(environment)
    if not torch.cuda.is_available():
        os.environ.update(VERL_USE_EXTERNAL_MODULES="rgtrain.upstream.on_cpu", VERL_PLATFORM="cpu")
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass

    from rgtrain.config.composition import checked_config, register_plugins
    from rgtrain.machine.vllm_settings import vllm_environment
    from rgtrain.paths import CONFIGS

    os.environ.update(vllm_environment())
    register_plugins()
    actor_rollout_ref = "actor_rollout_ref"
    overrides = [
        "trainer.experiment_name=decode_trace",
        "trainer.n_gpus_per_node=1",
        f"{actor_rollout_ref}.model.path={Path(arguments.model).absolute()}",
        f"{actor_rollout_ref}.rollout.load_format=auto",
        f"{actor_rollout_ref}.rollout.ignore_eos=true",
        f"{actor_rollout_ref}.rollout.enable_sleep_mode=false",
        f"{actor_rollout_ref}.rollout.free_cache_engine=false",
        f"data.max_response_length={arguments.first_token + arguments.steps + 32}",
        "data.max_prompt_length=512",
        *arguments.overrides,
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = checked_config(compose("quickstart", overrides=overrides)).actor_rollout_ref
    OmegaConf.set_struct(config, False)
    config.model.load_tokenizer = False
    from rgtrain.upstream import in_worker  # noqa: F401

    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
    )
    from rgtrain.training.rollout.vllm_rollout import VllmRollout

    return VllmRollout(omega_conf_to_dataclass(config.rollout), omega_conf_to_dataclass(config.model), None)


def decode(rollout: Any, num_sequences: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the mean time of a decoding step in milliseconds, and a trace of about ten steps."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(generate(rollout, num_sequences))

    def advance(num_steps: int) -> int:
        """Step the engine at least so many times, and return how many times it was."""
        first = rollout._num_steps
        while rollout._num_steps < first + num_steps:
            loop.run_until_complete(asyncio.sleep(0))
        return rollout._num_steps - first

    advance(arguments.first_token)
    synchronize()
    started = time.perf_counter()
    num_steps = advance(arguments.steps)
    synchronize()
    step_ms = (time.perf_counter() - started) / num_steps * 1e3
    row = {"sequences": num_sequences, "step_ms": step_ms, "gpu_busy_ms": 0.0, "kernels": 0}
    if torch.cuda.is_available():
        row |= trace(advance)
    loop.run_until_complete(task)
    loop.close()
    return row


async def generate(rollout: Any, num_sequences: int) -> None:
    """Generate groups of responses to random prompts."""
    from rgtrain.training.rollout.groups import PartKey, PartRequest

    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1000, 30000, (num_sequences // GROUP_SIZE, PROMPT_TOKENS), generator=generator).tolist()
    parts = [PartRequest(PartKey(f"group-{number}", 0), GROUP_SIZE, ids) for number, ids in enumerate(prompts)]
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
    await rollout.generate(
        parts, sampling, number=rollout._num_calls, seed=0, finished=lambda groups, completions: None
    )


def trace(advance: Callable[[int], int]) -> dict[str, Any]:
    """Return the time in which the GPU is busy, and its kernels, per step."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        num_steps = advance(10)
        synchronize()
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    intervals = []
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            seconds[event.name].append(event.time_range.elapsed_us() / 1e3 / num_steps)
            intervals.append((event.time_range.start, event.time_range.end))
    busy, last = 0.0, float("-inf")
    for start, end in sorted(intervals):
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    most = sorted(seconds.items(), key=lambda item: -sum(item[1]))[:25]
    return {
        "gpu_busy_ms": busy / 1e3 / num_steps,
        "kernels": len(intervals) / num_steps,
        "most": [[name[:110], len(each) / num_steps, sum(each)] for name, each in most],
    }


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(paths: list[Path]) -> str:
    """Return a text table of results."""
    records = {path.stem: read_record(path)["derived"]["steps"] for path in paths}
    rows = [[name, *(f"{row[column]:.3g}" for column in COLUMNS)] for name, steps in records.items() for row in steps]
    return text_table(["name", *COLUMNS], rows)


if __name__ == "__main__":
    main()
