"""One tiny request at the start finds the keys that an endpoint takes, and names the cause if it takes none."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.scripted_endpoint import Asked, Reply, completion, scripted

from rgtrain.errors import ConfigError
from rgtrain.evaluation import endpoint
from rgtrain.evaluation.endpoint import EndpointEngine, EndpointFailed, connect
from rgtrain.evaluation.endpoint_negotiation import PROBE, PROBE_TOKENS, preferred_format
from rgtrain.evaluation.endpoint_settings import EndpointSettings
from rgtrain.evaluation.engine_interface import MAX_REFUSAL_CHARS, Completion, Prompt, Sampling

KEY = "secret-key-of-the-tests"
MODELS = {"data": [{"id": "m", "max_model_len": 4096}]}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "_FIRST_WAIT_S", 0.001)


@pytest.fixture(scope="module")
def server():
    with scripted() as running:
        yield running


def answering(respond: Callable[[Any], Reply], *, models: Reply = (200, MODELS)) -> Callable[[Asked], Reply]:
    """Return a script that lists models and answers chat requests with `respond(body)`."""

    def reply(asked: Asked) -> Reply:
        if asked.method == "GET":
            return models if asked.target == "/v1/models" else (404, "nothing here")
        return respond(asked.body) if asked.target == "/v1/chat/completions" else (404, "nothing here")

    return reply


def refuses(*rules: tuple[Callable[[dict], bool], str]) -> Callable[[dict], Reply]:
    """Return a `respond` that refuses a request with the message of the first rule that applies to it."""

    def respond(body: dict) -> Reply:
        for applies, message in rules:
            if applies(body):
                return 400, {"error": {"message": message}}
        return 200, completion()

    return respond


def connected(server, *, temperature: float = 1.0, top_p: float = 1.0, model: str = "m", **changes) -> EndpointEngine:
    values = {"num_requests": 1, "max_retries": 2} | changes
    names = ("max_retries", "max_concurrent", "max_refused_share", "timeout_s", "chat_template_kwargs")
    settings = {name: values.pop(name) for name in names if name in values}
    settings = EndpointSettings(values.pop("base_url", server.base_url), model, **settings)
    return connect(settings, Sampling(1000, temperature, top_p), **values)


def test_every_sampling_parameter_is_sent_because_a_server_may_have_other_defaults(server):
    server.script(answering(refuses()))
    sent = connected(server, top_p=0.9, chat_template_kwargs={"enable_thinking": False}).request_format.as_json()
    assert sent["not_sent"] == sent["renamed"] == {}
    _, probe = server.asked
    expected = {
        "model": "m",
        "messages": [{"role": "user", "content": PROBE}],
        "max_tokens": PROBE_TOKENS,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "chat_template_kwargs": {"enable_thinking": False},
        "seed": 0,
    }
    assert probe.body == probe.body | expected


def test_greedy_requests_have_no_seed_and_no_empty_keys():
    body = preferred_format(Sampling(5, 0)).body(model="m", messages=[], seed=3)
    assert not {"seed", "stop", "chat_template_kwargs"} & set(body)


def has(*keys: str) -> Callable[[dict], bool]:
    return lambda body: any(key in body for key in keys)


def openai_reasoning(body: dict) -> Reply:
    return refuses(
        (has("top_k", "min_p"), "Unrecognized request arguments supplied: min_p, top_k"),
        (has("repetition_penalty"), "Unrecognized request argument supplied: repetition_penalty"),
        (
            has("max_tokens"),
            "Unsupported parameter: 'max_tokens' is not supported here. Use 'max_completion_tokens' instead.",
        ),
        (
            lambda body: body.get("temperature", 1) != 1,
            "Unsupported value: 'temperature' does not support 0.6 with this model. Only the default (1) is supported.",
        ),
        (has("top_p"), "Unsupported parameter: 'top_p' is not supported with this model."),
    )(body)


def claude(body: dict) -> Reply:
    message = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
    return refuses((lambda body: "temperature" in body and "top_p" in body, message))(body)


def mistral(body: dict) -> Reply:
    forbidden = [key for key in body if key in ("top_k", "min_p", "repetition_penalty", "seed")]
    details = [
        {"type": "extra_forbidden", "loc": ["body", key], "msg": "Extra inputs not permitted"} for key in forbidden
    ]
    return (422, {"detail": details}) if details else (200, completion())


def unnamed(body: dict) -> Reply:
    return refuses((has("top_k", "seed"), "Bad request"), (has("max_tokens"), "Bad request"))(body)


def broken_by_a_key(body: dict) -> Reply:
    message = "create() got an unexpected keyword argument 'repetition_penalty'"
    return (500, {"error": {"message": message}}) if "repetition_penalty" in body else (200, completion())


EXTENSIONS = {"top_k", "min_p", "repetition_penalty"}
PENALTIES = {"presence_penalty", "frequency_penalty"}
ACCEPTED = {
    "openai's reasoning models": (openai_reasoning, {}, EXTENSIONS | {"top_p"}, True),
    "temperature excludes top_p": (claude, {}, {"top_p"}, False),
    "temperature excludes top_p, greedy": (claude, {"temperature": 0, "top_p": 0.9}, {"top_p"}, False),
    "temperature 1 excludes top_p below 1": (claude, {"top_p": 0.9}, {"temperature"}, False),
    "no extensions": (mistral, {}, EXTENSIONS | {"seed"}, False),
    "no reason": (unnamed, {}, EXTENSIONS | {"seed"}, True),
    "status 500": (broken_by_a_key, {}, {"repetition_penalty"}, False),
    "another spelling": (
        refuses((has("repetition_penalty"), "The model does not support parameter repetitionPenalty.")),
        {},
        {"repetition_penalty"},
        False,
    ),
    "no seed": (refuses((has("seed"), "Unrecognized request argument supplied: seed")), {}, {"seed"}, False),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_keys_that_an_endpoint_refuses_are_left_out_if_that_changes_nothing(server, name, capsys):
    respond, sampling, not_sent, is_renamed = ACCEPTED[name]
    server.script(answering(respond))
    request_format = connected(server, **sampling).request_format
    # A refusal without a reason removes these too.
    assert set(request_format.not_sent) - PENALTIES == not_sent
    assert request_format.renamed == ({"max_tokens": "max_completion_tokens"} if is_renamed else {})
    body = server.asked[-1].body
    assert not not_sent & set(body) and ("max_completion_tokens" in body) == is_renamed
    recorded = request_format.as_json()
    assert set(recorded["not_sent"]) >= not_sent and all(recorded["not_sent"].values())
    assert "the requests mean the same without" in capsys.readouterr().out


REFUSED = {
    "temperature": (openai_reasoning, {"temperature": 0.6}, "refuses temperature 0.6 .*Only the default"),
    "top_p": (openai_reasoning, {"top_p": 0.9}, r"refuses top_p 0.9 .*would measure something else"),
    "temperature with top_p": (claude, {"temperature": 0.6, "top_p": 0.9}, "refuses temperature 0.6, top_p 0.9"),
    "template arguments": (
        refuses((has("chat_template_kwargs"), "Unrecognized request argument supplied: chat_template_kwargs")),
        {"chat_template_kwargs": {"enable_thinking": False}},
        "refuses chat_template_kwargs {'enable_thinking': False}",
    ),
    "everything": (
        refuses((lambda body: True, "System role not supported")),
        {},
        "refuses every request .*System role",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_key_that_matters_is_not_left_out(server, name):
    respond, changes, message = REFUSED[name]
    server.script(answering(respond))
    with pytest.raises(ConfigError, match=message):
        connected(server, **changes)


def test_only_this_prompt_fails_and_the_evaluation_starts(server):
    server.script(answering(lambda body: (200, {"choices": [{"message": {}, "finish_reason": "content_filter"}]})))
    assert connected(server).max_model_len == 4096


NOT_LISTED = {
    "listed": ((200, MODELS), 4096),
    "a bare list": ((200, ["m"]), None),
    "a page": ((200, "<html>"), None),
    "no list": ((404, ""), None),
    "a list for other keys": ((403, {"error": {"message": "missing scope model.read"}}), None),
    "a broken list": ((500, ""), None),
    "an empty list": ((200, {"data": []}), None),
    "a model that is served but not listed": ((200, {"data": [{"id": "other"}]}), None),
}


@pytest.mark.parametrize("name", NOT_LISTED)
def test_a_model_is_tried_even_if_it_is_not_listed(server, name, capsys):
    models, max_model_len = NOT_LISTED[name]
    server.script(answering(refuses(), models=models))
    assert connected(server).max_model_len == max_model_len
    assert ("does not list the model 'm', but answers for it" in capsys.readouterr().out) == ("served" in name)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_model_that_is_neither_listed_nor_served_is_refused_with_the_nearest_name(server, status):
    server.script(answering(lambda body: (status, {"error": {"message": "no such model"}})))
    with pytest.raises(ConfigError, match="has no model 'n' .*no such model.*choose from: m"):
        connected(server, model="n", max_retries=0)


@pytest.mark.parametrize(
    ("path", "better"),
    [("", "/v1"), ("/", "/v1"), ("/v1/chat/completions", "/v1"), ("/v1/models/", "/v1"), ("/v1/completions", "/v1")],
)
def test_a_wrong_address_is_named_with_the_right_one(server, path, better):
    server.script(answering(refuses()))
    with pytest.raises(ConfigError, match=f"has no chat completions .*; set base_url to {server.origin}{better}$"):
        connected(server, base_url=server.origin + path)


@pytest.mark.parametrize("reply", [(404, "Not Found"), (405, ""), (501, "<html>")], ids=str)
def test_an_address_without_chat_completions_is_named(server, reply):
    server.script(lambda asked: reply)
    with pytest.raises(
        ConfigError, match=r"has no chat completions for the model 'm' \(HTTP .*give the address in front"
    ):
        connected(server)


@pytest.mark.parametrize("reply", [(200, "<html>login</html>"), (200, {"error": "Unexpected endpoint"})], ids=str)
def test_an_address_of_something_else_is_reported_with_its_first_line(server, reply):
    server.script(lambda asked: reply)
    with pytest.raises(ConfigError, match="answers no request .*(<html>login</html>|Unexpected endpoint)"):
        connected(server, max_retries=1)
    assert sum(asked.method == "POST" for asked in server.asked) == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_server_that_never_finishes_its_reply_is_reported_after_one_deadline(server, method):
    def drip() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        for _ in range(20):
            time.sleep(0.05)
            yield b" "

    server.script(lambda asked: drip() if asked.method == method else (200, MODELS))
    with pytest.raises(ConfigError, match="no complete reply within 0.2 s"):
        connected(server, timeout_s=0.2, max_retries=20)
    assert sum(asked.method == method for asked in server.asked) == 1


def test_a_redirect_to_another_server_is_named(server):
    server.script(lambda asked: (301, "", {"Location": "https://other/v1" + asked.target.removeprefix("/v1")}))
    with pytest.raises(ConfigError, match="redirects to https://other/v1 .*; set base_url to that address"):
        connected(server)


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "refuses the key"), (403, "refuses the key"), (402, "no credit left"), (407, "a proxy refuses")],
)
def test_a_refused_key_or_account_ends_the_evaluation_at_once_and_the_key_is_not_shown(server, status, message):
    server.script(answering(lambda body: (status, {"error": {"message": f"not for {KEY}"}}), models=(status, KEY)))
    with pytest.raises(ConfigError, match=message) as error:
        connected(server)
    assert KEY not in str(error.value)
    assert sum(asked.method == "POST" for asked in server.asked) == 1


def test_an_endpoint_behind_a_proxy_is_reported_with_the_proxy_but_not_its_password(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:pa55word@127.0.0.1:1")
    message = (
        r"cannot reach base_url http://models.example/v1 through the proxy http://\*\*\*@127.0.0.1:1 of .* no_proxy"
    )
    with pytest.raises(ConfigError, match=message):
        connected(server, base_url="http://models.example/v1", max_retries=0)


def test_a_server_without_tls_is_named(server):
    with pytest.raises(ConfigError, match="write http:// instead of https://"):
        connected(server, base_url=server.base_url.replace("http", "https"), max_retries=0)


def completions(engine: EndpointEngine, *questions: str, num_samples: int = 1) -> list[tuple[int, Completion]]:
    prompts = [Prompt([{"role": "user", "content": question}], None, num_samples) for question in questions]
    return sorted(engine.generate(prompts, Sampling(1000, 1.0)), key=lambda pair: pair[0])


def answering_first_the_probe(*replies: Reply) -> Callable[[Asked], Reply]:
    """Return a script that gives these replies, the last one for ever, after a good one to the first request."""
    remaining = [(200, completion()), *replies]
    return answering(lambda body: remaining.pop(0) if len(remaining) > 1 else remaining[0])


def test_each_request_has_another_seed(server):
    server.script(answering(refuses()))
    assert len(completions(connected(server), "a", "b", num_samples=3)) == 6
    seeds = {asked.body["seed"] for asked in server.asked[2:]}
    assert len(seeds) == 6 and all(0 <= seed < 2**31 for seed in seeds)
    assert server.asked[-1].body["max_tokens"] == 1000


RETRIED = {
    "status 503": (503, "busy"),
    "status 425": (425, ""),
    "status 429": (429, "slow down", {"Retry-After": "0"}),
    "a page": (200, "<html>busy</html>"),
    "an error": (200, {"error": {"message": "busy"}}),
    "a cut body": b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    "a closed connection": b"",
    "no choices": (200, {"choices": None}),
    "an error as the end": (200, {"choices": [{"message": {"content": "3"}, "finish_reason": "error"}]}),
}


@pytest.mark.parametrize("name", RETRIED)
def test_a_failed_request_is_sent_again(server, name):
    server.script(answering_first_the_probe(RETRIED[name], RETRIED[name], (200, completion("4"))))
    [(_, answer)] = completions(connected(server), "2 + 2?")
    assert (answer.text, answer.num_tokens, answer.refused) == ("4", 7, "")


def test_the_time_that_the_server_asks_for_is_waited_for(server):
    server.script(answering_first_the_probe((429, "", {"Retry-After": "0.5"}), (200, completion())))
    engine = connected(server)
    started = time.monotonic()
    assert len(completions(engine, "a")) == 1
    assert time.monotonic() - started > 0.5


@pytest.mark.parametrize("reply", [(200, "<html>\nbusy"), (503, "<html>\nbusy")], ids=str)
def test_a_server_that_keeps_failing_ends_the_evaluation_with_its_first_line(server, reply):
    server.script(answering_first_the_probe(reply))
    with pytest.raises(EndpointFailed, match="failed 3 times in a row: .*<html>$"):
        completions(connected(server), "a")


FOR_GOOD = {
    "status 400": ((400, {"error": {"message": "maximum context length\n\x1b[31mexceeded " + KEY + "x" * 500}}), 1),
    "a filter": ((200, {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}), 3),
    "an abort": ((200, {"choices": [{"message": {"content": "3"}, "finish_reason": "abort"}]}), 3),
    "no choices": ((200, {"choices": []}), 3),
}


@pytest.mark.parametrize("name", FOR_GOOD)
def test_a_prompt_that_is_refused_for_good_is_recorded_and_the_others_are_answered(server, name):
    reply, num_attempts = FOR_GOOD[name]
    server.script(answering(lambda body: reply if "bad" in body["messages"][0]["content"] else (200, completion())))
    answers = completions(connected(server, num_requests=4), "a", "bad prompt", "c", "d")
    assert [bool(answer.refused) for _, answer in answers] == [False, True, False, False]
    refused = answers[1][1]
    assert (refused.text, refused.num_tokens) == ("", None)
    assert refused.refused.isprintable() and len(refused.refused) <= MAX_REFUSAL_CHARS and KEY not in refused.refused
    assert sum("bad" in asked.body["messages"][0]["content"] for asked in server.asked[2:]) == num_attempts


@pytest.mark.parametrize("reply", [(500, "<html>\nbroken"), (200, "<html>\nbroken"), b""], ids=str)
def test_a_prompt_on_which_a_server_always_fails_is_recorded_if_the_server_answers_others(server, reply):
    server.script(answering(lambda body: reply if "bad" in body["messages"][0]["content"] else (200, completion())))
    answers = completions(connected(server, num_requests=3, max_retries=3), "a", "bad prompt", "c")
    assert [answer.refused.startswith("failed 4 times in a row: ") for _, answer in answers] == [False, True, False]


def bad_half(body: dict) -> Reply:
    is_bad = body["messages"][0]["content"].startswith("bad")
    return (400, {"error": {"message": "too long"}}) if is_bad else (200, completion())


@pytest.mark.parametrize("share", [0.0, 0.05, 0.49])
def test_more_refusals_than_the_share_end_the_evaluation_with_the_reasons(server, share):
    server.script(answering(bad_half))
    engine = connected(server, num_requests=20, max_refused_share=share, max_concurrent=1)
    prompts = [
        Prompt([{"role": "user", "content": f"{word} {n}"}], None, 1) for n in range(10) for word in ("a", "bad")
    ]
    # The longest prompt is answered first, so that the endpoint is known to work.
    prompts.append(Prompt([{"role": "user", "content": "a long prompt"}], None, 1))
    received = []
    with pytest.raises(
        EndpointFailed, match=f"for good, more than endpoint.max_refused_share={share:g} allows: .*too long"
    ):
        received.extend(completion for _, completion in engine.generate(prompts, Sampling(8, 1.0)))


def test_answers_that_have_arrived_are_kept_if_too_many_requests_are_refused(server):
    server.script(answering(bad_half))
    engine = connected(server, num_requests=100, max_refused_share=0.0)
    prompts = [Prompt([{"role": "user", "content": word}], None, 20) for word in ("a long prompt", "bad")]
    answers = engine.generate(prompts, Sampling(8, 1.0))
    received = [next(answers)]
    # All replies arrive before the next one is taken.
    while any(thread.name == "endpoint requests" for thread in threading.enumerate()):
        time.sleep(0.01)
    with pytest.raises(EndpointFailed, match="has refused 1 of 100 requests"):
        received.extend(answers)
    assert sum(not completion.refused for _, completion in received) == 20


def test_refusals_of_earlier_commands_count(server):
    server.script(answering(bad_half))
    engine = replace(connected(server, num_requests=20, max_refused_share=0.1, max_concurrent=1), num_refused=2)
    with pytest.raises(EndpointFailed, match=r"has refused 3 of 20 requests for good"):
        completions(engine, "a long prompt", "bad", "b")


def test_a_share_of_1_allows_everything(server):
    server.script(answering(bad_half))
    answers = completions(connected(server, num_requests=2, max_refused_share=1.0), "bad", "bad 2")
    assert [answer.refused for _, answer in answers] == ["HTTP 400: too long"] * 2


def test_an_endpoint_that_refuses_every_prompt_is_misconfigured_and_nothing_is_recorded(server):
    server.script(answering(bad_half))
    engine = connected(server, num_requests=3)
    received = []
    with pytest.raises(ConfigError, match=r"refuses every request so far \(\d of 3 requests, HTTP 400: too long\)"):
        received.extend(engine.generate([Prompt([{"role": "user", "content": "bad"}], None, 3)], Sampling(8, 1.0)))
    assert received == []


@pytest.mark.parametrize(("num_samples", "num_warned"), [(3, 3), (30, 20)])
def test_empty_answers_are_warned_of_once_and_early(server, capsys, num_samples, num_warned):
    server.script(answering(lambda body: (200, completion(None, reasoning_content="hm"))))
    answers = completions(connected(server, num_requests=20), "a", num_samples=num_samples)
    assert {(answer.text, answer.reasoning_text) for _, answer in answers} == {("", "hm")}
    said = capsys.readouterr().out
    n = num_warned
    message = f"warning: {n} of {n} answers of m are empty, and {n} of these have only reasoning, which is not judged"
    assert said.count("warning") == 1 and message in said


def test_a_few_empty_answers_are_not_warned_of(server, capsys):
    numbers = itertools.count()
    server.script(answering(lambda body: (200, completion("" if next(numbers) % 3 == 0 else "4"))))
    completions(connected(server), "a", num_samples=40)
    assert "warning" not in capsys.readouterr().out
