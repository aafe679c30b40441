r"""Measure how a training step scales with the number of GPUs of one machine.

python benchmarks/scaling.py --models DIR                    # all cases that this machine has enough GPUs for
python benchmarks/scaling.py --models DIR --cases 1.5b_1gpu_64 1.5b_4gpu_256
CUDA_VISIBLE_DEVICES=2 python benchmarks/scaling.py --models DIR --cases 1.5b_1gpu_64 --variant sleep \
    actor_rollout_ref.rollout.free_cache_engine=true

A case is named by its model, its number of GPUs and its prompts per step, with eight responses each. Prompts have about
270 tokens. All responses have 1,024 tokens, except in the cases `tailed`. Their lengths have this mean, are about
geometrically distributed, and are cut at 4,096. The models have random weights and the shapes of Qwen2.5, and are made
in DIR. A case with a result is not run again.

The case of TRL needs `--trl-path`, the folder that TRL is installed in (see train_step.py). Without it, the case is
left out. It has the settings of TRL in `train_step.py large`.

`--variant NAME` stores the result beside the case's own. Use it to compare other settings or another commit.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train_step
from record import COMMAND_VARIABLE, RESULTS, command, read_record

from rgtrain.machine.devices import num_gpus
from rgtrain.machine.environment import fix_hash_seed
from rgtrain.paths import PROJECT_ROOT
from rgtrain.tables import text_table

GROUP_SIZE = 8
MEAN_TOKENS, MAX_TAILED_TOKENS = 1024, 4096
COLUMNS = ("step_s", "generate_s", "update_s", "sync_weights_s")


@dataclass(frozen=True)
class ScalingCase:
    """One setting.

    Attributes:
        model: The size of the model, which names a shape of Qwen2.5.
        num_gpus: The number of GPUs.
        num_prompts: Prompts per step.
        kind: `equal` or `tailed` lengths, `lora`, or `tpN` for an engine over N GPUs. `stock_verl` runs verl without
            this project, and `trl` runs TRL.
    """

    model: str
    num_gpus: int
    num_prompts: int
    kind: str = "equal"

    @property
    def name(self) -> str:
        """The case's name on the command line and in the results."""
        suffix = "" if self.kind == "equal" else f"_{self.kind}"
        return f"{self.model}_{self.num_gpus}gpu_{self.num_prompts}{suffix}"


CASES = {
    case.name: case
    for case in (
        *(ScalingCase("1.5b", number, 64) for number in (1, 2, 4, 8)),
        *(ScalingCase("1.5b", number, 64 * number) for number in (2, 4, 8)),
        ScalingCase("1.5b", 2, 64, "lora"),
        ScalingCase("1.5b", 4, 64, "tailed"),
        ScalingCase("1.5b", 4, 64, "trl"),
        ScalingCase("3b", 1, 32),
        ScalingCase("3b", 4, 32),
        ScalingCase("3b", 4, 32, "stock_verl"),
        ScalingCase("7b", 4, 32),
        ScalingCase("7b", 4, 32, "tp2"),
        ScalingCase("7b", 4, 32, "tp4"),
        ScalingCase("7b", 8, 64),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, type=Path, help="the folder of the models")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, metavar="CASE", help="(default: all that this machine can)"
    )
    parser.add_argument("--out", default=RESULTS / "scaling", type=Path, help="the folder for the results")
    parser.add_argument("--steps", type=int, default=7, help="training steps (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps left out of the medians (default: %(default)s)")
    parser.add_argument("--variant", help="the name of the variant that the key=value words make")
    parser.add_argument("--trl-path", help="the folder that TRL is installed in")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="further settings of train_grpo.py")
    arguments = parser.parse_intermixed_args()
    if arguments.overrides and not arguments.variant:
        parser.error("key=value words change a case; name the result by --variant")
    names = chosen_cases(arguments, parser)
    train_step.work(arguments).mkdir(parents=True, exist_ok=True)
    failed = [name for name in names if not run_case(CASES[name], arguments)]
    print(table(read_results(arguments.out)))
    sys.exit(f"failed: {', '.join(failed)}; see {train_step.work(arguments)}/CASE.log" if failed else 0)


