r"""Measure GRPO steps of unmodified verl, without this project, on one or more GPUs of one machine.

python benchmarks/sides/stock_verl.py --model DIR --prompts FILE.json --messages FILE.json --batch-size 32 \
    --group-size 8 --max-tokens 64 --steps 13 --warmup 3 --micro-batch 64 --out FILE.json key=value ...

The file of messages holds the chats whose token ids the other sides get. A step is verl's `timing_s/step`, which does
not include metrics and logging. If flash-attn, verl's default, is missing, sdpa is used. The key=value words are passed
to verl.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import add_memory_options, argument_parser, read_prompts, sampler_without_flashinfer, write_result
from ours import step_record

REWARD = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """Return a cheap reward that varies within a group, so that advantages are not all zero."""
    return len(solution_str) % 97 / 97
'''


def main() -> None:
    parser = argument_parser(__doc__)
    add_memory_options(parser)
    parser.add_argument("--messages", required=True, type=Path, help="JSON: a list of chats")
    parser.add_argument("--micro-batch", type=int, default=64, help="sequences per pass")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to use")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of verl")
    arguments = parser.parse_intermixed_args()
    sampler_without_flashinfer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "reward.py").write_text(REWARD)
        write_dataset(arguments, folder / "problems.parquet")
        log = folder / "metrics.jsonl"
        command = [sys.executable, "-u", "-m", "verl.trainer.main_ppo", *settings(arguments, folder)]
        started = time.time()
        subprocess.run(command, check=True, env=os.environ | {"VERL_FILE_LOGGER_PATH": str(log)}, cwd=folder)
        whole = time.time() - started
        steps = [json.loads(line)["data"] for line in log.read_text().splitlines()]
    num_samples = arguments.batch_size * arguments.group_size
    records = [{"step_s": step["timing_s/step"], **step_record(step, num_samples=num_samples)} for step in steps]
    # An upper bound: verl's time of a step does not include logging.
    first = whole - sum(record["step_s"] for record in records[1:])
    write_result(arguments, records, first_step_after_s=first)


def write_dataset(arguments: argparse.Namespace, path: Path) -> None:
    """Write the chats in verl's format, repeated for all steps."""
    import pandas

    chats = json.loads(arguments.messages.read_text(encoding="utf-8"))
    num_rows = arguments.steps * arguments.batch_size
    rows = [
        {
            "prompt": chats[i % len(chats)],
            "data_source": "benchmark",
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": i},
        }
        for i in range(num_rows)
    ]
    pandas.DataFrame(rows).to_parquet(path)


def settings(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Return overrides for verl: GRPO with the given sizes, and verl's defaults for everything else."""
    longest = max(map(len, read_prompts(arguments.prompts)))
    sizes = [
        f"data.train_batch_size={arguments.batch_size}",
        f"data.max_prompt_length={longest}",
        f"data.max_response_length={arguments.max_tokens}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={arguments.batch_size}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={arguments.micro_batch}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={arguments.micro_batch}",
        f"actor_rollout_ref.rollout.n={arguments.group_size}",
        f"actor_rollout_ref.rollout.ignore_eos={str(arguments.ignore_eos).lower()}",
        f"actor_rollout_ref.rollout.gpu_memory_utilization={arguments.vllm_memory}",
        f"actor_rollout_ref.model.enable_gradient_checkpointing={str(arguments.checkpointing).lower()}",
        f"trainer.total_training_steps={arguments.steps}",
    ]
    # flash-attn-4, which verl does not use, is imported under the same name.
    if not list(importlib.metadata.distributions(name="flash-attn")):
        sizes.append("+actor_rollout_ref.model.override_config.attn_implementation=sdpa")
    return [
        f"data.train_files={folder / 'problems.parquet'}",
        f"data.val_files={folder / 'problems.parquet'}",
        "data.shuffle=false",
        f"actor_rollout_ref.model.path={Path(arguments.model).absolute()}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.actor.optim.lr=1e-9",
        "actor_rollout_ref.actor.use_kl_loss=false",
        "algorithm.adv_estimator=grpo",
        f"reward.custom_reward_function.path={folder / 'reward.py'}",
        "reward.custom_reward_function.name=compute_score",
        f"trainer.n_gpus_per_node={arguments.gpus}",
        "trainer.nnodes=1",
        "trainer.logger=[console,file]",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.resume_mode=disable",
        *sizes,
        *arguments.overrides,
    ]


if __name__ == "__main__":
    main()
