"""The serving command writes NeMo Gym's inputs, and refuses to be reachable without a token."""

import json
import socket

import pytest

from rgtrain.commands import serve_environment_command
from rgtrain.commands.serve_environment_command import TOKEN_VARIABLE, main
from rgtrain.environments import open_environment

MIXTURE = "data: {mixture: {chain_sum: {}}, hold_out_shipped: false, validation_size: 4}"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Run the command without another process that cleans up after it."""
    monkeypatch.setattr(serve_environment_command, "clean_up_after_this_process", lambda: None)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.fixture
def experiment(tmp_path):
    file = tmp_path / "served.yaml"
    file.write_text(f"# @package _global_\ndefaults: [/base, _self_]\n{MIXTURE}\n")
    return file


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_inputs_of_nemo_gym_have_prompts_and_no_answers(experiment, tmp_path, capsys, split):
    path = tmp_path / "inputs.jsonl"
    words = ["--config", str(experiment), "--no-tokenizer", "--write-nemo-gym", str(path), "--count", "4"]
    main([*words, "--split", split, "--agent", "my_agent"], program="rgtrain serve-environment")
    assert "4 problems" in capsys.readouterr().out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with open_environment(experiment, with_tokenizer=False) as environment:
        problems = [environment.find(row["problem_id"]) for row in rows]
        expected = environment.validation if split == "validation" else [environment.problem(i) for i in range(4)]
        assert problems == list(expected)
    for row, problem in zip(rows, problems, strict=True):
        assert row == {
            "responses_create_params": {"input": list(problem.messages), "max_output_tokens": 1024},
            "problem_id": problem.id,
            "dataset": "chain_sum",
            "level": None,
            "agent_ref": {"type": "responses_api_agents", "name": "my_agent"},
        }


def error_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(words), program="rgtrain serve-environment")
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", "127.0.0.1.example.org", ""])
def test_other_machines_cannot_reach_a_service_without_a_token(capsys, host):
    assert "has no token" in error_of(capsys, f"--host={host}")


@pytest.mark.parametrize("token", ["", "short", "with a space in the middle", "é" * 20])
def test_an_unusable_token_is_refused(capsys, tmp_path, token):
    file = tmp_path / "token"
    file.write_text(token)
    assert "characters" in error_of(capsys, "--token-file", str(file))
    assert token not in capsys.readouterr().err or not token


def test_a_token_file_must_exist(capsys, tmp_path):
    assert "cannot be read" in error_of(capsys, "--token-file", str(tmp_path / "absent"))


def test_more_inputs_than_problems_are_refused(capsys, experiment, tmp_path):
    words = ["--config", str(experiment), "--no-tokenizer", "--write-nemo-gym", str(tmp_path / "inputs.jsonl")]
    assert "at most 4" in error_of(capsys, *words, "--count", "5", "--split", "validation")
    assert not (tmp_path / "inputs.jsonl").exists()


@pytest.mark.parametrize("words", [["--port", "x"], ["--max-batch", "0"], ["--deadline-s", "-1"], ["--split", "test"]])
def test_wrong_options_are_refused(capsys, words):
    assert "usage" in error_of(capsys, *words)


def test_a_port_in_use_is_noticed_before_the_problems_are_made(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert f"cannot listen on port {port}" in error_of(capsys, "--config", "absent", "--port", port)
    assert "there is no experiment" in error_of(capsys, "--config", "absent", "--port", "0")
    assert "cannot listen" in error_of(capsys, "--port", "70000")
