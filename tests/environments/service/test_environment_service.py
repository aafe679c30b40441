"""The HTTP service, as a real process: it scores as training does, keeps its limits and loses no report."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import yaml
from support.many_answers import SETTINGS

from rgtrain.environments.service.nemo_gym import completion_of
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import load_entry

TOKEN = "a-token-of-the-tests-0123456789"
# The environment of support/many_answers.py as an experiment.
EXPERIMENT = {
    "defaults": ["/base", "_self_", {"override /mixture_policy": "adaptive"}],
    "data": {
        "mixture": SETTINGS["mixture"],
        "curriculum": SETTINGS["curriculum"],
        "train_size": SETTINGS["size"],
        "hold_out_shipped": False,
        "max_response_length": SETTINGS["max_response_tokens"],
    },
    "reward": {"parts": SETTINGS["reward"], "scorer": SETTINGS["scorer"]},
}
WORDS = [f"seed={SETTINGS['seed']}", f"data.validation_size={SETTINGS['validation_size']}"]


@dataclass
class Service:
    process: subprocess.Popen
    url: str
    state: Path

    def client(self, **options) -> httpx.Client:
        return httpx.Client(
            **{"base_url": self.url, "headers": {"authorization": f"Bearer {TOKEN}"}, "timeout": 60} | options
        )

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    file = tmp_path_factory.mktemp("experiments") / "served.yaml"
    file.write_text(
        f"# @package _global_\n# The environment of the tests.\n{yaml.safe_dump(EXPERIMENT, sort_keys=False)}"
    )
    return file


@pytest.fixture(scope="module")
def service(tmp_path_factory, experiment):
    folder = tmp_path_factory.mktemp("service")
    (folder / "token").write_text(f"{TOKEN}\n")
    state = folder / "state.json"
    command = [sys.executable, "-m", "rgtrain", "serve-environment", "--config", str(experiment), *WORDS]
    command += ["--no-tokenizer", "--port", "0", "--token-file", str(folder / "token"), "--state", str(state)]
    command += ["--max-body-mb", "2", "--max-completion-chars", "5000", "--max-concurrent", "8", "--deadline-s", "30"]
    process = subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}, stdout=subprocess.PIPE, text=True
    )
    try:
        lines = []
        while not (found := re.search(r"on (http://\S+);", lines[-1] if lines else "")):
            lines.append(process.stdout.readline())
            assert lines[-1], "the service ended"
        yield Service(process, found[1], state)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def client(service):
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def environment(answered_environment):
    return answered_environment


def test_10_000_answers_are_scored_as_training_scores_them(client, many_answers):
    def score(batch) -> list[dict]:
        completions = [{"problem_id": one.problem.id, "text": one.text, "num_tokens": one.num_tokens} for one in batch]
        reply = client.post("/scores", json={"completions": completions})
        assert reply.status_code == 200, reply.text
        return reply.json()["scores"]

    with ThreadPoolExecutor(4) as threads:
        batches = threads.map(score, (many_answers[first : first + 500] for first in range(0, len(many_answers), 500)))
        given = [score for batch in batches for score in batch]
    assert given == [
        {
            "reward": one.reward,
            "parts": {name: one.details[f"reward_{name}"] for name in SETTINGS["reward"]},
            "accuracy": one.details["acc"],
            "answer": one.answer,
            "error": None,
        }
        for one in many_answers
    ]


def asked(client, indices, **options) -> list[dict]:
    reply = client.get("/problems", params={"index": list(indices), **options})
    assert reply.status_code == 200, reply.text
    return reply.json()["problems"]


def test_problems_are_those_of_the_environment_without_answers(client, environment):
    pairs = list(zip(asked(client, range(20)), map(environment.problem, range(20)), strict=True))
    pairs += zip(asked(client, range(4), split="validation"), environment.validation, strict=True)
    for problem, ours in pairs:
        assert problem["messages"] == list(ours.messages)
        assert (problem["id"], problem["question"], problem["answer"]) == (ours.id, ours.question, None)


def test_the_metadata_describe_the_environment(client, environment):
    metadata = client.get("/metadata").json()
    assert metadata["num_levels"] == {"spell_backward": 2}
    assert set(metadata["datasets"]) == {spec.name for spec in environment.splits.training.mixture.specs}
    assert metadata["needs_num_tokens"]
    assert metadata["limits"]["max_body_bytes"] == 2 << 20


def test_requests_without_the_token_are_refused(service):
    with service.client(headers={}) as stranger:
        assert stranger.get("/health").json() == {"status": "ok"}
        assert stranger.get("/openapi.json").status_code == 200
        for given in (
            None,
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            "Bearer é",
        ):
            headers = {} if given is None else {"authorization": given.encode()}
            for path in ("/metadata", "/problems?index=0", "/absent"):
                reply = stranger.get(path, headers=headers)
                assert reply.status_code == 401
                assert "Authorization: Bearer" in reply.json()["error"]
        assert stranger.post("/scores", content=b"x" * (3 << 20)).status_code == 401


def completion(problem_id: str, rest: str = '"text":""') -> bytes:
    return f'{{"completions":[{{"problem_id":"{problem_id}",{rest}}}]}}'.encode()


def hostile_bodies(problem_id: str) -> dict[str, tuple[bytes, int]]:
    return {
        "empty": (b"", 422),
        "cut": (b'{"completions":', 422),
        "no UTF-8": (completion(problem_id).replace(b'""', b'"\xff\xfe"'), 400),
        "deep list": (b"[" * 200_000, 400),
        "deep object": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
        "list": (b"[]", 422),
        "surrogate": (completion(problem_id, r'"text":"<answer>\ud800</answer>"'), 422),
        "surrogate in the id": (completion(r"\ud800"), 422),
        "surrogate in a name": (completion(problem_id, r'"text":"","\ud800":1'), 422),
        "NaN": (completion(problem_id, '"text":"","num_tokens":NaN'), 422),
        "huge number": (completion(problem_id, f'"text":"","num_tokens":1{"0" * 5000}'), 400),
        "large number": (completion(problem_id, f'"text":"","num_tokens":1{"0" * 100}'), 422),
        "fraction": (completion(problem_id, '"text":"","num_tokens":1.5'), 422),
        "negative": (completion(problem_id, '"text":"","num_tokens":-1'), 422),
        "no text": (completion(problem_id, '"num_tokens":1'), 422),
        "unknown field": (completion(problem_id, '"text":"","tokens":1'), 422),
        "no tokens": (completion(problem_id), 400),
        "long completion": (completion(problem_id, f'"text":"{"a" * 5001}"'), 413),
        "large batch": (json.dumps({"completions": [{"problem_id": problem_id, "text": ""}] * 1025}).encode(), 413),
        "empty batch": (b'{"completions":[]}', 422),
        "unknown problem": (completion(problem_id[:-16] + "0" * 16), 404),
        "large body": (b" " * ((2 << 20) + 1), 413),
    }


def test_hostile_bodies_get_an_error_in_json(client):
    [problem] = asked(client, [0])
    for name, (body, status) in hostile_bodies(problem["id"]).items():
        reply = client.post("/scores", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == status, (name, reply.text)
        assert len(reply.json()["error"]) < 1000, name
    parts = client.post("/scores", content=iter([b" " * (1 << 20)] * 3), headers={"content-type": "application/json"})
    assert parts.status_code == 413
    for path, status in (("/absent", 404), ("/scores", 405), ("/problems", 422), ("/problems?index=-1", 400)):
        reply = client.get(path)
        assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert client.get("/health").status_code == 200


def test_slow_clients_do_not_block_others(service, client):
    head = f"POST /scores HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 100\r\n"
    # These have half a head, half a body, or nothing.
    slow = [service.connect() for _ in range(30)]
    for number, connection in enumerate(slow):
        connection.sendall([head.encode(), b"", f"{head}\r\n{{".encode()][0 if number > 6 else number % 3])
    began = time.monotonic()
    assert client.get("/health").status_code == 200
    assert time.monotonic() - began < 10
    # All requests that may run at a time wait for their body.
    busy = [service.connect() for _ in range(8)]
    for connection in busy:
        connection.sendall(f"{head}\r\n{{".encode())
    refused = client.get("/metadata")
    deadline = time.monotonic() + 20
    while refused.status_code == 200 and time.monotonic() < deadline:
        refused = client.get("/metadata")
    assert refused.status_code == 503
    assert "running already" in refused.json()["error"]
    assert client.get("/health").status_code == 200
    for connection in slow + busy:
        connection.close()
    while client.get("/metadata").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.get("/metadata").status_code == 200


def recorded_response(thought: str, text: str) -> dict:
    """Return a response in the form of a row that NeMo Gym's agent recorded."""
    content = [{"annotations": [], "text": text, "type": "output_text", "logprobs": None}]
    summary = [{"text": thought, "type": "summary_text"}]
    nulls = dict.fromkeys(["error", "incomplete_details", "instructions", "metadata", "temperature", "text", "user"])
    return {
        **{"id": "resp_2848c884", "created_at": 1759381830.0, "model": "Qwen/Qwen3-30B-A3B", "object": "response"},
        "output": [
            {"id": "rs_7867d634", "summary": summary, "type": "reasoning", "encrypted_content": None},
            {"id": "msg_df4bc2ff", "content": content, "role": "assistant", "status": "completed", "type": "message"},
        ],
        **{"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **nulls},
        "usage": {"input_tokens": 60, "output_tokens": 4, "total_tokens": 64},
    }


def test_nemo_gym_verifies_a_response(client, environment):
    problem = environment.problem(5)
    answer = load_entry(problem.entry)["answer"]
    row = {"responses_create_params": {"input": list(problem.messages)}, "problem_id": problem.id, "_ng_task_index": 7}
    assert client.post("/seed_session", json=row).json() == {}
    response = recorded_response("so", f"<answer>{answer}</answer>")
    reply = client.post("/verify", json={**row, "response": response}).json()
    [score] = client.post(
        "/scores",
        json={
            "completions": [
                {"problem_id": problem.id, "text": f"<think>so</think><answer>{answer}</answer>", "num_tokens": 4}
            ]
        },
    ).json()["scores"]
    assert reply.items() >= {**row, "response": response, "reward": score["reward"], "accuracy": 1.0}.items()
    assert reply["reward_format"] == 1
    summary = client.post("/aggregate_metrics", json={"verify_responses": [reply, {**reply, "reward": 0}]}).json()
    assert summary["agent_metrics"]["mean/reward"] == score["reward"] / 2
    assert [group["_ng_task_index"] for group in summary["group_level_metrics"]] == [7]


def test_reasoning_after_an_opening_tag_of_the_prompt_has_no_second_one(environment):
    problem = replace(environment.problem(5), thinking_begun=True)
    assert completion_of(problem, recorded_response("so", "4")).text == "so\n</think>\n4"


@pytest.mark.parametrize("extra", ['"x":NaN', f'"x":{"[" * 400}{"]" * 400}', r'"x":"\ud800"', f'"x":{"9" * 4000}'])
def test_a_hostile_row_of_nemo_gym_gets_json(client, environment, extra):
    problem = environment.problem(5)
    row = {
        "responses_create_params": {},
        "problem_id": problem.id,
        "response": {"output": [], "usage": {"output_tokens": 1}},
    }
    body = f"{{{extra},{json.dumps(row)[1:]}"
    reply = client.post("/verify", content=body.encode(), headers={"content-type": "application/json"})
    assert reply.status_code in (200, 400)
    assert reply.json().keys() & {"reward", "error"}


@pytest.mark.parametrize(
    "response",
    [
        {},
        {"output": 1},
        {"output": [1]},
        {"output": [{"type": "message"}]},
        {"output": [{"type": "message", "content": [1]}]},
        {"output": [{"type": "message", "generation_token_ids": 5, "content": []}]},
        {"output": [], "usage": {"output_tokens": -1}},
        {"output": [], "usage": {"output_tokens": True}},
    ],
)
def test_a_response_of_another_form_is_refused(client, environment, response):
    row = {"responses_create_params": {}, "problem_id": environment.problem(5).id, "response": response}
    reply = client.post("/verify", json=row)
    assert reply.status_code == 400
    assert "Responses API" in reply.json()["error"]


def test_the_openapi_description_is_complete(client):
    from fastapi.openapi.models import OpenAPI
    from jsonschema import Draft202012Validator

    description = client.get("/openapi.json").json()
    assert description["openapi"].startswith("3.1")
    OpenAPI.model_validate(description)
    schemas = description["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
        assert schema["description"]
        assert all("description" in one or "$ref" in str(one) for one in schema.get("properties", {}).values())
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(description)))
    assert references == set(schemas) - {"HTTPValidationError", "ValidationError"}
    operations = [operation for methods in description["paths"].values() for operation in methods.values()]
    identifiers = [operation["operationId"] for operation in operations]
    assert len(set(identifiers)) == len(identifiers) == 9
    for operation in operations:
        assert operation["summary"]
        assert {"401", "413", "503", "504"} < set(operation["responses"])
        assert all(reply["description"] for reply in operation["responses"].values())
        assert all(parameter["description"] for parameter in operation.get("parameters", ()))
    assert description["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_a_report_counts_once_and_is_saved_before_the_reply(service, client):
    problems = [one for one in asked(client, range(40)) if one["dataset"] == "letter_jumble"]
    groups = [{"problem_id": one["id"], "accuracies": [1, 0], "rewards": [1, 0.5]} for one in problems]
    first = client.post("/reports", json={"groups": groups, "report_id": "step-1"}).json()
    saved = service.state.read_text()
    again = client.post("/reports", json={"groups": groups, "report_id": "step-1"}).json()
    assert (first["counted"], again["counted"]) == (True, False)
    assert first["metrics"] == again["metrics"]
    assert json.loads(saved)["environment"]["curriculum"]["weights"]["shares"]["letter_jumble"] > 0.5
    assert service.state.read_text() == saved
    wrong = [{"problem_id": problems[0]["id"], "accuracies": [1, 1], "rewards": [1]}]
    assert client.post("/reports", json={"groups": wrong}).status_code == 400


def test_each_of_the_next_problems_is_given_out_once(client, environment):
    with ThreadPoolExecutor(4) as threads:
        replies = threads.map(lambda _: client.post("/problems/next", json={"count": 3}).json(), range(4))
        given = [problem["id"] for reply in replies for problem in reply["problems"]]
    assert len(given) == len(set(given)) == 12


def test_the_service_stops_after_its_running_requests_and_saves_its_state(service, client, environment):
    """The last test of the module."""
    with service.connect() as connection:
        body = completion(asked(client, [0])[0]["id"], '"text":"","num_tokens":1')
        head = (
            f"POST /scores HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n"
        )
        connection.sendall(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode())
        # The service has read the head when it has answered a later request.
        time.sleep(0.2)
        assert client.get("/health").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.sendall(body)
        reply = b""
        while part := connection.recv(65536):
            reply += part
    assert b"200 OK" in reply and b'"scores"' in reply
    assert service.process.wait(timeout=60) == 0
    assert service.process.stdout.read() == "stopped\n"
    state = json.loads(service.state.read_text())
    assert state["report_ids"] == ["step-1"]
    assert state["environment"]["next"] == 12
    before = environment.state_dict()
    environment.load_state_dict(state["environment"])
    weights = environment.curriculum.weights.now()
    # Other tests use this environment, too.
    environment.load_state_dict(before)
    assert weights["letter_jumble"] > weights["chain_sum"]
