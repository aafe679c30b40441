"""Compare the time of a GRPO step with stock verl, TRL, and plain vLLM with plain torch, on one GPU.

python benchmarks/train_step.py small --model models/SmolLM2-135M-Instruct
python benchmarks/train_step.py large --model /tmp/qwen2.5-1.5b-shape --sides ours plain_baseline

`small` has 64 prompts x 8 samples of up to 64 tokens. `large` has 32 prompts of about 256 tokens x 8 samples of exactly
1,024 tokens, for a model of 1.5B that utils/make_random_model.py makes. All sides get the same prompts. The learning
rate is so small that the policy does not change. A side with a result is not run again. TRL breaks verl's imports if
both are installed in one place. Install TRL with `pip install --no-deps --target DIR`, and name DIR by --trl-path.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from record import COMMAND_VARIABLE, RESULTS, command, read_record, write_record
from sides.common import update_flops

from rgtrain.config.composition import register_plugins
from rgtrain.machine.environment import fix_hash_seed
from rgtrain.paths import CONFIGS, PROJECT_ROOT
from rgtrain.tables import text_table

SIDES = ("ours", "stock_verl", "trl_grpo", "plain_baseline")
MAX_PROMPTS_PER_STEP = 64
COLUMNS = (
    *("step_s", "generate_s", "update_s", "sync_weights_s", "first_step_after_s"),
    *("new_tokens_per_s", "mean_response_length", "update_tflops", "of_matmul"),
)


@dataclass(frozen=True)
class Case:
    """Sizes that all sides share, overrides for the prompts, and options of single sides."""

    sizes: tuple[str, ...]
    prompts: tuple[str, ...]
    extra: dict[str, tuple[str, ...]] = field(default_factory=dict)


CASES = {
    "small": Case(
        sizes=("--batch-size", "64", "--group-size", "8", "--max-tokens", "64"),
        prompts=("data.prompt.num_examples=0",),
        extra={
            "stock_verl": ("--micro-batch", "64"),
            "trl_grpo": ("--micro-batch", "256"),
            "plain_baseline": ("--micro-batch", "64", "128", "256"),
        },
    ),
    "large": Case(
        sizes=("--batch-size", "32", "--group-size", "8", "--max-tokens", "1024", "--ignore-eos"),
        prompts=("data.prompt.num_examples=3",),
        extra={
            # As the published experiments train, with eager vLLM, micro-batches of a fixed size, and checkpointing.
            "stock_verl": ("--micro-batch", "8", "--checkpointing", "actor_rollout_ref.rollout.enforce_eager=true"),
            "trl_grpo": ("--micro-batch", "8", "--checkpointing", "--sleep"),
            "plain_baseline": ("--micro-batch", "8", "16", "--checkpointing"),
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES, help="the sizes")
    parser.add_argument("--model", required=True, help="a Hugging Face model folder")
    parser.add_argument("--out", type=Path, help="the folder for the results (default: results/train_step/CASE here)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="(default: all)")
    parser.add_argument("--steps", type=int, default=13, help="training steps (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps left out of the medians (default: %(default)s)")
    parser.add_argument(
        "--micro-batch", type=int, nargs="+", metavar="N", help="the micro-batch sizes that plain_baseline tries"
    )
    parser.add_argument("--trl-path", help="the folder that TRL is installed in")
    arguments = parser.parse_args()
    arguments.out = arguments.out or RESULTS / "train_step" / arguments.case
    work(arguments).mkdir(parents=True, exist_ok=True)
    case = CASES[arguments.case]
    write_prompts(arguments, case)
    failed = [side for side in arguments.sides if not run_side(side, arguments, case)]
    print(table(arguments.out))
    sys.exit(f"failed: {', '.join(failed)}; see {work(arguments)}/SIDE.log" if failed else 0)


def work(arguments: argparse.Namespace) -> Path:
    """Return the folder for logs and prompts, which are not published."""
    return arguments.out / "work"


def write_prompts(arguments: argparse.Namespace, case: Case) -> None:
    """Write the prompts of our first steps, as token ids and as messages, unless there are enough already."""
    num_prompts = arguments.steps * MAX_PROMPTS_PER_STEP
    written = work(arguments) / "prompts.json"
    if written.is_file() and len(json.loads(written.read_text())) >= num_prompts:
        return
    from transformers import AutoTokenizer

    from rgtrain.training.dataset import TRAIN, ReasoningGymDataset

    register_plugins()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("quickstart", overrides=list(case.prompts))
    OmegaConf.set_struct(config, False)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    dataset = ReasoningGymDataset(TRAIN, tokenizer=tokenizer, config=config.data)
    rows = [dataset[i] for i in range(num_prompts)]
    prompts = [row["extra_info"]["prompt_ids"] for row in rows]
    write_json(written, prompts)
    write_json(work(arguments) / "messages.json", [row["raw_prompt"] for row in rows])
    lengths = list(map(len, prompts))
    derived = {"mean": fmean(lengths), "max": max(lengths)}
    write_record(arguments.out / "prompt_lengths.json", raw={"tokens": lengths}, derived=derived)


def run_side(side: str, arguments: argparse.Namespace, case: Case) -> bool:
    """Run `side` unless it has a result, and return whether it has one now."""
    result = arguments.out / f"{side}.json"
    if result.is_file():
        return True
    words = [sys.executable, str(PROJECT_ROOT / "benchmarks" / "sides" / f"{side}.py"), "--out", str(result)]
    words += ["--model", arguments.model, *case.sizes]
    words += ["--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
    environment = os.environ | {COMMAND_VARIABLE: command()}
    if side != "ours":
        words += ["--prompts", str(work(arguments) / "prompts.json")]
    if side == "stock_verl":
        words += ["--messages", str(work(arguments) / "messages.json")]
    if side == "trl_grpo" and arguments.trl_path:
        environment |= with_trl(arguments.trl_path)
    words += case.extra.get(side, ())
    if arguments.micro_batch and side == "plain_baseline":
        words += ["--micro-batch", *map(str, arguments.micro_batch)]
    if side == "ours":
        words += case.prompts
    print(f"{side}: {' '.join(words)}", flush=True)
    with (work(arguments) / f"{side}.log").open("w") as log:
        return subprocess.run(words, stdout=log, stderr=log, env=environment).returncode == 0 and result.is_file()


def with_trl(folder: str) -> dict[str, str]:
    """Return the environment variable by which a process finds TRL in its folder."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))}


