"""Reward functions of the user run in the sandbox or trusted, with the fields, forms and failures as documented."""

import asyncio
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from rgtrain.errors import ConfigError
from rgtrain.problems import Scorer, parse_reward
from rgtrain.problems.group_rewards import CompletionReward, FinishedCompletion, GroupRewards
from rgtrain.problems.judged_completion import FIELDS
from rgtrain.problems.own_rewards import OwnReward

FUNCTIONS = """
import asyncio, functools, os, socket, statistics, sys, threading, time
import numpy as np
from rgtrain.problems.reward_adapters import reward_from_trl

def brevity(completion, *, per_token=0.01):
    return -per_token * completion.num_tokens

def expected(text, expected_answer, **unused):
    return str(expected_answer) in text

def fields(FIELDS):
    return not sorted(name for name, value in dict(NAMES).items() if value in (None, "", (), {}))

def rank(completions):
    best = min(one.num_tokens for one in completions)
    return np.array([float(one.num_tokens == best) for one in completions])

def above_mean(num_tokens, group):
    return num_tokens > sum(one.num_tokens for one in group) / len(group)

def style(text):
    return {"words": len(text.split()), "polite": "please" in text}

def styles(completions):
    return [style(one.text) for one in completions]

def unequal(text):
    return {"words": 1.0} if text else {"words": 1.0, "polite": 0.0}

def nothing(text): return None
def word(text): return "1"
def nan(text): return float("nan")
def huge(text): return 10**400
def large(text): return np.float64(1e39)
def spread(completions): return [statistics.stdev(one.num_tokens for one in completions)] * len(completions)
def two(text): return [1.0, 2.0]
def raises(text): raise ValueError("no\\x1b[31m idea")
def exits(text): sys.exit(3)
def dies(text): os._exit(3)
def opens(text): return open("/etc/hostname").read() and 1.0
def connects(text): return socket.socket() and 1.0
def short(completions): return [1.0]
def long(completions): return [1.0] * (len(completions) + 1)
def scalar(completions): return 1.0

def picky(text):
    if text == "bad":
        raise RuntimeError("picky")
    if text == "hang":
        while True: pass
    if text == "big":
        return len(bytearray(1 << 30))
    return 1.0

def spoils(entry, messages, text):
    entry.clear(), messages.clear()
    return 0.0

async def judge(completion, *, delay=0.0):
    judge.running += 1
    judge.most = max(judge.most, judge.running)
    try:
        await asyncio.sleep(60 if completion.text == "hang" else delay)
    finally:
        judge.running -= 1
    if completion.text == "bad":
        raise ConnectionError("the judge is gone")
    if completion.text == "exit":
        sys.exit(3)
    return completion.accuracy
judge.running = judge.most = 0

class Judge:
    async def __call__(self, text):
        return 0.5
judge_object = Judge()
partial_judge = functools.partial(judge, delay=0.001)

async def stubborn(text):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def cancels(text):
    raise asyncio.CancelledError

async def blocks(text):
    time.sleep(30)

def waits(text):
    time.sleep(30 if text == "hang" else 0)
    return 1.0

def alone(text):
    alone.running += 1
    time.sleep(0.005)
    found, alone.running = alone.running, alone.running - 1
    return found
alone.running = 0

def hidden_async(text):
    return judge(text)

def for_trl(prompts, completions, answer):
    return [1.0 if right in completion[0]["content"] else None for completion, right in zip(completions, answer)]
of_trl = reward_from_trl(for_trl)

async def judge_for_trl(prompts, completions, **columns):
    return [len(prompt) + columns["level"][0] / 2 for prompt in prompts]
judge_of_trl = reward_from_trl(judge_for_trl)

def length(completion): return 0.0
def positional(text, /): return 0.0
def starred(*texts): return 0.0
def without_fields(scale=1.0): return 0.0
def other_words(answer): return 0.0
def unknown(txet): return 0.0
def reserved(text, parts=()): return 0.0
def mixed(completions, text): return 0.0
LIMIT = 5
"""
MODULE = "functions_of_the_user"


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("own")
    named = "{" + ", ".join(f"'{name}': {name}" for name in FIELDS) + "}"
    code = FUNCTIONS.replace("(FIELDS)", f"({', '.join(FIELDS)})").replace("NAMES", named)
    (folder / f"{MODULE}.py").write_text(code)
    (folder / "broken_on_import.py").write_text("raise KeyError('no')\n")
    sys.path.insert(0, str(folder))
    yield __import__(MODULE)
    sys.path.remove(str(folder))
    for name in (MODULE, "broken_on_import"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def scorer(module) -> Iterator[Scorer]:
    with Scorer(num_workers=2, timeout_s=0.5, memory_mb=256) as scorer:
        yield scorer


@pytest.fixture
def entry() -> Mapping[str, Any]:
    return {"question": "2 + 2 =", "answer": "4", "metadata": {"source_dataset": "chain_sum"}}


MESSAGES = [{"role": "user", "content": "2 + 2 ="}]


def compute(
    scorer: Scorer, entry: Mapping[str, Any], parts: Mapping[str, Any], *texts: str, **others: Any
) -> list[CompletionReward]:
    rewards = GroupRewards(named(parts), scorer=scorer, max_tokens=100)
    group = [FinishedCompletion(text, len(text), "stop") for text in texts]
    return asyncio.run(rewards.compute(group, entry, messages=MESSAGES, level=2, step=9, **others))


def named(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"pkg://{MODULE}.{name}" if name != "accuracy" else name: options for name, options in parts.items()}


def values(rewarded: list[CompletionReward], part: str) -> list[float]:
    return [one.details[f"reward_{part}"] for one in rewarded]


RUNS = pytest.mark.parametrize("trusted", [False, True])


@RUNS
def test_own_functions_are_weighted_and_logged_beside_the_parts_of_this_package(scorer, entry, trusted):
    parts = {"accuracy": {"weight": 2}, "brevity": {"weight": 0.5, "per_token": 0.1, "trusted": trusted}}
    rewarded = compute(scorer, entry, parts, "<answer>4</answer>", "4")
    assert values(rewarded, "accuracy") == [1.0, 0.0]
    assert values(rewarded, "brevity") == pytest.approx([-1.8, -0.1])
    assert [one.reward for one in rewarded] == pytest.approx([2 - 0.9, -0.05])
    assert [one.details["num_failed_brevity"] for one in rewarded] == [0.0, 0.0]


@RUNS
def test_a_function_receives_the_fields_that_it_declares(scorer, entry, trusted):
    parts = {"fields": {"trusted": trusted}, "expected": {"trusted": trusted}}
    rewarded = compute(scorer, entry, parts, "<answer>4</answer>", "<answer>five</answer>", dataset="mine")
    assert values(rewarded, "fields") == [1.0, 1.0]
    assert values(rewarded, "expected") == [1.0, 0.0]


@RUNS
def test_a_batched_function_ranks_the_completions_of_a_prompt(scorer, entry, trusted):
    parts = {name: {"trusted": trusted} for name in ("rank", "above_mean")}
    rewarded = compute(scorer, entry, parts, "aaa", "a", "aaaaa")
    assert values(rewarded, "rank") == [0.0, 1.0, 0.0]
    assert values(rewarded, "above_mean") == [0.0, 0.0, 1.0]


@RUNS
@pytest.mark.parametrize("name", ["style", "styles"])
def test_several_parts_have_separate_weights_and_names(scorer, entry, trusted, name):
    options = {"weight": 2, "parts": {"words": 0, "polite": 0.5}, "trusted": trusted}
    rewarded = compute(scorer, entry, {name: options}, "yes please", "no")
    assert values(rewarded, f"{name}_words") == [2.0, 1.0]
    assert values(rewarded, f"{name}_polite") == [1.0, 0.0]
    assert [one.reward for one in rewarded] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "it returned None; return a number, 0 if the reward does not apply"),
        ("word", "it returned str '1'; return a number"),
        ("nan", "it returned nan; a reward must be a finite number"),
        ("huge", "OverflowError"),
        ("large", "it returned 1e.39; a reward must be a finite number of 32 bits"),
        ("spread", "StatisticsError"),
        ("two", r"it returned list \[1.0, 2.0\]; return a number"),
        ("style", "it returned several parts; give each a weight, as in `parts: {words: 1, polite: 1}`"),
        ("raises", "ValueError: no.* idea"),
        ("exits", "SystemExit"),
        ("short", "it returned 1 values for 3 completions"),
        ("long", "it returned 4 values for 3 completions"),
        ("scalar", "it returned float 1.0; return a list with one value per completion"),
        ("hidden_async", "it returned a coroutine; declare the function with `async def`"),
    ],
)
@RUNS
def test_a_function_that_fails_in_the_trial_is_a_configuration_error(scorer, entry, name, reason, trusted):
    rewards = GroupRewards(named({name: {"trusted": trusted}}), scorer=scorer, max_tokens=100)
    with pytest.raises(ConfigError, match=f"reward 'pkg://{MODULE}.{name}' fails in a trial: .*{reason}.*chain_sum"):
        asyncio.run(rewards.check(entry))


