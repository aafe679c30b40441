r"""Measure GRPO steps of this project, from the end of one step to the end of the next.

python benchmarks/sides/ours.py --model DIR --batch-size 32 --group-size 8 --max-tokens 64 --steps 13 --warmup 3 \
    --out FILE.json key=value ...

Problems are drawn as in any run; `train_step.py` gives the other sides the same prompts. The key=value words are passed
to train_grpo.py. Settings for memory are those that preflight chooses, as in any run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import argument_parser, write_result

ROOT = Path(__file__).parents[2]
_OWN_METRICS = {"rollout_gap": "actor/rollout_gap/mean", "engine_idle_share": "rollout/engine_idle_share"}


def main() -> None:
    parser = argument_parser(__doc__, with_prompts=False)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of train_grpo.py")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", str(ROOT / "train_grpo.py"), "--config-name", "quickstart"]
        command += [f"run_dir={folder}", *settings(arguments)]
        started = time.time()
        subprocess.run(command, check=True)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    ends = [step["time"] for step in steps]
    records = [
        {"step_s": end - before, **step_record(step, num_samples=arguments.batch_size * arguments.group_size)}
        for step, before, end in zip(steps, [started, *ends[:-1]], ends, strict=True)
    ]
    write_result(arguments, records, first_step_after_s=ends[0] - started)


def settings(arguments: argparse.Namespace) -> list[str]:
    """Return the overrides for train_grpo.py: the sizes, a tiny learning rate, and no checkpoints."""
    return [
        f"actor_rollout_ref.model.path={Path(arguments.model).absolute()}",
        f"data.train_batch_size={arguments.batch_size}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={arguments.batch_size}",
        f"actor_rollout_ref.rollout.n={arguments.group_size}",
        f"data.max_response_length={arguments.max_tokens}",
        f"actor_rollout_ref.rollout.ignore_eos={str(arguments.ignore_eos).lower()}",
        "actor_rollout_ref.actor.optim.lr=1e-9",
        f"trainer.total_training_steps={arguments.steps}",
        "trainer.save_freq=-1",
        *arguments.overrides,
    ]


def step_record(step: Mapping[str, Any], *, num_samples: int) -> dict[str, float]:
    """Return verl's metrics of a step by the names that all sides use."""
    num_new_tokens = step["response_length/mean"] * num_samples
    return {
        "generate_s": step["timing_s/gen"],
        "update_s": step["timing_s/update_actor"],
        "sync_weights_s": step["timing_s/update_weights"],
        "mean_response_length": step["response_length/mean"],
        "num_new_tokens": num_new_tokens,
        "new_tokens_per_s": num_new_tokens / step["timing_s/gen"],
        # Only this project measures these, and the idle share only with several engines.
        **{name: step[key] for name, key in _OWN_METRICS.items() if key in step},
    }


if __name__ == "__main__":
    main()
