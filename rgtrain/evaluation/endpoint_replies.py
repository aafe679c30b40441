"""Read the replies of OpenAI-compatible endpoints and decide: an answer, try again, refused for good, or misconfigured.

Replies are untrusted. Everything in a reply is checked here, without a network, and nothing else reads one.
"""

import email.utils
import json
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeGuard

from rgtrain.evaluation.engine_interface import Completion

# Larger than any legitimate reply, also after decompression.
MAX_REPLY_BYTES = 16 << 20
_MAX_TOKENS = 1 << 40
_MAX_REASON_CHARS = 100_000
_MAX_RETRY_AFTER_S = 60.0
_MAX_FINISH_REASON_CHARS = 40

# Reasons for which a server ends a completion that the model did not end. A partial text is not the model's answer.
_ABNORMAL_ENDS = frozenset(
    ("error", "abort", "aborted", "cancelled", "canceled", "timeout", "network_error", "insufficient_system_resource")
)
# Filters of a service, by the names of OpenAI, Gemini and Z.ai.
_FILTERED = frozenset(
    ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "moderation", "sensitive")
)
_CUT_OFF = frozenset(("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"))
# OpenAI's and LiteLLM's codes, and Anthropic's words.
_SIGNS_OF_NO_CREDIT = ("insufficient_quota", "billing_hard_limit", "budget_exceeded", "credit balance is too low")
_MAX_SEARCHED_CHARS = 4_000


class Fault(Enum):
    """A cause for which every request to the endpoint fails in the same way."""

    KEY = "the endpoint refuses the key"
    CREDIT = "the account has no credit"
    ADDRESS = "the address has no chat completions"
    REDIRECT = "the endpoint is at another address"
    PROXY = "the proxy refuses the request"


