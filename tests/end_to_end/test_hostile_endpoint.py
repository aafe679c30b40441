"""An evaluation finishes even if the model behind an endpoint answers with hostile text."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import chat_server
from test_linear_time import load_module

from rgtrain.evaluation.evaluation_config import load_config
from rgtrain.evaluation.evaluation_prompts import prompt_problems
from rgtrain.evaluation.results import ResultsFolder, read_answers
from rgtrain.paths import PROJECT_ROOT

TAILS = (" is the answer", "!", ", because 2 + 2 = 4", "; done", " ?", "\n\nI am sure.")
NUM_CHARS = 2_000
NUM_PROBLEMS = 40


@pytest.fixture
def config_file(tmp_path) -> Path:
    datasets = [{"dataset": name, "size": NUM_PROBLEMS} for name in ("polynomial_multiplication", "countdown")]
    values = {
        "model_path": f"openai://{chat_server.MODEL}",
        "output_dir": str(tmp_path / "results"),
        "max_tokens": 16,
        "temperature": 0,
        "endpoint": {"max_concurrent": 16},
        "scorer": {"num_workers": 2, "timeout_s": 1},
        "categories": [{"category": "executing", "datasets": datasets}],
    }
    path = tmp_path / "hostile.yaml"
    path.write_text(yaml.safe_dump(values | {"base_url": "http://127.0.0.1:1/v1"}))
    return path


def test_an_evaluation_of_hostile_answers_finishes(config_file):
    config = load_config(config_file)
    problems = prompt_problems(config.datasets, config.prompt_style)
    right = {item.messages[-1]["content"]: str(item.problem.entry["answer"]) for item in problems}
    # Correct answers with a tail alternate with texts on which patterns and parsers are slow.
    families = load_module(PROJECT_ROOT / "benchmarks" / "hostile_answers.py").LONG_TEXTS
    tails, makers = itertools.cycle(TAILS), itertools.cycle(families.values())
    replies = {
        question: answer + next(tails) if number % 2 else next(makers)(NUM_CHARS)
        for number, (question, answer) in enumerate(right.items())
    }

    class Handler(chat_server._Handler):
        def _reply(self, asked, failure):
            # The request at the evaluation's start asks for something else.
            text = f"<answer>{replies.get(asked['messages'][-1]['content'], 'OK')}</answer>"
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "created": 0, "model": chat_server.MODEL}
            self._send(200, answer | {"choices": [choice], "usage": None})

    with chat_server.serving() as server:
        server.RequestHandlerClass = Handler
        command = [sys.executable, "evaluation/evaluate_model.py", "--config", config_file]
        done = subprocess.run(
            [*command, f"base_url={server.base_url}", "--inspect-log"],
            cwd=PROJECT_ROOT,
            env=os.environ | {"OPENAI_API_KEY": chat_server.KEY},
            capture_output=True,
            text=True,
            timeout=180,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = load_config(config_file).results_folder
    assert (folder / "inspect.eval").is_file()
    answers = read_answers(ResultsFolder(folder).results)
    assert len(answers) == len(problems) == 2 * NUM_PROBLEMS
    assert any("is the answer" in (answer.answer or "") for answer in answers)
