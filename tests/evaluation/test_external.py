"""Big-Bench Hard, GSM8K, MATH and MMLU-Pro by lm-evaluation-harness, offline, with stub data."""

import importlib.util
import itertools
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rgtrain.errors import ConfigError
from rgtrain.evaluation import benchmark_data
from rgtrain.evaluation.big_bench_hard import SUBTASKS
from rgtrain.evaluation.engine_interface import Completion
from rgtrain.evaluation.evaluation_prompts import load_tokenizer
from rgtrain.paths import PROJECT_ROOT

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install -r requirements-eval.txt"
)
from lm_eval.filters.extraction import RegexFilter  # noqa: E402

from rgtrain.evaluation.external import BenchmarkTask, EngineModel, load_tasks  # noqa: E402

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
    "cot_content": "A: Let's think step by step. Only 7 has no divisor. The answer is (C).",
}
EXAMPLES = {
    "gsm8k": {"question": "1 + 1?", "answer": "It is 1 + 1 = <<1+1=2>>2.\n#### 2"},
    "math": {"problem": "What is $1 + 1$?", "solution": "It is $\\boxed{2}$."},
    "mmlu_pro": MMLU_PRO
    | {"question": "Which is odd?", "options": ["2", "3"], "answer": "B"}
    | {"cot_content": "A: Let's think step by step. Two is even. So no. The answer is (B)."},
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
    model = EngineModel(lambda: engine, SimpleNamespace(renderer=renderer), role="system", max_tokens=8)
    requests = [SimpleNamespace(args=(prompt,)) for prompt in ("1 + 1?<think>\n", "1 + 1?")]
    assert model.generate_until(requests, disable_tqdm=True) == ["<think>b", "a"]


def test_a_draft_in_unclosed_thinking_is_no_answer(tasks):
    for completion in ("<think>so <answer>1234</answer>", "<think>so <answer>1234</answer></think>"):
        assert tasks.judge_gsm8k(GSM8K, [completion]) == {"accuracy": 0, "has_answer": 0}


def test_a_completion_without_tags_has_no_answer(tasks):
    assert tasks.judge_gsm8k(GSM8K, ["1234"]) == {"accuracy": 0, "has_answer": 0}


def write_lines(path: Path, documents: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents))


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """Write three problems of each benchmark and two of each subtask of Big-Bench Hard.

    The first worked example of each benchmark is one of its problems.
    """
    for name, document in (("gsm8k", GSM8K), ("math", MATH), ("mmlu_pro", MMLU_PRO)):
        write_lines(tmp_path / f"{name}.jsonl", [document] * 3)
        write_lines(tmp_path / f"{name}_examples.jsonl", [document, EXAMPLES[name]])
    (tmp_path / "bbh").mkdir()
    for subtask in SUBTASKS:
        # The files of the data set's own repository, or one problem a line.
        examples = [bbh_problem(subtask, f"{number} {subtask}?") for number in range(2)]
        if subtask == "navigate":
            write_lines(tmp_path / f"bbh/{subtask}.jsonl", examples)
        else:
            (tmp_path / f"bbh/{subtask}.json").write_text(json.dumps({"canary": "...", "examples": examples}))
    return tmp_path


def bbh_problem(subtask: str, text: str) -> dict:
    target = {"navigate": "No", "dyck_languages": "] )", "object_counting": "8"}.get(subtask, "(B)")
    return {"input": f"{text}\nOptions:\n(A) one\n(B) two", "target": target}


