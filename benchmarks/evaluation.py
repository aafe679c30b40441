"""Measure the speed of evaluations, and check that no answer is lost or doubled under faults.

python benchmarks/evaluation.py [--only SECTION ...]

speed:    answers per second of an evaluation, of vllm.LLM.generate on the same prompts without scoring, and of one
          prompt at a time with scoring, in turn on one engine
start:    seconds from the command to the first answer, compared with a script that only starts vLLM and generates
kills:    an evaluation is killed by SIGKILL at random moments and continued; answers lost, doubled or changed
endpoint: answers lost or doubled if an endpoint fails every fifth request
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from record import RESULTS, write_record

from rgtrain.evaluation.evaluation_config import EvaluationConfig, load_config
from rgtrain.evaluation.evaluation_plan import EvaluationPlan, opened_plan
from rgtrain.evaluation.results import ResultsFolder, read_answers
from rgtrain.evaluation.runner import answer_pending, evaluate
from rgtrain.evaluation.vllm_engine import VllmEngine
from rgtrain.machine.devices import num_gpus
from rgtrain.machine.environment import fix_hash_seed
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import Scorer, extract_answer

DATASETS = (
    *("ab", "base_conversion", "basic_arithmetic", "caesar_cipher", "chain_sum", "count_bits", "decimal_chain_sum"),
    *(
        "fraction_simplification",
        "gcd",
        "isomorphic_strings",
        "lcm",
        "leg_counting",
        "letter_counting",
        "needle_haystack",
    ),
    *("number_sorting", "prime_factorization", "products", "simple_equations", "spell_backward", "word_sorting"),
)
# Raw measurements and the figures derived from them.
Result = tuple[dict[str, Any], dict[str, Any]]
EVALUATE = PROJECT_ROOT / "evaluation" / "evaluate_model.py"
PLAIN_START = """
import json, sys
from rgtrain.evaluation.engine_interface import Prompt, Sampling
from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings
model, dtype, length, prompts = json.load(open(sys.argv[1]))
engine = VllmEngine(VllmSettings(model, dtype, length, seed=0))
next(engine.generate([Prompt([], ids, 1) for ids in prompts], Sampling(16, 0)))
print("first answer", flush=True)
"""


def main() -> None:
    fix_hash_seed()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION", help="(default: all)"
    )
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="a model folder")
    parser.add_argument("--kill-model", help="the model of section kills (default: --model)")
    parser.add_argument("--datasets", type=int, default=len(DATASETS), help="number of datasets")
    parser.add_argument("--problems", type=int, default=50, help="problems per dataset")
    parser.add_argument("--repeats", type=int, default=3, help="answers per problem")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens per answer (default: %(default)s)")
    parser.add_argument("--single", type=int, default=20, help="number of problems that are asked one at a time")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of sections speed and start")
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the folder for the results (default: evaluation_cpu or _gpu)")
    options = parser.parse_args()
    options.out = options.out or RESULTS / ("evaluation_gpu" if num_gpus() else "evaluation_cpu")
    settings = {name: value for name, value in vars(options).items() if name not in ("only", "out")}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            print(f"\n== {name}", flush=True)
            raw, derived = SECTIONS[name](options, Path(folder))
            path = options.out.absolute() / f"{name}.json"
            write_record(path, settings=settings, raw=raw, derived=derived, packages=("openai",))


def write_file(options: argparse.Namespace, folder: Path, **changes) -> Path:
    datasets = [{"dataset": name, "size": options.problems} for name in DATASETS[: options.datasets]]
    values = {
        "model_path": options.model,
        "output_dir": str(folder / "results"),
        "max_tokens": options.max_tokens,
        "temperature": 1.0,
        "eval_repeats": options.repeats,
        "categories": [{"category": "benchmark", "datasets": datasets}],
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


class KeptEngine:
    """An engine that stays open so that several runs can use it in turn."""

    def __init__(self, engine: VllmEngine):
        self.engine = engine
        self.generate = engine.generate

    def close(self) -> None:
        """Leave the engine open."""


def speed(options: argparse.Namespace, folder: Path) -> Result:
    config = load_config(write_file(options, folder), overrides={"data_parallel_size": 1})
    with opened_plan(config) as plan, Scorer(**config.scorer) as scorer:
        kept = KeptEngine(plan.start(0))
        plan = dataclasses.replace(plan, start=lambda seed: kept)
        sides: dict[str, Callable[[], float]] = {
            "evaluation": lambda: run_whole(config, plan, folder),
            "plain generate": lambda: run_plain(config, plan, kept.engine.llm),
            "one at a time": lambda: run_singly(config, plan, kept.engine.llm, scorer, options.single),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(options.rounds + 1):
            for name, side in sides.items():
                kept.engine.llm.reset_prefix_cache()
                rate = side()
                # The first round is a warm-up.
                if round_:
                    rates[name].append(rate)
    for name, values in rates.items():
        print(f"{name}: median {statistics.median(values):.1f} answers/s of {[round(value, 1) for value in values]}")
    ratios = [ours / plain for ours, plain in zip(rates["evaluation"], rates["plain generate"], strict=True)]
    singles = [ours / single for ours, single in zip(rates["evaluation"], rates["one at a time"], strict=True)]
    print(
        f"evaluation / plain generate: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"
    )
    print(
        f"evaluation / one at a time: median {statistics.median(singles):.1f}, {min(singles):.1f} to {max(singles):.1f}"
    )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    shares = {"of_plain_generate": ratios, "of_one_at_a_time": singles}
    spans = {name: [statistics.median(values), min(values), max(values)] for name, values in shares.items()}
    return {"answers_per_s": rates}, {"answers_per_s": medians, **spans}


def run_whole(config: EvaluationConfig, plan: EvaluationPlan, folder: Path) -> float:
    results = ResultsFolder(Path(tempfile.mkdtemp(dir=folder)))
    with results.writing({}) as writer:
        seconds = answer_pending(config, plan, writer)
    # The time that the scorer takes to start is not counted: the engine is open already.
    return len(writer.answers) / seconds["answering"]


def run_plain(config: EvaluationConfig, plan: EvaluationPlan, llm) -> float:
    started = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in plan.token_ids], sampling_params(config))
    return sum(len(output.outputs) for output in outputs) / (time.perf_counter() - started)


def run_singly(config: EvaluationConfig, plan: EvaluationPlan, llm, scorer: Scorer, num_problems: int) -> float:
    chosen = random.Random(0).sample(range(len(plan.prompted)), min(num_problems, len(plan.prompted)))
    params = sampling_params(config, num_samples=1)
    started = time.perf_counter()
    for number in chosen:
        [output] = llm.generate([{"prompt_token_ids": plan.token_ids[number]}], params, use_tqdm=False)
        scorer.score(extract_answer(output.outputs[0].text), plan.prompted[number].problem.entry)
    return len(chosen) / (time.perf_counter() - started)


def sampling_params(config: EvaluationConfig, *, num_samples: int | None = None):
    from vllm import SamplingParams

    num_samples = num_samples or config.num_samples
    return SamplingParams(n=num_samples, temperature=config.temperature, max_tokens=config.max_tokens)


def start(options: argparse.Namespace, folder: Path) -> Result:
    path = write_file(options, folder, temperature=0, max_tokens=16)
    config = load_config(path)
    with opened_plan(config) as plan:
        length = max(map(len, plan.token_ids)) + config.max_tokens
        plain = json.dumps([config.model_path, config.dtype, length, plan.token_ids])
    (folder / "plain.json").write_text(plain)
    seconds: dict[str, list[float]] = {"evaluation": [], "vLLM alone": []}
    for round_ in range(options.rounds):
        results = folder / f"start{round_}"
        command = [sys.executable, str(EVALUATE), "--config", str(path), "--output-dir", str(results)]
        file = load_config(path, overrides={"output_dir": str(results)}).results_folder / "results.jsonl"
        seconds["evaluation"].append(
            seconds_until(command, lambda file=file: file.exists() and file.stat().st_size > 0)
        )
        marker = folder / f"plain{round_}.log"
        command = [sys.executable, "-c", PLAIN_START, str(folder / "plain.json")]
        seconds["vLLM alone"].append(
            seconds_until(command, lambda file=marker: "first answer" in file.read_text(), stdout=marker)
        )
    for name, values in seconds.items():
        print(f"{name}: median {statistics.median(values):.1f} s of {[round(value, 1) for value in values]}")
    beyond = [ours - plain for ours, plain in zip(*seconds.values(), strict=True)]
    print(f"evaluation beyond vLLM: median {statistics.median(beyond):.1f} s, {min(beyond):.1f} to {max(beyond):.1f}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds}, {"seconds": medians, "beyond_vllm_s": statistics.median(beyond)}


def seconds_until(command: Sequence[str], reached: Callable[[], bool], *, stdout: Path = Path(os.devnull)) -> float:
    """Start `command`, wait until `reached` is true, kill it, and return the seconds it took."""
    with stdout.open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.DEVNULL, cwd=PROJECT_ROOT, start_new_session=True
        )
        while not reached():
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with {process.returncode}")
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return seconds


def kills(options: argparse.Namespace, folder: Path) -> Result:
    model = options.kill_model or options.model
    path = write_file(options, folder, model_path=model, temperature=0)
    command = [sys.executable, str(EVALUATE), "--config", str(path), "--output-dir"]
    whole = load_config(path, overrides={"output_dir": str(folder / "whole")}).results_folder
    broken = load_config(path, overrides={"output_dir": str(folder / "broken")}).results_folder
    started = time.perf_counter()
    subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
    undisturbed_s = time.perf_counter() - started
    print(f"undisturbed: {undisturbed_s:.0f} s")
    chance, counts = random.Random(0), [0]
    for _ in range(options.kills):
        # Mostly while answers are written, sometimes before or after the first answers of the process.
        after = counts[-1] + chance.choice([0, 1, 1, 1])
        kill_after([*command, str(folder / "broken")], broken / "results.jsonl", after, chance.uniform(0, 0.15))
        counts.append(len(lines_of(broken / "results.jsonl")))
    print(f"answers after each of {options.kills} kills: {counts[1:]}")
    subprocess.run([*command, str(folder / "broken")], check=True, capture_output=True)
    answers = [(answer.key, answer.completion, answer.score) for answer in read_answers(broken / "results.jsonl")]
    wanted = [(answer.key, answer.completion, answer.score) for answer in read_answers(whole / "results.jsonl")]
    times = Counter(key for key, _, _ in answers)
    lost_while_killed = sum(before > after for before, after in itertools.pairwise(counts))
    print(f"lost while killed: {lost_while_killed}")
    lost, doubled = len({key for key, _, _ in wanted} - times.keys()), len(answers) - len(times)
    print(f"of {len(wanted)} answers lost {lost}, doubled {doubled}")
    changed = sum(ours != theirs for ours, theirs in zip(answers, wanted, strict=True))
    print(f"other than undisturbed: {changed}")
    return {"answers_after_each_kill": counts[1:], "undisturbed_s": undisturbed_s}, {
        "kills": options.kills,
        "answers": len(wanted),
        "lost": lost + lost_while_killed,
        "doubled": doubled,
        "changed": changed,
    }


def kill_after(command: Sequence[str], file: Path, num_lines: int, delay: float) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(lines_of(file)) < num_lines and process.poll() is None:
        time.sleep(0.02)
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def lines_of(file: Path) -> list[bytes]:
    """Return the complete lines, without the one that is being written."""
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def endpoint(options: argparse.Namespace, folder: Path) -> Result:
    # The tests have a server that fails on request.
    sys.path.insert(0, str(PROJECT_ROOT / "tests"))
    from support.chat_server import KEY, MODEL, serving

    os.environ["OPENAI_API_KEY"] = KEY
    with serving(failing=0.2) as server:
        settings = {"base_url": server.base_url, "endpoint": {"timeout_s": 1}, "model_path": f"openai://{MODEL}"}
        config = load_config(write_file(options, folder, **settings))
        started = time.perf_counter()
        answers = read_answers(evaluate(config, command=sys.argv).results)
    wanted = options.repeats * sum(dataset.size for dataset in config.datasets)
    times = Counter(answer.key for answer in answers)
    seconds = time.perf_counter() - started
    failed = f"{server.num_failed} of {server.num_failed + server.num_answered} requests failed"
    lost, doubled = wanted - len(times), len(answers) - len(times)
    print(f"{failed}; of {wanted} answers lost {lost}, doubled {doubled}\n{seconds:.0f} s")
    raw = {"failed_requests": server.num_failed, "answered_requests": server.num_answered, "seconds": seconds}
    return raw, {"answers": wanted, "lost": lost, "doubled": doubled}


SECTIONS = {"speed": speed, "start": start, "kills": kills, "endpoint": endpoint}

if __name__ == "__main__":
    main()
