"""Every function that handles text of a model in the trainer's or evaluator's process takes linear time.

Run as a program, this file measures every function on every family of texts and writes one line per result to the file
named by its argument. The test runs it in a separate process because Python cannot interrupt an exponential pattern.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rgtrain.paths import PROJECT_ROOT

SHORT, LONG = 25_000, 100_000
# From the short to the long text, linear time grows by a factor of 4, quadratic time by 16.
MAX_GROWTH = 9
# If a function takes less than this for the long text, its growth does not matter.
NEGLIGIBLE_S = 0.01
NUM_MEASUREMENTS = 7
# If the long text takes longer than this, one measurement is enough.
CLEARLY_SLOW_S = 2
DEADLINE_S = 150


def test_functions_that_handle_model_text_take_linear_time(tmp_path):
    findings = tmp_path / "findings"
    command = [sys.executable, "-W", "ignore", __file__, str(findings)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still busy after {DEADLINE_S} s with: {findings.read_text().splitlines()[-1]}") from None
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in findings.read_text().splitlines()]
    assert [line for line in lines if line.get("growth", 0) >= MAX_GROWTH] == []
    assert len({line["family"] for line in lines}) >= 30
    assert len({line["function"] for line in lines}) >= 20


def load_module(path: Path) -> ModuleType:
    """Return the module in a file outside of any package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions(folder: Path) -> dict[str, Callable[[str], Any]]:
    """Return all functions that handle text of a model, by name, as functions of the text only."""
    from support.evaluated import answers_of, small_config, write_results

    from rgtrain.evaluation.big_bench_hard import chosen_verdict, is_right, is_same_list
    from rgtrain.evaluation.endpoint_replies import HttpReply, read_reply
    from rgtrain.evaluation.judged_answers import Answer
    from rgtrain.evaluation.measures import measure
    from rgtrain.problems import combine, extract_answer, parse_reward
    from rgtrain.problems.rewards import _PARTS, JudgedCompletion
    from rgtrain.problems.scoring import EXECUTING
    from rgtrain.problems.scoring.execution import may_run_code
    from rgtrain.problems.scoring.scoring_worker import message
    from rgtrain.problems.scoring.verifiers import VERIFIERS
    from rgtrain.reporting.evaluation_reader import read_evaluation
    from rgtrain.reporting.evaluation_report import report
    from rgtrain.tables import printable, text_table
    from rgtrain.training.lifecycle.console import announce
    from rgtrain.training.lifecycle.run_log import run_log

    tasks = load_module(PROJECT_ROOT / "evaluation" / "external" / "tasks.py")
    config = small_config(folder)
    answers = answers_of(config, [1, 0, 0.5, 1, 0, 1])
    evaluation = read_evaluation(write_results(config, answers).path)

    def answer_with(text: str) -> Answer:
        return dataclasses.replace(answers[0], answer=text, completion=f"<think>{text}</think>{text}")

    def reward(name: str, **args: Any) -> Callable[[str], Any]:
        specs = parse_reward({name: args})
        return lambda text: combine(specs, JudgedCompletion(text, 0.0, num_tokens=10, max_tokens=100))

    def reply(text: str) -> Any:
        return read_reply(HttpReply(200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()))

    def refusal(text: str) -> Any:
        return read_reply(HttpReply(400, json.dumps({"error": {"message": text, "param": text}}).encode()))

    def logged(text: str) -> None:
        with run_log(folder / "train.log"):
            announce(text.encode(errors="replace").decode())

    found = {
        "extract_answer": extract_answer,
        "extract_answer, in a block": lambda text: extract_answer(f"<think>{text}</think><answer>{text}</answer>"),
        "message to a worker": lambda text: message([(0, text, {})]),
        "printable": printable,
        "text_table": lambda text: text_table(["a"], [[text]]),
        "run_log": logged,
        "an endpoint's reply": reply,
        "an endpoint's refusal": refusal,
        "an endpoint's page": lambda text: read_reply(HttpReply(502, text.encode("utf-8", "surrogatepass"))),
        "to_line and from_line": lambda text: Answer.from_line(answer_with(text).to_line()),
        "measure": lambda text: measure([answer_with(text + end) for end in "aab"]),
        "report": lambda text: report(dataclasses.replace(evaluation, answers=[answer_with(text), *answers[1:]])),
        "judge_gsm8k": lambda text: tasks.judge_gsm8k({"answer": "#### 3"}, [f"<answer>{text}</answer>"]),
        "judge_mmlu_pro": lambda text: tasks.judge_mmlu_pro(
            {"answer": "C", "options": ["4", "6", "7"]}, [f"<answer>{text}</answer>"]
        ),
        "verdict": lambda text: chosen_verdict(text, ("yes", "no")),
        "list of words": lambda text: is_same_list(text, ["barn", "damp"]),
        "brackets": lambda text: is_right({"subtask": "dyck_languages", "input": "Input: [", "target": "]"}, text),
        "reward format, without thinking": reward("format", thinking=False),
        "reward format, thinking begun": reward("format", prepend_thinking_token=True),
    }
    found |= {f"reward {name}": reward(name) for name in _PARTS}
    found |= {
        f"verifier {name}": lambda text, judge=one.judge: judge(text, {"answer": "3"})
        for name, one in VERIFIERS.items()
        if name != "expression"
    }
    found |= {f"may_run_code of {name}": lambda text, name=name: may_run_code(name, text) for name in sorted(EXECUTING)}
    return found


def cpu_seconds(function: Callable[[str], Any], text: str) -> float:
    started = time.process_time()
    function(text)
    return time.process_time() - started


def growth(function: Callable[[str], Any], make: Callable[[int], str]) -> float:
    """Return the ratio of the times that `function` takes for the long and the short text; 0 if they are negligible.

    Each time is the minimum of several measurements, because other processes can only increase it.
    """
    short, long = make(SHORT), make(LONG)
    least_short = least_long = float("inf")
    for _ in range(NUM_MEASUREMENTS):
        least_long = min(least_long, cpu_seconds(function, long))
        if least_long < NEGLIGIBLE_S:
            return 0.0
        least_short = min(least_short, cpu_seconds(function, short))
        if least_long / least_short < MAX_GROWTH or least_long > CLEARLY_SLOW_S:
            break
    return least_long / least_short


def main() -> None:
    families = load_module(PROJECT_ROOT / "benchmarks" / "hostile_answers.py").LONG_TEXTS
    with tempfile.TemporaryDirectory() as folder, Path(sys.argv[1]).open("w", buffering=1) as findings:
        for name, function in functions(Path(folder)).items():
            function("warm-up")
            for family, make in families.items():
                case = {"function": name, "family": family}
                print(json.dumps(case), file=findings)
                print(json.dumps(case | {"growth": growth(function, make)}), file=findings)


if __name__ == "__main__":
    main()