@dataclass(frozen=True)
class HttpReply:
    """A complete reply of a server.

    Attributes:
        status: The HTTP status.
        body: The body as it arrived.
        headers: The headers, by lower-case name.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """The reply holds a completion."""

    completion: Completion


@dataclass(frozen=True)
class TryAgain:
    """The request may succeed later.

    Attributes:
        reason: The cause, not masked yet.
        after_s: The seconds that the server asks to wait; None if it gives no time.
        is_about_prompt: Whether the server works and only this prompt failed. If it fails again, the request is
            recorded as refused. Otherwise, the whole evaluation fails.
        keys: Keys of the request that the server may name as the cause.
        is_timeout: Whether no complete reply arrived in time.
    """

    reason: str
    after_s: float | None = None
    is_about_prompt: bool = False
    keys: Sequence[str] = ()
    is_timeout: bool = False


@dataclass(frozen=True)
class RefusedForGood:
    """The server will never answer this request.

    Attributes:
        reason: The cause, not masked yet.
        keys: Keys of the request that the server may name as the cause.
    """

    reason: str
    keys: Sequence[str] = ()


@dataclass(frozen=True)
class Misconfigured:
    """Every request would fail like this one.

    Attributes:
        fault: The kind of cause.
        reason: The server's words, not masked yet.
        location: The address to which the server redirects; empty if it does not.
    """

    fault: Fault
    reason: str
    location: str = ""


Verdict = Answered | TryAgain | RefusedForGood | Misconfigured


class UnusableReply(ValueError):
    """A reply with status 200 that holds no completion. Its first argument is the reason."""


def read_reply(reply: HttpReply) -> Verdict:
    """Decide about a reply to a request for one chat completion.

    Args:
        reply: The reply.

    Returns:
        The decision. Texts in it come from the server, so they must be masked and shortened before they are shown.
    """
    try:
        body = decoded_body(reply)
    except UnusableReply as error:
        return TryAgain(error.args[0])
    value = _parsed(body)
    if not 200 <= reply.status < 300:
        return _failure(reply, value, body)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        return TryAgain(f"the reply is not a completion but {_described(body)}")
    choices = value.get("choices")
    if (problem := _error_in(value)) is not None and (value.get("error") or not choices):
        status = _status_in(problem)
        # Routers report the status of the server behind them in a body with status 200.
        if status is not None:
            return _failure(HttpReply(status, body, reply.headers), value, body)
        return TryAgain(f"the reply is an error: {_message_in(value, body)}")
    if not isinstance(choices, list) or not choices:
        return TryAgain(f"the reply has no choices: {_described(body)}", is_about_prompt=True)
    try:
        return _read_choice(_first(choices), _num_tokens(value.get("usage"), num_choices=len(choices)))
    except UnusableReply as error:
        return TryAgain(error.args[0], is_about_prompt=True)


def decoded_body(reply: HttpReply) -> bytes:
    """Return a reply's body without its compression.

    Args:
        reply: The reply.

    Returns:
        The body, at most `MAX_REPLY_BYTES` long.

    Raises:
        UnusableReply: The compression is unknown or damaged, or the body is too long.
    """
    encoding = reply.headers.get("content-encoding", "").strip().lower()
    body = reply.body
    if encoding in ("gzip", "x-gzip", "deflate"):
        # The first byte distinguishes deflate's two forms, with and without zlib's header.
        is_raw = encoding == "deflate" and body[:1] and body[0] & 15 != 8
        unpacker = zlib.decompressobj(-15 if is_raw else 47)
        try:
            body = unpacker.decompress(body, MAX_REPLY_BYTES + 1)
        except zlib.error as error:
            raise UnusableReply(f"the reply's compression is damaged ({error})") from error
        if not unpacker.eof and len(body) <= MAX_REPLY_BYTES:
            raise UnusableReply("the reply's compressed body is cut off")
    elif encoding not in ("", "identity"):
        raise UnusableReply(f"the reply is compressed with {encoding[:20]!r}, which was not requested")
    if len(body) > MAX_REPLY_BYTES:
        raise UnusableReply(f"the reply has more than {MAX_REPLY_BYTES >> 10} KB")
    return body


@dataclass(frozen=True)
class ListedModel:
    """A model in an endpoint's list.

    Attributes:
        name: Its name.
        max_model_len: Its context length in tokens; None if the list does not have it.
    """

    name: str
    max_model_len: int | None


def read_models(reply: HttpReply) -> dict[str, ListedModel] | None:
    """Read the reply to a request for the list of models.

    Args:
        reply: The reply.

    Returns:
        The models by name; None if the reply is not a list of models, because not every endpoint has one.
    """
    if reply.status != 200:
        return None
    try:
        value = _parsed(decoded_body(reply))
    except UnusableReply:
        return None
    if isinstance(value, dict):
        value = value.get("data") if isinstance(value.get("data"), list) else value.get("models")
    if not isinstance(value, list):
        return None
    models = {}
    for item in value:
        name = next((item[key] for key in ("id", "name", "model") if item.get(key)), None) if _is_map(item) else item
        if isinstance(name, str) and name:
            keys = ("max_model_len", "context_length", "context_window", "max_context_length")
            lengths = [item.get(key) for key in keys] if _is_map(item) else []
            context = next((one for one in lengths if _is_whole(one) and 0 < one < _MAX_TOKENS), None)
            models[name] = ListedModel(name, context)
    return models or None


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the time that a server asks to wait.

    Args:
        headers: The headers of a reply, by lower-case name. Retry-After holds seconds or a date.
        now: The current Unix time, for tests.

    Returns:
        Seconds from 0 to 60; None if the headers give no valid time.
    """
    seconds = None
    given = headers.get("retry-after", "").strip()
    if milliseconds := headers.get("retry-after-ms"):
        seconds = _number_in(milliseconds, scale=1e-3)
    if seconds is None and given:
        seconds = _number_in(given)
        if seconds is None:
            try:
                date = email.utils.parsedate_to_datetime(given[:100])
                seconds = date.timestamp() - (time.time() if now is None else now)
            except (ValueError, OverflowError, TypeError, IndexError, OSError):
                return None
    if seconds is None:
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)


