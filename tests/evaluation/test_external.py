"""GSM8K, MATH and MMLU-Pro by lm-evaluation-harness, offline, with stub data in the format of the tasks."""

import importlib.util
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rgtrain.evaluation.engine_interface import Completion
from rgtrain.paths import PROJECT_ROOT

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install -r requirements-eval.txt"
)
from lm_eval.filters.extraction import RegexFilter  # noqa: E402

from rgtrain.evaluation.external import EngineModel  # noqa: E402

GSM8K = {
    "question": "Ann has 1,000 eggs and buys 234. How many?",
    "answer": "1000 + 234 = <<1000+234=1234>>\n#### 1,234",
}
MATH = {
    "problem": "What is half of $\\sqrt{2}$?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": "Halving gives $\\boxed{\\frac{\\sqrt{2}}{2}}$.",
}
MMLU_PRO = {
    "question": "Which is prime?",
    "options": ["4", "6", "7"],
    "answer": "C",
    "answer_index": 2,
    "category": "math",
}


@pytest.fixture(scope="module")
def tasks():
    spec = importlib.util.spec_from_file_location("tasks", PROJECT_ROOT / "evaluation" / "external" / "tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judged(judge, document: dict, answer: str) -> tuple[float, float]:
    found = judge(document, [f"<think>hm</think> <answer>{answer}</answer>"])
    return found["accuracy"], found["has_answer"]


@pytest.mark.parametrize(
    "answer", ["1234", "1,234", "$1234.", " 1234.0 ", "1234 eggs", "about 1234", "\\boxed{1{,}234}"]
)
def test_gsm8k_accepts_equal_numbers(tasks, answer):
    assert judged(tasks.judge_gsm8k, GSM8K, answer) == (1, 1)


@pytest.mark.parametrize("answer", ["1235", "12,34", "1000 or 1234", "1000 + 234", "nan", "", "1234" * 500])
def test_gsm8k_rejects_other_answers(tasks, answer):
    assert judged(tasks.judge_gsm8k, GSM8K, answer) == (0, 1)


@pytest.mark.parametrize(
    "answer",
    [
        "\\frac{\\sqrt{2}}{2}",
        "$\\frac{1}{\\sqrt{2}}$",
        "\\dfrac{\\sqrt2}{2}",
        "so \\[ \\boxed{\\frac{\\sqrt{2}}{2}} \\]",
        "**The answer is $\\frac{\\sqrt{2}}{2}$.**",
        "x = \\frac{\\sqrt{2}}{2}",
    ],
)
def test_math_accepts_equal_expressions(tasks, answer):
    assert judged(tasks.judge_math, MATH, answer) == (1, 1)


@pytest.mark.parametrize(
    ("solution", "answer", "accuracy"),
    [
        ("18", "18 dollars", 1),
        ("18", "**18**", 1),
        ("18", "18\\%", 1),
        ("18\\%", "18", 1),
        ("18^\\circ", "18 degrees", 1),
        ("1,800", "1\\,800", 1),
        ("1,800", "1 800", 1),
        ("\\frac{1}{2}", "½", 1),
        ("\\frac{1}{2}", "50\\%", 0),
        ("18", "1,8", 0),
        ("18", "18 or 19", 0),
        ("18", "x + 18", 0),
        ("18", "18x", 0),
        ("18x", "18", 0),
        ("x^2+1", "x + 1", 0),
        ("\\text{Tuesday}", "Tuesday", 1),
        ("\\text{(C)}", "C", 1),
        ("(1,2)", "(2,1)", 0),
    ],
)
def test_math_compares_quantities_without_their_units(tasks, solution, answer, accuracy):
    document = MATH | {"solution": f"So it is $\\boxed{{{solution}}}$."}
    assert judged(tasks.judge_math, document, answer)[0] == accuracy


@pytest.mark.parametrize(
    "answer", ["\\sqrt{2}", "__import__('os').system('touch ran')", "exec('1/0')", "}", "", "9^{9^{9^{9}}}"]
)
def test_math_rejects_other_answers_and_executes_no_code(tasks, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert judged(tasks.judge_math, MATH, answer) == (0, 1)
    assert list(tmp_path.iterdir()) == []


def test_math_does_not_log_model_output(tasks):
    judged(tasks.judge_math, MATH, "1")
    assert not logging.getLogger("math_verify.parser").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("answer", ["C", "(C)", "c", "C. 7", "**C**", "\\boxed{C}", "Option C", "The answer is (C)."])
def test_mmlu_pro_accepts_the_letter(tasks, answer):
    assert judged(tasks.judge_mmlu_pro, MMLU_PRO, answer) == (1, 1)


@pytest.mark.parametrize("answer", ["B", "Cat", "", "7", "A or C"])
def test_mmlu_pro_rejects_other_answers(tasks, answer):
    assert judged(tasks.judge_mmlu_pro, MMLU_PRO, answer)[0] == 0


def harness_filter(task_file: str, name: str) -> RegexFilter:
    """Return a filter as a task file of the installed lm-evaluation-harness defines it."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda *_: None)
    task = yaml.load((Path(lm_eval.__file__).parent / "tasks" / task_file).read_text(), loader)
    [steps] = [entry["filter"] for entry in task["filter_list"] if entry["name"] == name]
    return RegexFilter(**{key: value for key, value in steps[0].items() if key != "function"})


@pytest.mark.parametrize(
    ("rows", "task_file", "name"),
    [
        ("letters", "mmlu_pro/_default_template_yaml", "custom-extract"),
        ("numbers", "gsm8k/gsm8k.yaml", "flexible-extract"),
    ],
)
def test_the_table_names_every_difference_from_the_filters_of_the_harness(rows, task_file, name):
    rows = yaml.safe_load((PROJECT_ROOT / "tests/evaluation/benchmark_verdicts.yaml").read_text(encoding="utf-8"))[rows]
    read = harness_filter(task_file, name).apply([[row["answer"]] for row in rows], [{}] * len(rows))
    # The task of GSM8K ignores these characters.
    found = [re.sub(r"[,$]|\.$", "", text) for [text] in read]
    expected = [row.get("harness", row["verdict"]) for row in rows]
    assert [None if text == "[invalid]" else text for text in found] == expected


def test_a_think_tag_that_the_prompt_opened_stands_in_front_of_the_completion():
    answered = [(1, Completion("a", 1, "stop")), (0, Completion("b", 1, "stop"))]
    engine = SimpleNamespace(generate=lambda prompts, sampling: answered)
    renderer = SimpleNamespace(tokenizer=lambda text, add_special_tokens: {"input_ids": [1]})
    model = EngineModel(engine, SimpleNamespace(renderer=renderer), role="system", max_tokens=8)
    requests = [SimpleNamespace(args=(prompt,)) for prompt in ("1 + 1?<think>\n", "1 + 1?")]
    assert model.generate_until(requests, disable_tqdm=True) == ["<think>b", "a"]


def test_a_draft_in_unclosed_thinking_is_no_answer(tasks):
    for completion in ("<think>so <answer>1234</answer>", "<think>so <answer>1234</answer></think>"):
        assert tasks.judge_gsm8k(GSM8K, [completion]) == {"accuracy": 0, "has_answer": 0}


def test_a_completion_without_tags_has_no_answer(tasks):
    assert tasks.judge_gsm8k(GSM8K, ["1234"]) == {"accuracy": 0, "has_answer": 0}


def test_all_three_run_offline_on_local_data(tiny_model, tmp_path):
    for name, document in (("gsm8k", GSM8K), ("math", MATH), ("mmlu_pro", MMLU_PRO)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(document)}\n" for _ in range(3)))
    command = [sys.executable, PROJECT_ROOT / "evaluation" / "run_external.py", "--model", tiny_model]
    command += ["--output-dir", "out", "--data-dir", tmp_path, "--max-tokens", "8", "--max-model-len", "1024"]
    done = subprocess.run([*command, "--limit", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/tiny/results.json").read_text())["results"]
    assert results.keys() == {"rg_gsm8k", "rg_math", "rg_mmlu_pro"}
    records = read_records(tmp_path / "out/tiny/rg_mmlu_pro.jsonl")
    assert len(records) == 2
    prompt = records[0]["arguments"][0][0]
    assert "<answer>" in prompt and "C. 7" in prompt


def read_records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_missing_data_is_reported_before_the_model_is_loaded(tiny_model, tmp_path):
    command = [sys.executable, PROJECT_ROOT / "evaluation" / "run_external.py", "--model", tiny_model]
    command += ["--output-dir", "out", "--tasks", "rg_math", "--data-dir", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot load the data of task 'rg_math'" in done.stderr


def test_an_unknown_task_is_refused_before_the_model_is_loaded(tiny_model, tmp_path):
    command = [sys.executable, PROJECT_ROOT / "evaluation" / "run_external.py", "--model", tiny_model]
    command += ["--output-dir", "out", "--tasks", "rg_gsm8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown task 'rg_gsm8'; did you mean 'rg_gsm8k'" in done.stderr


def test_the_harness_gets_checked_prompts_with_role_and_arguments(tiny_model):
    from rgtrain.errors import ConfigError
    from rgtrain.evaluation.evaluation_prompts import load_tokenizer
    from rgtrain.evaluation.external import EngineModel

    template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}{{ mode }}"
    loaded = load_tokenizer(tiny_model, chat_template=template, arguments={"mode": "/no_think"}, role_key="--role")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    in_question = EngineModel(None, loaded, role="user", max_tokens=8)
    assert in_question.apply_chat_template(messages) == "Be brief.\n\n1 + 1?/no_think"
    with pytest.raises(ConfigError, match="drops or changes the system prompt, whose role is 'system'; set --role to"):
        EngineModel(None, loaded, role="system", max_tokens=8).apply_chat_template(messages)


def test_a_template_that_drops_the_system_prompt_is_refused_before_the_model_is_loaded(tiny_model, tmp_path):
    (tmp_path / "math.jsonl").write_text(json.dumps(MATH))
    (tmp_path / "template.jinja").write_text("{{ messages[-1].content }}")
    command = [sys.executable, PROJECT_ROOT / "evaluation" / "run_external.py", "--model", tiny_model]
    command += ["--output-dir", "out", "--tasks", "rg_math", "--data-dir", ".", "--chat-template", "template.jinja"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "drops or changes the system prompt" in done.stderr
