"""Single-turn environments of the verifiers package are a source of problems, with their own prompts and rewards."""

import asyncio
import json

import pytest
import yaml
from support.doc_commands import blocks

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import Scorer, build_mixture, parse_mixture, verifiers_tasks
from rgtrain.problems.answers import judged_text
from rgtrain.problems.constant_replies import check_constant_replies
from rgtrain.problems.mixture import Split
from rgtrain.problems.prompts import PromptBuilder, PromptStyle, worked_examples
from rgtrain.problems.splits import build_splits, check_problems_are_left
from rgtrain.problems.verifiers_tasks import run_without_io

ENVIRONMENTS = PROJECT_ROOT / "tests" / "support" / "verifiers_environments"
REVERSED = {"words": {"verifiers": "reversed-words"}}
needs_verifiers = pytest.mark.skipif(
    verifiers_tasks.find_interface() is None, reason="verifiers is not installed; see requirements-verifiers.txt"
)


@pytest.fixture(autouse=True)
def environments(monkeypatch):
    monkeypatch.syspath_prepend(str(ENVIRONMENTS))
    monkeypatch.setattr(verifiers_tasks, "_NUM_ENDLESS_TASKS", 100)


def drawn(mixture: dict, *, size: int = 20, split: Split = Split.TRAIN) -> list:
    return list(build_mixture(parse_mixture(mixture), seed=1, size=size, split=split))


@needs_verifiers
def test_a_problem_has_the_prompt_of_its_environment():
    problem = drawn(REVERSED)[0]
    system = {"role": "system", "content": "Reverse the text in <reversed_text> tags."}
    question = {"role": "user", "content": problem.question}
    assert PromptBuilder(PromptStyle(num_examples=2)).messages(problem) == [system, question]
    assert PromptBuilder(PromptStyle(role="user")).messages(problem) == [
        {"role": "user", "content": f"{system['content']}\n\n{problem.question}"}
    ]
    [first, *_] = drawn({"sums": {"verifiers": "boxed-sums"}})
    messages = PromptBuilder(PromptStyle()).messages(first)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert first.question == "\n\n".join(message["content"] for message in messages)


@needs_verifiers
def test_the_rewards_score_whole_completions_in_the_sandbox_as_they_do_outside():
    sums, words = drawn({"sums": {"verifiers": "boxed-sums"}})[0], drawn(REVERSED)[0]
    right = json.loads(sums.entry["metadata"]["task"])["info"]["sum"]
    backwards = words.question[::-1]
    expected = [
        # Three quarters for the right number, and one for the form.
        (sums, f"\\boxed{{{right}}}", 1.0),
        (sums, f"<think>I <answer>add</answer></think> \\boxed{{\\frac{{{2 * right}}}{{2}}}}", 1.0),
        (sums, f"\\boxed{{\\int_0^{{{right}}} 1 dx}}", 1.0),
        (sums, "\\boxed{-1}", 0.25),
        (sums, f"{right}", 0.0),
        (sums, "NO!", 0.0),
        (words, f"<reversed_text>{backwards}</reversed_text>", 1.0),
        (words, f"<answer>{backwards}</answer>", 0.0),
        (words, f"<reversed_text>{backwards[:2]}</reversed_text>", 2 * 2 / (2 + len(backwards))),
        (words, "\ud800", 0.0),
    ]
    pairs = [(judged_text(text, problem.entry), problem.entry) for problem, text, _ in expected]
    with Scorer(num_workers=1) as scorer:
        scores = scorer.score_many(pairs)
    assert [score.error for score in scores] == [None] * len(expected)
    assert [score.accuracy for score in scores] == [pytest.approx(value) for *_, value in expected]


@needs_verifiers
def test_training_and_validation_share_no_task(tmp_path):
    source = {"verifiers": "reversed-words", "args": {"num_words": 60}, "held_out": 0.2}
    # Validation and an evaluation may use the same held-out tasks.
    evaluation = tmp_path / "evaluation.yaml"
    datasets = [{"dataset": "words", "rows": "held_out", **source}]
    evaluation.write_text(json.dumps({"categories": [{"category": "words", "datasets": datasets}]}))
    [spec] = parse_mixture({"words": source})
    options = {"mixture": {"words": source}, "seed": 1, "hold_out_shipped": False, "held_out_files": [evaluation]}
    # No task is set aside for worked examples, which an environment's own prompts do not have.
    options["examples"] = worked_examples(spec, PromptStyle(num_examples=5))
    splits = build_splits(**options, train_size=200, validation_size=12)
    training = {draw.problem.question for draw in splits.training}
    validation = {problem.question for problem in splits.validation}
    assert (len(training), len(validation)) == (48, 12)
    assert not training & validation
    with pytest.raises(ConfigError, match="holds out 12 problems, but validation draws 13"):
        check_problems_are_left(**options, leave_out=(), validation_size=13)