def table(folder: Path) -> str:
    """Return a table of all results in `folder`: medians in seconds, and our step divided by each side's.

    `update_tflops` counts the operations of an update with one copy of the prompt per response. It ignores whether a
    side shares prompts or recomputes activations. `of_matmul` divides it by the GPU's rate in a large bf16 product,
    which plain_baseline.py measures.
    """
    medians = all_medians(folder)
    ours = medians.get("ours", {}).get("step_s")
    rows = [
        [
            side,
            *(f"{values[name]:.3g}" if name in values else "" for name in COLUMNS),
            _share(ours, values.get("step_s")),
        ]
        for side, values in medians.items()
    ]
    return text_table(["side", *COLUMNS, "ours / side"], rows)


def all_medians(folder: Path) -> dict[str, dict[str, float]]:
    """Return the medians of each side with a result in `folder`, and the rates of its update."""
    results = {side: read_record(path) for side in SIDES if (path := folder / f"{side}.json").is_file()}
    prompt_length = read_record(folder / "prompt_lengths.json")["derived"]["mean"]
    rate = results.get("plain_baseline", {}).get("derived", {}).get("matmul_tflops")
    return {side: _with_rates(result, prompt_length, rate) for side, result in results.items()}


def _with_rates(result: dict[str, Any], prompt_length: float, matmul_tflops: float | None) -> dict[str, float]:
    """Return the medians with the update's rate at the median response length and the mean prompt length."""
    derived, settings = result["derived"], result["settings"]
    medians = dict(derived["medians"]) | {name: derived[name] for name in COLUMNS if name in derived}
    if "update_s" in medians:
        num_samples = settings["batch_size"] * settings["group_size"]
        lengths = [prompt_length] * num_samples, [medians["mean_response_length"]] * num_samples
        medians["update_tflops"] = update_flops(settings["model_shape"], *lengths) / medians["update_s"] / 1e12
        if matmul_tflops:
            medians["of_matmul"] = medians["update_tflops"] / matmul_tflops
    return medians


def _share(ours: float | None, other: float | None) -> str:
    return f"{ours / other:.2f}" if ours and other else ""


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    fix_hash_seed()
    main()
