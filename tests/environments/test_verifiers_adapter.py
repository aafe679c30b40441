"""verifiers, and so prime-rl, plays an environment's problems with training's reward."""

import asyncio
import importlib
import inspect
import json
from collections.abc import Iterator

import pytest
from support.many_answers import SETTINGS
from support.scripted_endpoint import ScriptedServer, completion, scripted

from rgtrain.environments import open_environment
from rgtrain.errors import ConfigError
from rgtrain.problems import load_entry

vf = pytest.importorskip("verifiers.v1", reason="verifiers is not installed; see requirements-verifiers.txt")
rgtrain_verifiers = importlib.import_module("rgtrain_verifiers")
verifiers_adapter = importlib.import_module("rgtrain.environments.verifiers_adapter")
load_environment = verifiers_adapter.load_environment

FEW = {
    "mixture": {"spell_backward": {}},
    "reward": {"accuracy": {}, "length": {"weight": 0.5, "max_len": 8}},
    "scorer": {"num_workers": 1},
    "size": 50,
    "validation_size": 3,
    "hold_out_shipped": False,
}
CURRICULUM = {"datasets": {"spell_backward": {"num_levels": 2}}}


@pytest.fixture(scope="module", autouse=True)
def key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RGTRAIN_TEST_KEY", "secret")
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted() as server:
        yield server


def reply(content: str, **changes) -> tuple:
    usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
    return 200, completion(content, **changes) | {"id": "1", "created": 1, "model": "small", "usage": usage}


def right_answer(task: verifiers_adapter.ReasoningGymTask) -> str:
    return f"<answer>{load_entry(task.data.problem['entry'])['answer']}</answer>"


def play(environment, tasks, server: ScriptedServer) -> list:
    """Return the trace of each task, played by the package against the server."""
    client = vf.EvalClientConfig(base_url=server.base_url, api_key_var="RGTRAIN_TEST_KEY")
    context = vf.ModelContext(client=client, model="small", sampling=vf.SamplingConfig(temperature=0.5))

    async def played() -> list:
        async with environment.serving():
            return [await environment.run_episode(task, context) for task in tasks]

    episodes = asyncio.run(played())
    assert [error for episode in episodes for trace in episode.traces for error in trace.errors] == []
    return [episode.traces[0] for episode in episodes]


def trace_of(task, text: str, num_tokens: int, *, template=None):
    """Return the trace of a finished rollout, as the package makes it."""
    nodes = [
        vf.MessageNode(message=vf.UserMessage(content="")),
        vf.MessageNode(
            parent=0, message=vf.AssistantMessage(content=text), sampled=True, token_ids=[1], mask=[True] * num_tokens
        ),
    ]
    if template is not None:
        return template.model_copy(update={"nodes": nodes, "state": verifiers_adapter.ReasoningGymState()})
    return vf.Trace(
        task=vf.TraceTask(type="ReasoningGymTask", data=task.data),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        state=verifiers_adapter.ReasoningGymState(),
        verifiers=vf.VersionInfo(version=""),
        nodes=nodes,
    )


def test_the_package_finds_the_taskset_and_a_harness_by_the_id():
    assert vf.taskset_config_type("rgtrain-verifiers") is verifiers_adapter.ReasoningGymConfig
    assert vf.task_type("owner/rgtrain-verifiers@latest") is verifiers_adapter.ReasoningGymTask
    assert vf.default_harness_id("rgtrain-verifiers") == "rgtrain-verifiers"
    assert vf.environment_class("rgtrain-verifiers") is vf.SingleAgentEnv
    assert rgtrain_verifiers.load_environment is load_environment


def test_the_configuration_has_the_arguments_of_an_environment():
    arguments = set(inspect.signature(open_environment).parameters)
    ours = {"split", "num_tasks", "reports", "group_size"}
    assert (
        set(verifiers_adapter.ReasoningGymConfig.model_fields) - set(vf.TasksetConfig.model_fields) == arguments | ours
    )