@needs_verifiers
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def toolsets(cls, config): return ['search']", "has tools"),
        ("async def setup(self, runtime): pass", "prepares a runtime in LineTask.setup"),
        ("NEEDS_CONTAINER = True", "needs a container"),
    ],
)
def test_an_environment_of_more_than_one_reply_is_refused(tmp_path, monkeypatch, body, message):
    decorator = "@classmethod\n    " if "cls" in body else ""
    name = write_environment(tmp_path, monkeypatch, f"{decorator}{body}")
    with pytest.raises(ConfigError, match=message):
        parse_mixture({"lines": {"verifiers": name}})


@needs_verifiers
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("async def correct(self, trace, runtime): return 1.0", "runs programs in its reward correct"),
        ("async def correct(self, trace, runtime=None): return 1.0", None),
    ],
)
def test_a_reward_that_runs_programs_is_refused(tmp_path, monkeypatch, reward, message):
    name = write_environment(tmp_path, monkeypatch, f"@vf.reward\n    {reward}")
    if message is None:
        assert parse_mixture({"lines": {"verifiers": name}})
    else:
        with pytest.raises(ConfigError, match=message):
            parse_mixture({"lines": {"verifiers": name}})


@needs_verifiers
def test_the_older_interface_is_named(tmp_path, monkeypatch):
    (tmp_path / "older_lines.py").write_text("def load_environment(**settings):\n    return None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="which verifiers had before version 0.4"):
        parse_mixture({"lines": {"verifiers": "older-lines"}})


@needs_verifiers
def test_the_documented_mixture_works():
    [block] = [one for one in blocks(PROJECT_ROOT / "docs" / "bring-your-own.md") if "verifiers: reversed" in one.text]
    data = yaml.safe_load(block.text)["data"]
    splits = build_splits(
        mixture=data["mixture"], seed=1, train_size=20, validation_size=data["validation_size"], hold_out_shipped=False
    )
    assert len(splits.validation) == data["validation_size"]


@needs_verifiers
def test_an_environment_that_pays_for_a_constant_reply_is_refused(tmp_path, monkeypatch):
    body = "@vf.reward\n    async def short(self, trace): return float(len(trace.last_reply) < 9)"
    [lines] = parse_mixture({"lines": {"verifiers": write_environment(tmp_path, monkeypatch, body)}})
    with pytest.raises(ConfigError, match="'lines' pays without a solution: the reply '0' earns 1.00"):
        check_constant_replies([lines], allowed=[])
    assert len(check_constant_replies([lines], allowed=["lines"])) == 1
    assert check_constant_replies(parse_mixture(REVERSED), allowed=[]) == []


def write_environment(folder, monkeypatch, body: str) -> str:
    name = f"lines_{abs(hash(body))}"
    (folder / f"{name}.py").write_text(
        "import verifiers.v1 as vf\n\n"
        f"class LineTask(vf.Task[vf.TaskData]):\n    {body}\n\n"
        "class LineTaskset(vf.Taskset[LineTask, vf.TasksetConfig]):\n"
        "    def load(self):\n        return [LineTask(vf.TaskData(prompt=f'line {n}')) for n in range(5)]\n\n"
        "__all__ = ['LineTaskset']\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return name


@needs_verifiers
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"verifiers": "no-such-environment"}, "'no-such-environment' cannot be loaded, with .* not found"),
        ({"verifiers": "json"}, "'json' cannot be loaded"),
        ({"verifiers": 3}, "has verifiers 3"),
        ({"verifiers": "reversed-words", "args": [1]}, r"has args \[1\]"),
        ({"verifiers": "reversed-words", "args": {"nm_words": 3}}, "nm_words"),
        ({"verifiers": "reversed-words", "held_out": 2}, "has held_out 2"),
        ({"verifiers": "reversed-words", "config": {}}, "has 'config'"),
    ],
)
def test_an_unusable_entry_is_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        parse_mixture({"words": entry})


def test_the_package_verifiers_is_asked_for(monkeypatch):
    monkeypatch.setattr(verifiers_tasks, "find_interface", lambda: None)
    verifiers_tasks._load.cache_clear()
    with pytest.raises(ConfigError, match="needs the package verifiers; .*requirements-verifiers.txt"):
        parse_mixture(REVERSED)


def test_coroutines_that_only_compute_need_no_files_and_no_time():
    async def later(value: int) -> int:
        await asyncio.sleep(3600 * value)
        return value

    async def both() -> list[int]:
        return await asyncio.gather(later(2), later(1))

    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    assert run_without_io(both()) == [2, 1]
    with pytest.raises(RuntimeError, match="waits for input or output"):
        run_without_io(never())
    # The abandoned coroutine does not reach the next one.
    assert run_without_io(both()) == [2, 1]