def chosen_cases(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of the cases to run. Exits if TRL was asked for but cannot run."""
    names = arguments.cases or [name for name, case in CASES.items() if case.num_gpus <= num_gpus()]
    reason = None
    if not arguments.trl_path:
        reason = "it needs --trl-path, the folder that TRL is installed in"
    elif arguments.overrides:
        reason = "key=value words are settings of train_grpo.py, which TRL does not take"
    of_trl = [name for name in names if CASES[name].kind == "trl"]
    if not reason or not of_trl:
        return names
    if arguments.cases:
        parser.error(f"{of_trl[0]} cannot run: {reason}")
    print(f"{', '.join(of_trl)} is left out: {reason}", flush=True)
    return [name for name in names if name not in of_trl]


def run_case(case: ScalingCase, arguments: argparse.Namespace) -> bool:
    """Run a case unless it has a result, and return whether it has one now."""
    stem = f"{case.name}+{arguments.variant}" if arguments.variant else case.name
    result = arguments.out / f"{stem}.json"
    if result.is_file():
        return True
    words = [*side_command(case, arguments), "--out", str(result)]
    environment = os.environ | {COMMAND_VARIABLE: command()}
    if case.kind == "trl":
        environment |= train_step.with_trl(arguments.trl_path)
    print(f"{stem}: {' '.join(words)}", flush=True)
    with (train_step.work(arguments) / f"{stem}.log").open("w") as log:
        return subprocess.run(words, stdout=log, stderr=log, env=environment).returncode == 0 and result.is_file()


def side_command(case: ScalingCase, arguments: argparse.Namespace) -> list[str]:
    """Return the command that measures a case, without its output file."""
    tokens = MAX_TAILED_TOKENS if case.kind == "tailed" else MEAN_TOKENS
    side = {"stock_verl": "stock_verl", "trl": "trl_grpo"}.get(case.kind, "ours")
    words = [sys.executable, str(PROJECT_ROOT / "benchmarks" / "sides" / f"{side}.py")]
    words += ["--model", str(model_folder(case, arguments.models)), "--batch-size", str(case.num_prompts)]
    words += ["--group-size", str(GROUP_SIZE), "--max-tokens", str(tokens)]
    words += ["--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
    words += [] if case.kind == "tailed" else ["--ignore-eos"]
    if side == "stock_verl":
        # As the published experiments train: eager vLLM, small micro-batches of a fixed size, and checkpointing.
        words += ["--gpus", str(case.num_gpus), "--micro-batch", "8", "--checkpointing"]
        words += prompt_files(case, arguments)
        return [*words, "actor_rollout_ref.rollout.enforce_eager=true", *arguments.overrides]
    if side == "trl_grpo":
        words += ["--gpus", str(case.num_gpus), *train_step.CASES["large"].extra[side]]
        return [*words, *prompt_files(case, arguments)]
    return [*words, *settings(case), *arguments.overrides]


def settings(case: ScalingCase) -> list[str]:
    """Return the overrides of a case for train_grpo.py."""
    words = [f"trainer.n_gpus_per_node={case.num_gpus}", "data.prompt.num_examples=3"]
    if case.kind == "lora":
        words.append("model=[smollm2_135m,lora]")
    if case.kind.startswith("tp"):
        words.append(f"actor_rollout_ref.rollout.tensor_model_parallel_size={case.kind.removeprefix('tp')}")
    return words


def model_folder(case: ScalingCase, models: Path) -> Path:
    """Return the folder of a case's model, and make the model if it is missing."""
    folder = models / (f"{case.model}-tailed" if case.kind == "tailed" else case.model)
    if not folder.is_dir():
        words = [sys.executable, str(PROJECT_ROOT / "utils/make_random_model.py"), "--like", f"qwen2.5-{case.model}"]
        words += ["--mean-response-tokens", str(MEAN_TOKENS)] if case.kind == "tailed" else []
        subprocess.run([*words, str(folder)], check=True)
    return folder


def prompt_files(case: ScalingCase, arguments: argparse.Namespace) -> list[str]:
    """Write the prompts of our first steps for another side, and return its options."""
    train_step.write_prompts(
        argparse.Namespace(out=arguments.out, steps=arguments.steps, model=str(model_folder(case, arguments.models))),
        train_step.CASES["large"],
    )
    work = train_step.work(arguments)
    messages = ["--messages", str(work / "messages.json")] if case.kind == "stock_verl" else []
    return ["--prompts", str(work / "prompts.json"), *messages]


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results in a folder by case and variant, cases in their order and variants after them."""
    paths = {path.stem: path for path in folder.glob("*.json") if path.stem.partition("+")[0] in CASES}
    order = list(CASES)
    names = sorted(paths, key=lambda name: (order.index(name.partition("+")[0]), name))
    return {name: read_record(paths[name]) for name in names}


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures of each result.

    `strong` and `weak` are the efficiencies against one GPU of the same variant: its time by the number of GPUs and the
    time with the same prompts, or its time by the time with as many prompts per GPU.

    Args:
        results: Result files by name.

    Returns:
        A dictionary per result, with `tokens_per_s_per_gpu` for the whole step.
    """
    found = []
    for name, result in results.items():
        case, variant = CASES[name.partition("+")[0]], name.partition("+")[2]
        medians = result["derived"]["medians"]
        row = {"name": name, "case": case, "variant": variant, **medians}
        row["tokens_per_s_per_gpu"] = medians["num_new_tokens"] / medians["step_s"] / case.num_gpus
        one = results.get(ScalingCase(case.model, 1, 64).name + (f"+{variant}" if variant else ""))
        if one is not None and case.num_gpus > 1 and case.kind == "equal":
            ratio = one["derived"]["medians"]["step_s"] / medians["step_s"]
            if case.num_prompts == 64:
                row["strong"] = ratio / case.num_gpus
            elif case.num_prompts == 64 * case.num_gpus:
                row["weak"] = ratio
        found.append(row)
    return found


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a text table of results."""
    header = ["case", *COLUMNS, "strong", "weak", "tokens/s/GPU"]
    return text_table(header, [cells(row) for row in rows(results)])


def cells(row: Mapping[str, Any]) -> Sequence[str]:
    """Return the cells of a row, as text."""
    # TRL's update is not measured by itself.
    figures = [f"{row[name]:.3g}" if name in row else "" for name in COLUMNS]
    efficiencies = [f"{row[name]:.2f}" if name in row else "" for name in ("strong", "weak")]
    return [row["name"], *figures, *efficiencies, f"{row['tokens_per_s_per_gpu']:,.0f}"]


if __name__ == "__main__":
    fix_hash_seed()
    main()