def _number_in(text: str, *, scale: float = 1.0) -> float | None:
    try:
        number = float(text[:40]) * scale
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _read_choice(choice: Any, num_tokens: int | None) -> Verdict:
    if not _is_map(choice):
        raise UnusableReply(f"the first choice is not a mapping but {type(choice).__name__}")
    finish = choice.get("finish_reason")
    if _is_map(finish):
        # SGLang's own API writes {"type": "abort", "message": ...}.
        finish = finish.get("type")
    finish = finish[:_MAX_FINISH_REASON_CHARS] if isinstance(finish, str) and finish else None
    if error := choice.get("error"):
        return TryAgain(f"the choice is an error: {_text_of_error(error) or 'without a message'}", is_about_prompt=True)
    if finish and finish.lower() in _ABNORMAL_ENDS | _FILTERED:
        return TryAgain(f"the completion ended with finish_reason {finish!r}", is_about_prompt=True)
    text, reasoning = _texts_of(choice)
    if finish and finish.lower() in _CUT_OFF:
        finish = "length"
    if num_tokens == 0 and (text or reasoning):
        # Some proxies write 0 if they don't know the number.
        num_tokens = None
    return Answered(Completion(text, num_tokens, finish, reasoning_text=reasoning))


def _texts_of(choice: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text and the reasoning of a choice.

    The text is the content, otherwise the model's refusal. A completion without any of them has an empty text.

    Raises:
        UnusableReply: The choice has neither a message nor a text.
    """
    # Some proxies return the parts of a stream, joined into one reply.
    message = choice.get("message", choice.get("delta"))
    if message is None:
        if isinstance(choice.get("text"), str):
            # The older completions API.
            return choice["text"], ""
        raise UnusableReply("the first choice has no message")
    if not _is_map(message) or not message:
        raise UnusableReply("the message of the first choice is empty or not a mapping")
    text, reasoning = _texts_in_content(message.get("content"))
    if not text and isinstance(message.get("refusal"), str):
        text = message["refusal"]
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(message.get(key), str) and message[key]:
            reasoning = message[key]
            break
    return text, reasoning


def _texts_in_content(content: Any) -> tuple[str, str]:
    """Return the joined texts and the joined reasoning in a message's content: null, a text or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif not _is_map(part):
            raise UnusableReply(f"the content is not a text but has a {type(part).__name__}")
        elif part.get("type") in ("thinking", "reasoning"):
            thoughts += _part_texts(part, ("thinking", "reasoning", "text", "summary"))
        elif part.get("type") in ("text", "output_text", "refusal", None):
            found = _part_texts(part, ("text", "refusal"))
            if not found:
                raise UnusableReply("a part of the content has no text")
            texts += found
    return "".join(texts), "".join(thoughts)


def _part_texts(part: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return the texts under the first of `keys` that a part has: one text, or a list of parts with texts."""
    for key in keys:
        value = part.get(key)
        if isinstance(value, str):
            return [value]
        if isinstance(value, list):
            return [one["text"] for one in value if _is_map(one) and isinstance(one.get("text"), str)]
    return []


def _first(choices: Sequence[Any]) -> Any:
    """Return the choice with index 0. One completion was requested, but a server may return several in any order."""
    return next(
        (one for one in choices if _is_map(one) and _is_whole(one.get("index")) and one["index"] == 0), choices[0]
    )


def _num_tokens(usage: Any, *, num_choices: int) -> int | None:
    """Return the number of tokens in the only choice; None if it is not reported as a plausible number."""
    if not _is_map(usage) or num_choices > 1:
        return None
    count = usage.get("completion_tokens", usage.get("output_tokens"))
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    return count if _is_whole(count) and 0 <= count < _MAX_TOKENS else None


def _failure(reply: HttpReply, value: Any, body: bytes) -> Verdict:
    """Decide about a reply whose status is not 2xx."""
    status = reply.status
    message = _message_in(value, body)
    reason = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    lower = message.lower()
    location = reply.headers.get("location", "")
    error = _error_in(value)
    code = str(error.get("code") or error.get("type") or "") if _is_map(error) else ""
    if 300 <= status < 400:
        return Misconfigured(Fault.REDIRECT, f"HTTP {status}", location)
    if status == 407:
        return Misconfigured(Fault.PROXY, reason)
    if status in (401, 403):
        # OpenRouter reports a moderated prompt as 403.
        is_moderated = status == 403 and ("flagged" in lower or "moderation" in lower)
        return RefusedForGood(reason) if is_moderated else Misconfigured(Fault.KEY, reason)
    if status == 402 or any(sign in f"{code} {lower}" for sign in _SIGNS_OF_NO_CREDIT):
        return Misconfigured(Fault.CREDIT, reason)
    if status in (404, 405, 410, 501):
        return Misconfigured(Fault.ADDRESS, reason)
    if status in (408, 409, 425, 429, 498, 499) or status < 200:
        return TryAgain(reason, retry_after(reply.headers))
    if status == 424:
        # TGI reports a failed generation so.
        return TryAgain(reason, is_about_prompt=True)
    if status >= 500:
        return TryAgain(reason, retry_after(reply.headers), keys=_keys_named(error, message))
    if "api key" in lower and any(word in lower for word in ("invalid", "not valid", "incorrect", "expired")):
        # Gemini reports a wrong key as 400.
        return Misconfigured(Fault.KEY, reason)
    if "could not finish the message" in lower and "max_tokens" in lower:
        # OpenAI reports a completion that was cut off before any text as 400.
        return Answered(Completion("", None, "length"))
    return RefusedForGood(reason, _keys_named(error, message))


def _keys_named(error: Any, message: str) -> tuple[str, ...]:
    """Return the keys of the request that an error names: in `param`, in FastAPI's `loc`, or in its message."""
    named = []
    if _is_map(error) and isinstance(error.get("param"), str):
        named.append(error["param"])
    if isinstance(error, list):
        locations = [one.get("loc") for one in error[:20] if _is_map(one)]
        named += [str(part) for place in locations if isinstance(place, list) for part in place[:5]]
    message = message[:_MAX_SEARCHED_CHARS]
    words = "".join(char if char.isalnum() or char == "_" else " " for char in message).split()
    # `stop` is also an ordinary word, so it counts only in quotes.
    quoted = [word for word in dict.fromkeys(words) if any(f"{mark}{word}{mark}" in message for mark in "'\"`")]
    bare = [word for word in words if "_" in word or word in ("temperature", "seed") or not word[1:].islower()]
    return tuple(dict.fromkeys([*named, *quoted, *bare]))


def _error_in(value: Any) -> Any:
    """Return the error in a parsed body; None if it has none."""
    if isinstance(value, list) and value:
        # Gemini wraps its errors in a list.
        value = value[0]
    if not _is_map(value):
        return None
    for key in ("error", "errors", "detail"):
        if value.get(key):
            return value[key]
    is_error = value.get("object") == "error" or ("message" in value and "choices" not in value)
    return value if is_error else None


def _status_in(error: Any) -> int | None:
    code = error.get("code", error.get("status")) if _is_map(error) else None
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        code = int(code)
    return code if _is_whole(code) and 400 <= code < 600 else None


def _message_in(value: Any, body: bytes) -> str:
    """Return the message of an error, or the first line of a body without one."""
    return _text_of_error(_error_in(value)) or _described(body)


def _text_of_error(error: Any) -> str:
    """Return the message in an error, or an empty text."""
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, str):
        return error[:_MAX_REASON_CHARS]
    if not _is_map(error):
        return ""
    texts = [error[key] for key in ("message", "msg", "detail") if isinstance(error.get(key), str)][:1]
    # OpenRouter keeps the words of the server behind it here.
    metadata = error.get("metadata")
    if _is_map(metadata) and isinstance(metadata.get("raw"), str):
        texts.append(metadata["raw"])
    return " ".join(texts)[:_MAX_REASON_CHARS]


def _described(body: bytes) -> str:
    """Return the first line of a body with text in it."""
    text = body[:_MAX_REASON_CHARS].decode("utf-8", "replace").strip()
    if not text:
        return "an empty body"
    if text.startswith("data:") or text.startswith(":"):
        return f"a stream of events, which was not requested: {text.splitlines()[0]}"
    return text.splitlines()[0].strip()


def _parsed(body: bytes) -> Any:
    """Return the value of a JSON body, or None if it is not JSON.

    If a key occurs twice, the last value counts. Invalid UTF-8 becomes replacement characters, because some servers cut
    a text within a character.
    """
    try:
        return json.loads(body.decode(json.detect_encoding(body), "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def _is_map(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
