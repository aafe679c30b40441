"""Sampling parameters reach the engines, and a limit that is raised asks only for the missing answers."""

from support import chat_server
from support.endpoint_evaluation import endpoint_config

from rgtrain.evaluation.results import read_answers
from rgtrain.evaluation.runner import evaluate

SAMPLING = {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5}
SETTINGS = SAMPLING | {"stop": ["Question:", "\n\n"], "eval_repeats": 1}


def test_an_endpoint_receives_every_sampling_parameter_and_a_raised_limit_asks_for_the_rest(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OPENAI_API_KEY", chat_server.KEY)
    bodies = []

    class Handler(chat_server._Handler):
        def _reply(self, asked, failure):
            bodies.append(asked)
            super()._reply(asked, failure)

    with chat_server.serving() as server:
        server.RequestHandlerClass = Handler
        few = endpoint_config(tmp_path, server.base_url, limit=2, **SETTINGS)
        first = read_answers(evaluate(few, command=["x"]).results)
        num_asked = len(bodies)
        more = endpoint_config(tmp_path, server.base_url, limit=3, **SETTINGS)
        answers = read_answers(evaluate(more, command=["x"]).results)
        num_asked_later = len(bodies) - num_asked
    table = capsys.readouterr().out.rpartition("\ncategory")[2]
    # A finished evaluation is shown without the endpoint.
    evaluate(more, command=["x"])
    again = capsys.readouterr().out
    assert all(body[name] == SETTINGS[name] for body in bodies for name in (*SAMPLING, "stop"))
    assert [answer.problem for answer in first] == [0, 1, 30, 31]
    assert [answer.problem for answer in answers] == [0, 1, 2, 30, 31, 32]
    # Besides the missing answers, an endpoint may be asked to try a request at the start.
    assert num_asked_later == num_asked - 2
    assert "already finished" in again and again.rpartition("\ncategory")[2] == table