def test_the_package_plays_and_scores_problems(server):
    environment = load_environment(**FEW, taskset={"num_tasks": 3})
    tasks = list(environment.taskset)
    assert len({task.key for task in tasks}) == 3
    replies = iter([right_answer(tasks[0]), "<answer>no</answer>", ""])
    server.script(lambda asked: reply(next(replies), reasoning_content="I spell <answer>"))
    traces = play(environment, tasks, server)
    assert [asked.body["messages"][-1]["content"] for asked in server.asked] == [
        task.data.problem["question"] for task in tasks
    ]
    assert server.asked[0].body["messages"][0]["role"] == "system"
    # Seven of eight tokens cost half of the length part.
    assert [trace.reward for trace in traces] == [1 - 0.25, -0.25, -0.25]
    assert [trace.metrics["accuracy"] for trace in traces] == [1, 0, 0]
    assert [trace.metrics["answered"] for trace in traces] == [1, 1, 0]
    assert traces[0].metrics["reward_length"] == -0.5
    assert [trace.stop_condition for trace in traces] == ["agent_completed"] * 3


def test_validation_tasks_are_the_held_out_problems():
    validation = list(load_environment(**FEW, taskset={"split": "validation"}).taskset)
    training = load_environment(**FEW, taskset={"num_tasks": 50}).taskset
    assert len(validation) == 3
    assert not {task.data.prompt for task in validation} & {task.data.prompt for task in training}


def test_tasks_without_a_number_never_end():
    endless = load_environment(**FEW).taskset
    assert type(endless).INFINITE
    assert len(list(endless.take(60))) == 60
    assert not type(load_environment(**FEW, taskset={"num_tasks": 3}).taskset).INFINITE


def test_a_task_survives_the_way_to_a_scoring_process():
    environment = load_environment(**FEW, taskset={"num_tasks": 1})
    [task] = environment.taskset
    config = vf.resolve_env_config(json.loads(environment.config.model_dump_json()))
    data = verifiers_adapter.ReasoningGymTask.data_type().model_validate(json.loads(task.data.model_dump_json()))
    rebuilt = verifiers_adapter.ReasoningGymTask(data, config.taskset.task)
    trace = trace_of(rebuilt, right_answer(task), 2)
    asyncio.run(rebuilt.score(trace))
    assert trace.reward == 1.0


def test_results_reach_the_curriculum_through_the_file_of_reports(tmp_path):
    reports = tmp_path / "reports.jsonl"
    taskset = {"reports": str(reports), "group_size": 2}
    environment = load_environment(**FEW, curriculum=CURRICULUM, taskset=taskset)
    tasks = iter(environment.taskset)
    template = trace_of(next(tasks), "", 0)
    for _ in range(200):
        task = next(tasks)
        if task.data.problem["level"] == 1:
            break
        for _ in range(2):
            asyncio.run(task.scores(trace_of(task, right_answer(task), 1, template=template)))
    else:
        pytest.fail("the curriculum stayed at its first level")
    assert len(reports.read_bytes().splitlines()) % 2 == 0


def test_a_curriculum_without_reports_is_refused():
    environment = load_environment(**FEW, curriculum=CURRICULUM)
    with pytest.raises(ConfigError, match="the taskset has no reports"):
        next(iter(environment.taskset))


def test_verifiers_scores_as_training_does(answered_environment, many_answers, monkeypatch):
    environment = load_environment(**SETTINGS)
    key = verifiers_adapter._key(environment.config.taskset.task.environment)
    monkeypatch.setitem(verifiers_adapter._OPENED, key, answered_environment)
    task_of = environment.taskset._task
    tasks = {answer.problem.id: task_of(answer.problem) for answer in many_answers}

    template = trace_of(next(iter(tasks.values())), "", 0)

    def trace(answer):
        made = trace_of(tasks[answer.problem.id], answer.text, answer.num_tokens, template=template)
        return tasks[answer.problem.id], made

    async def rewards() -> list[float]:
        found = []
        for start in range(0, len(many_answers), 1000):
            some = [trace(answer) for answer in many_answers[start : start + 1000]]
            await asyncio.gather(*(task.scores(made) for task, made in some))
            found += [await task.reward(made) for task, made in some]
        return found

    assert asyncio.run(rewards()) == [answer.reward for answer in many_answers]
