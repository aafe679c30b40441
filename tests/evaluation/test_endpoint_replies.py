"""Every form of an endpoint's reply has one decision: an answer, try again, refused for good, or misconfigured."""

import gzip
import json
import time
import zlib
from typing import Any, NamedTuple

import pytest

from rgtrain.evaluation.endpoint_replies import (
    MAX_REPLY_BYTES,
    Answered,
    Fault,
    HttpReply,
    Misconfigured,
    RefusedForGood,
    TryAgain,
    Verdict,
    read_models,
    read_reply,
    retry_after,
)

USAGE = {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}


def reply(*choices: Any, status: int = 200, headers: dict | None = None, **changes: Any) -> HttpReply:
    """Return a reply with these choices. A value of `...` removes its key."""
    value = {"id": "1", "object": "chat.completion", "model": "m", "choices": list(choices), "usage": USAGE} | changes
    return raw(json.dumps({key: item for key, item in value.items() if item is not ...}), status, headers)


def raw(body: str | bytes, status: int = 200, headers: dict | None = None) -> HttpReply:
    return HttpReply(status, body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass"), headers or {})


def error(status: int, message: str = "no", *, headers: dict | None = None, **more: Any) -> HttpReply:
    return raw(json.dumps({"error": {"message": message} | more}), status, headers)


def choice(content: Any = "x", *, finish_reason: Any = "stop", **message: Any) -> dict:
    values = {"role": "assistant", "content": content} | message
    return {
        "index": 0,
        "message": {key: value for key, value in values.items() if value is not ...},
        "finish_reason": finish_reason,
    }


class Expected(NamedTuple):
    """An answer."""

    text: str = "x"
    num_tokens: int | None = 7
    finish_reason: str | None = "stop"
    reasoning: str = ""


class Again(NamedTuple):
    """A request that is sent again. `about_prompt` requests are recorded as refused if they keep failing."""

    reason: str
    about_prompt: bool = False
    after_s: float | None = None


class Refused(NamedTuple):
    """A refusal for good."""

    reason: str


THINK = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
ANSWERS = {
    "a plain completion": (reply(choice()), Expected()),
    "unknown fields everywhere": (reply(choice(annotations=[], audio=None), service_tier=None), Expected()),
    "a completion that was cut off": (reply(choice(finish_reason="length")), Expected(finish_reason="length")),
    "another name for cut off": (reply(choice(finish_reason="MAX_TOKENS")), Expected(finish_reason="length")),
    "mistral's name for cut off": (reply(choice(finish_reason="model_length")), Expected(finish_reason="length")),
    "an unknown finish reason": (reply(choice(finish_reason="eos_token")), Expected(finish_reason="eos_token")),
    "a very long finish reason": (reply(choice(finish_reason="y" * 999)), Expected(finish_reason="y" * 40)),
    "the finish reason is null": (reply(choice(finish_reason=None)), Expected(finish_reason=None)),
    "the finish reason is empty": (reply(choice(finish_reason="")), Expected(finish_reason=None)),
    "the finish reason is a mapping": (reply(choice(finish_reason={"a": 1})), Expected(finish_reason=None)),
    "an empty text": (reply(choice("")), Expected("")),
    "content is null": (reply(choice(None)), Expected("")),
    "content is missing": (reply(choice(...)), Expected("")),
    "text parts": (reply(choice([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])), Expected("ab")),
    "output_text parts": (reply(choice([{"type": "output_text", "text": "a", "annotations": []}])), Expected("a")),
    "a part without a type": (reply(choice([{"text": "a"}])), Expected("a")),
    "a list of texts": (reply(choice(["a", "b"])), Expected("ab")),
    "one part without a list": (reply(choice({"type": "text", "text": "a"})), Expected("a")),
    "no parts": (reply(choice([])), Expected("")),
    "a thinking part": (reply(choice([THINK, {"type": "text", "text": "a"}])), Expected("a", reasoning="hm")),
    "anthropic's thinking part": (
        reply(choice([{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"}])),
        Expected("a", reasoning="hm"),
    ),
    "an unknown part": (reply(choice([{"type": "image_url"}, {"type": "text", "text": "a"}])), Expected("a")),
    "reasoning_content": (reply(choice("a", reasoning_content="hm")), Expected("a", reasoning="hm")),
    "reasoning": (reply(choice("a", reasoning="hm")), Expected("a", reasoning="hm")),
    "both kinds of reasoning": (
        reply(choice("a", reasoning="hm", reasoning_content="hm")),
        Expected("a", reasoning="hm"),
    ),
    "reasoning is null": (reply(choice("a", reasoning=None, reasoning_content=None)), Expected("a")),
    "reasoning is a list": (reply(choice("a", reasoning=[1])), Expected("a")),
    "everything in the reasoning": (reply(choice(None, reasoning_content="hm")), Expected("", reasoning="hm")),
    "a refusal of the model": (reply(choice(None, refusal="I can't.")), Expected("I can't.")),
    "a refusal part": (reply(choice([{"type": "refusal", "refusal": "I can't."}])), Expected("I can't.")),
    "tool calls": (
        reply(choice(None, finish_reason="tool_calls", tool_calls=[{"function": {"name": "f"}}])),
        Expected("", finish_reason="tool_calls"),
    ),
    "the completions API": (reply({"index": 0, "text": "x", "finish_reason": "stop"}), Expected()),
    "delta instead of message": (
        reply({"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}, object="chat.completion.chunk"),
        Expected(),
    ),
    "no index": (reply({"message": {"content": "x"}, "finish_reason": "stop"}), Expected()),
    "index is null": (reply(choice() | {"index": None}), Expected()),
    "index is true": (reply(choice("a") | {"index": False}, choice("b")), Expected("b", num_tokens=None)),
    "index counts from 1": (reply(choice() | {"index": 1}), Expected()),
    "choices in another order": (reply(choice("b") | {"index": 1}, choice("a")), Expected("a", num_tokens=None)),
    "usage is missing": (reply(choice(), usage=...), Expected(num_tokens=None)),
    "usage is null": (reply(choice(), usage=None), Expected(num_tokens=None)),
    "usage is empty": (reply(choice(), usage={}), Expected(num_tokens=None)),
    "usage is a list": (reply(choice(), usage=[1]), Expected(num_tokens=None)),
    "usage has only the prompt": (reply(choice(), usage={"prompt_tokens": 3}), Expected(num_tokens=None)),
    "usage by anthropic's names": (reply(choice(), usage={"input_tokens": 3, "output_tokens": 5}), Expected("x", 5)),
    "tokens are text": (reply(choice(), usage={"completion_tokens": "7"}), Expected(num_tokens=None)),
    "tokens are null": (reply(choice(), usage={"completion_tokens": None}), Expected(num_tokens=None)),
    "tokens are true": (reply(choice(), usage={"completion_tokens": True}), Expected(num_tokens=None)),
    "tokens are negative": (reply(choice(), usage={"completion_tokens": -1}), Expected(num_tokens=None)),
    "tokens are NaN": (reply(choice(), usage={"completion_tokens": float("nan")}), Expected(num_tokens=None)),
    "tokens are infinite": (reply(choice(), usage={"completion_tokens": float("inf")}), Expected(num_tokens=None)),
    "tokens are huge": (reply(choice(), usage={"completion_tokens": 10**30}), Expected(num_tokens=None)),
    "tokens are a fraction": (reply(choice(), usage={"completion_tokens": 1.5}), Expected(num_tokens=None)),
    "tokens are a whole float": (reply(choice(), usage={"completion_tokens": 7.0}), Expected()),
    "tokens are 0 for a text": (reply(choice(), usage={"completion_tokens": 0}), Expected(num_tokens=None)),
    "tokens are 0 for no text": (reply(choice(""), usage={"completion_tokens": 0}), Expected("", 0)),
    "error is null": (reply(choice(), error=None), Expected()),
    "a list of one reply": (raw(b"[" + reply(choice()).body + b"]"), Expected()),
    "a byte order mark": (raw(b"\xef\xbb\xbf" + reply(choice()).body), Expected()),
    "UTF-16": (raw(reply(choice()).body.decode().encode("utf-16")), Expected()),
    "space around it": (raw(b"\n\n  " + reply(choice()).body + b"\n"), Expected()),
    "a raw line break in the text": (raw(reply(choice("a|b")).body.replace(b"|", b"\n")), Expected("a\nb")),
    "half a character": (raw(reply(choice("a|b")).body.replace(b"|", b"\xe2\x82")), Expected("a\ufffdb")),
    "a lone surrogate": (reply(choice("a\ud800")), Expected("a\ud800")),
    "NUL in the text": (reply(choice("a\x00b")), Expected("a\x00b")),
    "a long text": (reply(choice("x" * 1_000_000)), Expected("x" * 1_000_000)),
    "the last of two equal keys counts": (
        raw('{"choices": [], "choices": [{"message": {"content": "no", "content": "x"}, "finish_reason": "stop"}]}'),
        Expected(num_tokens=None),
    ),
    "gzip": (raw(gzip.compress(reply(choice()).body), headers={"content-encoding": "gzip"}), Expected()),
    "deflate": (raw(zlib.compress(reply(choice()).body), headers={"content-encoding": "Deflate"}), Expected()),
    "cut off before any text": (
        error(400, "Could not finish the message because max_tokens or model output limit was reached."),
        Expected("", None, "length"),
    ),
}
DEEP = 200_000
FAILURES = {
    "an empty body": (raw(b""), Again("an empty body")),
    "no content": (raw(b"", 204), Again("an empty body")),
    "a page": (raw("\n<html>try later</html>\nmore"), Again("<html>try later</html>")),
    "null": (raw("null"), Again("null")),
    "a number": (raw("7"), Again("7")),
    "a text": (raw('"x"'), Again('"x"')),
    "an empty list": (raw("[]"), Again("[]")),
    "a cut body": (raw(reply(choice()).body[:-20]), Again('{"id": "1"')),
    "a body of NULs": (raw(bytes(99)), Again("not a completion")),
    "a stream of events": (raw('data: {"choices": []}\n\ndata: [DONE]'), Again("stream of events, which was not")),
    "nested": (raw("[" * DEEP), Again("[[[")),
    "nested and closed": (raw('{"choices": ' + "[" * DEEP + "]" * DEEP + "}"), Again("not a completion")),
    "nested mappings": (raw('{"choices":' * DEEP), Again("not a completion")),
    "a huge number": (raw('{"choices": %s}' % ("9" * 100_000)), Again("not a completion")),
    "invalid UTF-8 instead of choices": (raw(b'{"choices": "\xff\xfe"}'), Again("no choices", True)),
    "nothing in it": (raw("{}"), Again("no choices", True)),
    "choices are null": (reply(choices=None), Again("no choices", True)),
    "choices are missing": (reply(choices=...), Again("no choices", True)),
    "choices are empty": (reply(), Again("no choices", True)),
    "choices are a text": (reply(choices="x"), Again("no choices", True)),
    "choices are numbers": (reply(1), Again("not a mapping", True)),
    "message is null": (reply({"index": 0, "message": None, "finish_reason": "stop"}), Again("no message", True)),
    "message is missing": (reply({"index": 0}), Again("no message", True)),
    "message is empty": (reply({"index": 0, "message": {}}), Again("empty or not a mapping", True)),
    "message is a text": (reply({"index": 0, "message": "x"}), Again("empty or not a mapping", True)),
    "content is a number": (reply(choice(5)), Again("not a text", True)),
    "content has a number": (reply(choice([{"type": "text", "text": "a"}, 5])), Again("not a text", True)),
    "a part's text is a number": (reply(choice([{"type": "text", "text": 5}])), Again("no text", True)),
    "it was ended by an error": (reply(choice(finish_reason="error")), Again("finish_reason 'error'", True)),
    "it was filtered": (reply(choice(None, finish_reason="content_filter")), Again("'content_filter'", True)),
    "gemini filtered it": (reply(choice(None, finish_reason="SAFETY")), Again("'SAFETY'", True)),
    "Z.ai filtered it": (reply(choice("half", finish_reason="sensitive")), Again("'sensitive'", True)),
    "a network failed": (reply(choice("half", finish_reason="network_error")), Again("'network_error'", True)),
    "vLLM aborted it": (reply(choice("half", finish_reason="abort")), Again("'abort'", True)),
    "SGLang aborted it": (reply(choice("half", finish_reason={"type": "abort"})), Again("'abort'", True)),
    "OpenRouter's error in a choice": (
        reply(choice("", finish_reason="error") | {"error": {"code": 502, "message": "upstream broke"}}),
        Again("upstream broke", True),
    ),
    "an error with status 200": (error(200, "overloaded"), Again("overloaded")),
    "an error that is a text": (raw('{"error": "Unexpected endpoint"}'), Again("Unexpected endpoint")),
    "an error beside choices": (reply(choice(), error={"message": "upstream broke"}), Again("upstream broke")),
    "the status of another server": (error(200, "slow down", code=429), Again("HTTP 429: slow down")),
    "the status as a text": (error(200, "bad gateway", code="502"), Again("HTTP 502: bad gateway")),
    "another server refuses": (error(200, "too long", code=400), Refused("HTTP 400: too long")),
    "another server refuses the key": (error(200, "bad key", code=401), Fault.KEY),
    "a message without an error": (raw('{"object": "error", "message": "broken", "code": 500}'), Again("500: broken")),
    "408": (error(408), Again("HTTP 408")),
    "409": (error(409), Again("HTTP 409")),
    "425": (error(425), Again("HTTP 425")),
    "429": (error(429, headers={"retry-after": "7"}), Again("HTTP 429", after_s=7)),
    "499": (error(499), Again("HTTP 499")),
    "TGI's failed generation": (raw('{"error": "CUDA error", "error_type": "generation"}', 424), Again("CUDA", True)),
    "500": (error(500), Again("HTTP 500: no")),
    "502 with a page": (raw("<html>\n<h1>Bad Gateway</h1>", 502), Again("HTTP 502: <html>")),
    "503 while a model is loaded": (error(503, "Loading model"), Again("HTTP 503: Loading model")),
    "529": (error(529, "Overloaded"), Again("HTTP 529")),
    "504 without a body": (raw(b"", 504), Again("HTTP 504")),
    "400": (error(400, "too long"), Refused("HTTP 400: too long")),
    "400 as FastAPI writes it": (
        raw('{"detail": [{"loc": ["body", "x"], "msg": "Input should be a number"}]}', 422),
        Refused("HTTP 422: Input should be a number"),
    ),
    "400 as vLLM wrote it": (raw('{"object": "error", "message": "too long", "code": 400}', 400), Refused("too long")),
    "400 as Gemini writes it": (raw('[{"error": {"code": 400, "message": "bad"}}]', 400), Refused("HTTP 400: bad")),
    "400 with a page": (raw("<p>bad</p>", 400), Refused("HTTP 400: <p>bad</p>")),
    "400 with the words of another server": (
        error(400, "Provider returned error", metadata={"raw": "too long"}),
        Refused("Provider returned error too long"),
    ),
    "413": (error(413), Refused("HTTP 413")),
    "422": (error(422), Refused("HTTP 422")),
    "451": (error(451), Refused("HTTP 451")),
    "a moderated prompt": (error(403, "your input was flagged", metadata={"reasons": ["x"]}), Refused("flagged")),
    "401": (error(401), Fault.KEY),
    "403": (error(403), Fault.KEY),
    "gemini refuses the key": (error(400, "API key not valid. Please pass a valid API key."), Fault.KEY),
    "LiteLLM's budget": (error(400, "Budget has been exceeded!", type="budget_exceeded"), Fault.CREDIT),
    "Anthropic's balance": (error(400, "Your credit balance is too low to access the API."), Fault.CREDIT),
    "402": (error(402, "insufficient balance"), Fault.CREDIT),
    "429 without credit": (error(429, "exceeded", code="insufficient_quota"), Fault.CREDIT),
    "404": (error(404), Fault.ADDRESS),
    "405": (error(405), Fault.ADDRESS),
    "404 as a page": (raw("Not Found", 404), Fault.ADDRESS),
    "301": (raw(b"", 301, {"location": "https://other/v1/chat/completions"}), Fault.REDIRECT),
    "302 without a location": (raw(b"", 302), Fault.REDIRECT),
    "407": (raw(b"", 407), Fault.PROXY),
    "damaged compression": (raw(b"no", headers={"content-encoding": "gzip"}), Again("compression is damaged")),
    "cut compression": (
        raw(gzip.compress(reply(choice()).body)[:-9], headers={"content-encoding": "gzip"}),
        Again("cut off"),
    ),
    "a bomb": (
        raw(gzip.compress(bytes(MAX_REPLY_BYTES + 1)), headers={"content-encoding": "gzip"}),
        Again("more than 16384 KB"),
    ),
    "unknown compression": (raw(b"", headers={"content-encoding": "zstd"}), Again("'zstd', which was not requested")),
    "too long": (raw(bytes(MAX_REPLY_BYTES + 1)), Again("more than 16384 KB")),
}


def test_the_table_has_enough_forms():
    assert len(ANSWERS) + len(FAILURES) >= 130


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read(name):
    given, expected = ANSWERS[name]
    verdict = read_reply(given)
    assert isinstance(verdict, Answered), verdict
    completion = verdict.completion
    assert Expected(completion.text, completion.num_tokens, completion.finish_reason, completion.reasoning_text) == (
        expected
    )
    assert type(completion.num_tokens) in (int, type(None))
    assert completion.refused == ""


def as_expected(verdict: Verdict, expected: Again | Refused | Fault) -> bool:
    if isinstance(expected, Again):
        given = (verdict.is_about_prompt, verdict.after_s) if isinstance(verdict, TryAgain) else None
        return given == (expected.about_prompt, expected.after_s) and expected.reason in verdict.reason
    if isinstance(expected, Refused):
        return isinstance(verdict, RefusedForGood) and expected.reason in verdict.reason
    return isinstance(verdict, Misconfigured) and verdict.fault == expected


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_retried_refused_or_ends_the_evaluation(name):
    given, expected = FAILURES[name]
    verdict = read_reply(given)
    assert as_expected(verdict, expected), verdict


def test_a_redirect_keeps_its_target():
    assert read_reply(FAILURES["301"][0]).location == "https://other/v1/chat/completions"


KEYS_NAMED = {
    ("Unsupported parameter: 'max_tokens' ... Use 'max_completion_tokens'", "max_tokens"): "max_completion_tokens",
    ("Unrecognized request arguments supplied: top_k, min_p", None): "min_p",
    ("Unrecognized request argument supplied: seed", None): "seed",
    ("`temperature` and `top_p` cannot both be specified for this model.", None): "top_p",
    ("'stop' is not supported with this model.", None): "stop",
    ("Model grok-4 does not support parameter presencePenalty.", None): "presencePenalty",
}


@pytest.mark.parametrize(("words", "key"), KEYS_NAMED.items())
def test_a_refusal_names_keys_of_the_request(words, key):
    message, param = words
    assert key in read_reply(error(400, message, param=param)).keys
    assert key in read_reply(error(500, message, param=param)).keys


def test_a_refusal_by_fastapi_names_keys_of_the_request():
    forbidden = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}
    assert read_reply(raw(json.dumps({"detail": [forbidden]}), 422)).keys == ("body", "seed")
    assert isinstance(read_reply(raw(json.dumps({"detail": [{"loc": 1}, 5, {"loc": None}]}), 422)), RefusedForGood)


def test_an_ordinary_word_is_not_a_key():
    assert read_reply(error(400, "Stop sending such requests.")).keys == ()


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "86400"}, 60),
        ({"retry-after": "9" * 500}, 60),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:00 GMT"}, 0),
        ({"retry-after": "Tue, 99 Nov 99999 22:13:00 GMT"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9),
    ],
)
def test_the_time_to_wait_is_seconds_or_a_date(headers, seconds):
    assert retry_after(headers, now=NOW) == seconds


MODEL_LISTS = {
    '{"object": "list", "data": [{"id": "m", "max_model_len": 4096}]}': {"m": 4096},
    '[{"id": "m"}]': {"m": None},
    '["m", "n"]': {"m": None, "n": None},
    '{"models": [{"name": "m:latest", "model": "m:latest"}]}': {"m:latest": None},
    '{"data": [{"id": "m", "context_length": 8192}]}': {"m": 8192},
    '{"data": [{"id": "m", "max_model_len": true, "context_window": "8k"}]}': {"m": None},
    '{"data": [{"id": "m", "max_model_len": -1}, {"id": 5}, {}, null, 7]}': {"m": None},
    '{"data": [{"id": "m", "max_model_len": NaN}]}': {"m": None},
    '{"data": null}': None,
    '{"data": []}': None,
    '{"data": {"m": 1}}': None,
    "[]": None,
    "7": None,
    "<html>": None,
    "": None,
    "[" * DEEP: None,
}


@pytest.mark.parametrize("body", MODEL_LISTS, ids=lambda body: body[:40])
def test_a_list_of_models_has_many_forms(body):
    models = read_models(raw(body))
    assert (models and {name: model.max_model_len for name, model in models.items()}) == MODEL_LISTS[body]


def test_a_list_of_models_with_an_error_status_is_none():
    assert read_models(raw('["m"]', 500)) is None


def test_reading_a_reply_takes_linear_time():
    def seconds(num_chars: int) -> float:
        most = 0.0
        for text in ("`" * num_chars, "a_b " * (num_chars // 4), "'stop' " * (num_chars // 7), "\x1b[" * num_chars):
            given = error(400, text)
            started = time.process_time()
            read_reply(given)
            most = max(most, time.process_time() - started)
        return most

    assert seconds(1_000_000) < 0.5