@pytest.mark.parametrize("name", ["opens", "connects"])
def test_the_sandbox_has_no_files_and_no_network(scorer, entry, name):
    rewards = GroupRewards(named({name: {}}), scorer=scorer, max_tokens=100)
    with pytest.raises(ConfigError, match=r"Permission.*the sandbox has no files and no network: .*trusted: true"):
        asyncio.run(rewards.check(entry))


def test_a_trial_of_working_functions_passes(scorer, entry):
    parts = {"brevity": {}, "rank": {}, "style": {"parts": {"words": 1, "polite": 1}}, "judge": {"trusted": True}}
    asyncio.run(GroupRewards(named(parts), scorer=scorer, max_tokens=100).check(entry, messages=MESSAGES))


@pytest.mark.parametrize("failing", ["bad", "hang", "big"])
def test_a_failure_in_the_sandbox_costs_only_its_own_completion_and_is_counted(scorer, entry, caplog, failing):
    rewarded = compute(scorer, entry, {"picky": {"on_failure": -1}}, "a", failing, "b", "c")
    assert values(rewarded, "picky") == [1.0, -1.0, 1.0, 1.0]
    assert [one.details["num_failed_picky"] for one in rewarded] == [0.0, 1.0, 0.0, 0.0]
    assert f"the completion '{failing}'" in caplog.text