def test_all_run_offline_on_a_folder(tiny_model, data_dir):
    command = [sys.executable, PROJECT_ROOT / "evaluation" / "run_external.py", "--model", tiny_model]
    command += ["--output-dir", "out", "--data-dir", data_dir, "--max-tokens", "8", "--max-model-len", "2048"]
    command += ["--limit", "1", "--num-fewshot", "1"]
    done = subprocess.run(command, cwd=data_dir, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((data_dir / "out/tiny/results.json").read_text())
    assert results["n-shot"] == dict.fromkeys(("rg_bbh", "rg_gsm8k", "rg_math", "rg_mmlu_pro"), 1)
    assert results["examples"]["rg_math"]["source"] == str(data_dir / "math_examples.jsonl")
    assert "rg_bbh/word_sorting" in done.stdout
    assert "\nworked examples: rg_bbh 1, rg_gsm8k 1, rg_math 1, rg_mmlu_pro 1\nresults: out/tiny\n" in done.stdout
    records = {task: read_records(data_dir / f"out/tiny/{task}.jsonl") for task in results["results"]}
    assert {task: len(found) for task, found in records.items()} == dict.fromkeys(records, 1) | {"rg_bbh": 27}
    prompt = records["rg_mmlu_pro"][0]["arguments"][0][0]
    assert prompt.index("Two is even. So no.\n<answer>B</answer>") < prompt.index("C. 7")
    [navigate] = [record for record in records["rg_bbh"] if record["doc"]["subtask"] == "navigate"]
    prompt = navigate["arguments"][0][0]
    assert prompt.count("<|im_start|>assistant") == prompt.count('Answer with "Yes" or "No".') == 2
    assert prompt.index("<answer>No</answer>") < prompt.index("0 navigate?")


TASK_FOLDER = PROJECT_ROOT / "evaluation" / "external"
METADATA = {"limit": None, "chain_of_thought": True}


def load_task(name: str, folder: Path, **metadata) -> BenchmarkTask:
    [task] = load_tasks([name], task_folder=TASK_FOLDER, metadata=METADATA | {"data_dir": str(folder)} | metadata)
    return task


def chat_of(task: BenchmarkTask, number: int = 0) -> list[dict[str, str]]:
    """Return the chat messages of a problem."""
    num = task.get_config("num_fewshot")
    return json.loads(task.fewshot_context(task.eval_docs[number], num, "Be brief.", chat_template=json.dumps))


def test_three_examples_of_the_subtask_precede_a_problem_of_big_bench_hard(data_dir):
    task = load_task("rg_bbh", data_dir)
    chat = chat_of(task, SUBTASKS.index("navigate") * 2)
    assert [message["role"] for message in chat] == ["system", *["user", "assistant"] * 3, "user"]
    assert chat[0]["content"].startswith("Be brief.\n\nGiven a series of navigation instructions")
    assert all('Answer with "Yes" or "No".' in message["content"] for message in chat[1::2])
    assert [message["content"].splitlines()[-1] for message in chat[2::2]] == [
        f"<answer>{verdict}</answer>" for verdict in ("No", "No", "Yes")
    ]
    assert task.examples["num_examples"] == 3
    assert re.fullmatch("tasks/bbh/cot_fewshot of lm_eval [0-9.]+", task.examples["source"])


def test_the_hash_of_the_examples_changes_with_their_number_and_reasoning(data_dir):
    settings = ({}, {"num_fewshot": 2}, {"chain_of_thought": False})
    first, fewer, bare = (load_task("rg_bbh", data_dir, **one) for one in settings)
    assert len({task.examples["sha256"] for task in (first, fewer, bare)}) == 3
    assert first.examples == load_task("rg_bbh", data_dir, limit=1).examples
    assert {message["content"] for message in chat_of(bare)[2::2]} == {
        "<answer>False</answer>",
        "<answer>True</answer>",
    }


@pytest.mark.parametrize("name", ["gsm8k", "math", "mmlu_pro"])
def test_a_problem_is_no_example_of_itself(data_dir, name):
    assert load_task(f"rg_{name}", data_dir).examples == {"num_examples": 0}
    task = load_task(f"rg_{name}", data_dir, num_fewshot=1)
    [_, asked, example, question] = chat_of(task)
    assert asked["content"] != question["content"] and example["content"].endswith("</answer>")


def test_examples_are_right_by_the_rule_of_their_benchmark(data_dir, tasks):
    judges = {"gsm8k": tasks.judge_gsm8k, "math": tasks.judge_math, "mmlu_pro": tasks.judge_mmlu_pro}
    for name, judge in judges.items():
        examples = benchmark_data.load_examples(name, 2, hub="", configs=[], data_dir=data_dir).by_group
        for example in itertools.chain(*examples.values()):
            assert judged(judge, example.document, example.answer) == (1, 1)
    examples = benchmark_data.load_examples("bbh", 3, hub="", configs=[], data_dir=data_dir).by_group
    assert {subtask: len(found) for subtask, found in examples.items()} == dict.fromkeys(SUBTASKS, 3)
    for example in itertools.chain(*examples.values()):
        assert judged(tasks.judge_bbh, example.document, example.answer) == (1, 1)
        assert example.reasoning and "answer is" not in example.reasoning


def test_problems_and_examples_come_from_their_splits_of_the_hub(monkeypatch):
    splits = []

    def rows(hub: str, config: str | None, split: str) -> list[dict]:
        splits.append((hub, config, split))
        if hub == "maths":
            return [{"problem": f"{config} {number}", "solution": "$\\boxed{1}$"} for number in range(3)]
        return [EXAMPLES["mmlu_pro"] | {"question": f"{number}", "category": "ab"[number % 2]} for number in range(8)]

    monkeypatch.setattr(benchmark_data, "_hub_rows", rows)
    problems = benchmark_data.load_problems("math", hub="maths", configs=["x", "y"], data_dir=None, limit=4)
    assert [problem["problem"] for problem in problems] == ["x 0", "x 1", "x 2", "y 0"]
    examples = benchmark_data.load_examples("math", 3, hub="maths", configs=["x", "y"], data_dir=None)
    assert examples.source == "the first of split 'train' of maths"
    # One more than asked for, in case one of them is the problem itself.
    assert [example.document["problem"] for example in examples.by_group[""]] == ["x 0", "y 0", "x 1", "y 1"]
    by_subject = benchmark_data.load_examples("mmlu_pro", 2, hub="mmlu", configs=[None], data_dir=None).by_group
    assert {group: [one.document["question"] for one in found] for group, found in by_subject.items()} == {
        "a": ["0", "2", "4"],
        "b": ["1", "3", "5"],
    }
    assert splits[-1] == ("mmlu", None, "validation") and ("maths", "y", "test") in splits


def test_the_limit_is_one_of_each_subtask(data_dir):
    task = load_task("rg_bbh", data_dir, limit=1)
    assert [doc["subtask"] for doc in task.eval_docs] == list(SUBTASKS)


@pytest.mark.parametrize(
    ("task", "file", "content", "error"),
    [
        (
            "rg_bbh",
            "bbh/snarks.json",
            None,
            "bbh/snarks.jsonl (or snarks.json) is missing; rg_bbh needs it; put it",
        ),
        ("rg_bbh", "bbh/snarks.json", "[]", "bbh/snarks.json has no list 'examples'"),
        ("rg_bbh", "bbh/snarks.json", "{", "cannot read"),
        ("rg_bbh", "bbh/navigate.jsonl", '{"input": "1"}', "line 1 of"),
        ("rg_gsm8k", "gsm8k.jsonl", "", "gsm8k.jsonl has no problems"),
        ("rg_gsm8k", "gsm8k.jsonl", "[1]", "give a JSON object with question, answer"),
        (
            "rg_gsm8k",
            "gsm8k_examples.jsonl",
            None,
            "gsm8k_examples.jsonl is missing; rg_gsm8k with --num-fewshot needs it",
        ),
        ("rg_math", "math.jsonl", '{"problem": "1", "solution": 2}', "has solution = 2; give a str"),
        ("rg_mmlu_pro", "mmlu_pro_examples.jsonl", json.dumps(EXAMPLES["gsm8k"]), "lacks the key 'options'"),
    ],
)
def test_a_fault_of_the_folder_is_one_error_that_names_the_file(data_dir, task, file, content, error):
    (data_dir / file).unlink()
    if content is not None:
        (data_dir / file).write_text(content)
    with pytest.raises(ConfigError, match=re.escape(error)):
        load_task(task, data_dir, num_fewshot=1)


def test_more_examples_than_there_are_are_refused(data_dir):
    with pytest.raises(
        ConfigError, match="--num-fewshot is 4, but rg_bbh has 3 worked examples for .*; give at most 3"
    ):
        load_task("rg_bbh", data_dir, num_fewshot=4)
    with pytest.raises(ConfigError, match="--num-fewshot is 3, but rg_gsm8k has 2 worked examples; give at most 2"):
        load_task("rg_gsm8k", data_dir, num_fewshot=3)
    write_lines(data_dir / "mmlu_pro.jsonl", [MMLU_PRO | {"category": "law"}])
    with pytest.raises(ConfigError, match="rg_mmlu_pro has no worked examples for 'law'"):
        load_task("rg_mmlu_pro", data_dir, num_fewshot=1)


def test_a_prompt_that_leaves_no_room_is_refused_before_the_engine_starts():
    renderer = SimpleNamespace(tokenizer=lambda text, add_special_tokens: {"input_ids": text.split()})
    loaded = SimpleNamespace(renderer=renderer)
    model = EngineModel(pytest.fail, loaded, role="system", max_tokens=8, max_model_len=10)
    with pytest.raises(ConfigError, match="a prompt of 3 tokens and --max-tokens 8 exceed the context of 10 tokens"):
        model.generate_until([SimpleNamespace(args=("a b c",))])


def read_records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_unknown_task_is_refused(data_dir):
    with pytest.raises(ConfigError, match="unknown task 'rg_gsm8'; did you mean 'rg_gsm8k'"):
        load_task("rg_gsm8", data_dir)


def test_the_harness_gets_checked_prompts_with_role_and_arguments(tiny_model):
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