def test_a_process_that_ends_is_a_failure(scorer, entry):
    [rewarded] = compute(scorer, entry, {"accuracy": {}, "dies": {}}, "<answer>4</answer>")
    assert (rewarded.reward, rewarded.details["num_failed_dies"]) == (1.0, 1.0)


def test_parts_that_depend_on_the_completion_fail_but_all_completions_keep_the_same_details(scorer, entry):
    rewarded = compute(scorer, entry, {"unequal": {"parts": {"words": 1, "polite": 1}}}, "a", "")
    assert len({tuple(one.details) for one in rewarded}) == 1
    assert [one.details["num_failed_unequal"] for one in rewarded] == [1.0, 0.0]


def test_repeated_failures_are_logged_ever_more_rarely(scorer, entry, caplog):
    caplog.set_level(logging.WARNING)
    compute(scorer, entry, {"raises": {}}, *["a"] * 20)
    assert len(caplog.records) == 5
    assert "\x1b" not in caplog.text


def test_a_function_that_executes_text_has_a_process_for_each_call(scorer, entry):
    rewarded = compute(scorer, entry, {"brevity": {"executes_text": True}}, "aa", "a")
    assert values(rewarded, "brevity") == [-0.02, -0.01]


def test_a_trusted_function_cannot_change_the_values_of_another(scorer, entry):
    parts = {"spoils": {"trusted": True}, "expected": {"trusted": True}, "fields": {}}
    assert values(compute(scorer, entry, parts, "<answer>4</answer>"), "fields") == [1.0]
    assert entry["answer"] == "4"
    assert MESSAGES


def test_asynchronous_calls_are_limited_in_number(scorer, entry, module):
    module.judge.most = 0
    options = {"trusted": True, "concurrency": 3, "delay": 0.005}
    rewarded = compute(scorer, entry, {"judge": options}, *["<answer>4</answer>", "no"] * 4)
    assert values(rewarded, "judge") == [1.0, 0.0] * 4
    assert module.judge.most == 3


def test_plain_trusted_functions_are_called_one_at_a_time(scorer, entry):
    assert values(compute(scorer, entry, {"alone": {"trusted": True}}, *"abcd"), "alone") == [1.0] * 4


@pytest.mark.parametrize("name", ["judge_object", "partial_judge"])
def test_an_asynchronous_object_is_awaited_too(scorer, entry, name):
    [one] = compute(scorer, entry, {name: {"trusted": True}}, "<answer>4</answer>")
    assert one.details["num_failed_" + name] == 0.0
    assert one.reward > 0


def test_functions_for_trl_get_columns_and_may_abstain(scorer, entry):
    rewarded = compute(scorer, entry, {"of_trl": {}, "judge_of_trl": {"trusted": True}}, "The 4.", "5")
    assert values(rewarded, "of_trl") == [1.0, 0.0]
    assert values(rewarded, "judge_of_trl") == [2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("judge", "bad", "ConnectionError: the judge is gone"),
        ("judge", "exit", "SystemExit: 3"),
        ("judge", "hang", "it exceeds timeout_s=0.05"),
        ("stubborn", "a", "it exceeds timeout_s=0.05"),
        ("cancels", "a", "it cancelled itself"),
        ("waits", "hang", "it exceeds timeout_s=0.05"),
    ],
)
def test_a_trusted_call_that_fails_or_exceeds_its_deadline_is_counted(scorer, entry, caplog, name, text, reason):
    rewarded = compute(scorer, entry, {name: {"trusted": True, "timeout_s": 0.05, "on_failure": -2}}, text)
    assert [(one.reward, one.details[f"num_failed_{name}"]) for one in rewarded] == [(-2.0, 1.0)]
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [("blocks", "blocks its event loop for over 1 s"), ("waits", "8 calls of reward .* hang beyond timeout_s=0.05")],
)
def test_a_trusted_function_that_can_never_answer_ends_the_run(scorer, entry, name, message):
    options = {"trusted": True, "timeout_s": 0.05, "concurrency": 1}
    with pytest.raises(RuntimeError, match=message):
        compute(scorer, entry, {name: options}, *["hang"] * 9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("brief", {}, "cannot be imported .*no attribute"),
        ("LIMIT", {}, "is a int; name a function"),
        ("Judge", {}, "is a class; name a function or a callable object"),
        ("brevity", {"per": 1}, r"has no argument 'per'; \(choose from: .*per_token"),
        ("brevity", {"completion": 1}, "receives 'completion' for each completion; remove this argument"),
        ("positional", {}, "has the parameter 'text', but functions are called by keywords"),
        ("starred", {}, r"has the parameter '\*texts', but functions are called by keywords"),
        ("without_fields", {}, "uses no field of a completion; declare completion, completions or fields"),
        ("other_words", {}, r"'answer', which is no field .*; use expected_answer \(or extracted_answer\)"),
        ("unknown", {}, "'txet', which is no field .*did you mean 'text'"),
        ("reserved", {}, "has a parameter 'parts', which is an option; rename it"),
        ("mixed", {}, "is batched and has a parameter 'text'; read it from completions"),
        ("judge", {}, "is asynchronous, but the sandbox has no network .*trusted: true"),
        ("brevity", {"timeout_s": 3}, "has timeout_s, which needs trusted: true"),
        ("brevity", {"trusted": True, "executes_text": True}, "has executes_text, which is for the sandbox"),
        ("brevity", {"trusted": 1}, "has trusted=1; give true or false"),
        ("brevity", {"trusted": True, "timeout_s": 0}, "has timeout_s=0; give seconds above 0"),
        ("brevity", {"trusted": True, "concurrency": True}, "has concurrency=True; give a whole number from 1 up"),
        ("brevity", {"on_failure": float("nan")}, "has on_failure=nan; give a finite number"),
        ("style", {"parts": ["words"]}, r"has parts=\['words'\]; give the weight of each part by name"),
        ("style", {"parts": {"two words": 1}}, "give the weight of each part by name"),
        ("brevity", {"per_token": "x" * 40_000}, "has arguments of .* bytes; keep long lists in its module"),
        ("style", {"parts": {"words": 0}}, "all rewards have weight 0"),
    ],
)
def test_an_unusable_function_is_refused_with_the_reason(name, options, message):
    with pytest.raises(ConfigError, match=message):
        parse_reward(named({name: options}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pkg://no_such_package.brevity", r"cannot be imported \(No module named 'no_such_package'\)"),
        ("pkg://brevity", "cannot be imported .*; write pkg://package.module.function"),
        ("pkg://broken_on_import.brevity", "KeyError: 'no'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_reward({name: None})


def test_two_parts_with_the_same_name_are_refused():
    with pytest.raises(ConfigError, match="two rewards are called 'length'"):
        parse_reward({"length": None} | named({"length": {}}))


def test_a_module_that_only_the_scoring_processes_lack_is_a_configuration_error(scorer, monkeypatch, tmp_path):
    # The processes were started with the module path of that time.
    (tmp_path / "late_module.py").write_text("def late(text): return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not OwnReward("pkg://late_module.late", {}).sees_group
    with pytest.raises(ConfigError, match="'pkg://late_module.late' cannot be imported"):
        GroupRewards({"pkg://late_module.late": {}}, scorer=scorer, max_tokens=100)
