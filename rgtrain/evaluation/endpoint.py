"""An engine for OpenAI-compatible endpoints. It sends many requests concurrently and retries those that fail.

`endpoint_replies` decides about each reply, `endpoint_negotiation` finds the accepted keys of a request, and
`endpoint_transport` sends it.
"""

import asyncio
import hashlib
import queue
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rgtrain.errors import ConfigError, choose_from
from rgtrain.evaluation.endpoint_negotiation import (
    RequestFormat,
    complained_keys,
    negotiate,
    preferred_format,
)
from rgtrain.evaluation.endpoint_replies import (
    Answered,
    Fault,
    ListedModel,
    Misconfigured,
    RefusedForGood,
    TryAgain,
    Verdict,
    read_models,
    read_reply,
)
from rgtrain.evaluation.endpoint_settings import EndpointSettings
from rgtrain.evaluation.endpoint_transport import EndpointTransport, NoReply, NoReplyInTime, check_connection
from rgtrain.evaluation.engine_interface import MAX_REFUSAL_CHARS, Completion, EngineFailed, Prompt, Sampling
from rgtrain.evaluation.evaluation_progress import say
from rgtrain.evaluation.evaluation_stopping import STOP
from rgtrain.provenance import mask_secrets
from rgtrain.tables import printable

_POLL_SECONDS = 0.2
_CHECK_TIMEOUT_S = 30.0
_MAX_START_RETRIES = 4
# A prompt that fails while the server works fails again most of the time.
_MAX_PROMPT_RETRIES = 3
_FIRST_WAIT_S = 0.5
_MAX_WAIT_S = 8.0
_MAX_MASKED_CHARS = 100_000
_MAX_SHOWN_CHARS = 300
_MAX_REASONS = 3
# If most of the first answers are empty, a warning comes early, because an evaluation may be expensive.
_NUM_EARLY_ANSWERS = 20
_CHAT = "chat/completions"
_TOO_LONG_PATHS = ("/chat/completions", "/completions", "/models", "/responses")

# The last outcome that the request thread reports is None, or the error that ended it.
_Outcome = tuple[int, Completion] | BaseException | None


class EndpointFailed(EngineFailed):
    """The endpoint stopped answering."""


def connect(settings: EndpointSettings, sampling: Sampling, *, num_requests: int) -> "EndpointEngine":
    """Return an engine for an endpoint, after checking that the endpoint answers for the model.

    Args:
        settings: The endpoint, one of its models, and the limits of its requests.
        sampling: The sampling parameters of all requests.
        num_requests: The number of answers in the whole evaluation, of which a share may be refused.

    Returns:
        The engine.

    Raises:
        ConfigError: The endpoint cannot be reached, refuses the key, does not have the model, or does not accept a
            request with these sampling parameters.
    """
    check_connection(settings)
    preferred = preferred_format(sampling, chat_template_kwargs=settings.chat_template_kwargs)
    return asyncio.run(_connect(settings, preferred, num_requests=num_requests))


@dataclass(frozen=True)
class EndpointEngine:
    """Requests chat completions from an endpoint.

    It sends one request per completion, because not all servers support several completions per request.

    Attributes:
        settings: The endpoint.
        request_format: The form in which it takes the sampling parameters.
        num_requests: The number of answers in the whole evaluation.
        max_model_len: The context length of the model in tokens; None if the endpoint does not report it.
        seed: The seed from which those of the requests are derived.
        num_refused: Requests of the evaluation that the endpoint refused to earlier commands.
    """

    settings: EndpointSettings
    request_format: RequestFormat
    num_requests: int
    max_model_len: int | None = None
    seed: int = 0
    num_refused: int = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Generate completions, as described in `Engine.generate`.

        The longest prompts are sent first, so that one that is too long is reported before the others are paid for.

        Args:
            prompts: The prompts. Only their messages are used.
            sampling: The sampling parameters with which the engine was connected.

        Yields:
            The position of a prompt, and one of its completions, or the record that it was refused.

        Raises:
            ConfigError: The endpoint refuses the key, or every prompt.
            EndpointFailed: A request kept failing, or too many were refused.
            EvaluationStopped: The evaluation was asked to stop.
        """
        outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        stop = threading.Event()
        arguments = (prompts, stop, outcomes)
        threading.Thread(target=self._ask_all, args=arguments, daemon=True, name="endpoint requests").start()
        # One prompt may always be refused, unless the share is 0.
        num_allowed = self.settings.max_refused_share * self.num_requests
        if num_allowed:
            num_allowed = max([num_allowed, *(prompt.num_samples for prompt in prompts)])
        watch = _AnswerWatch(
            self.settings, num_requests=self.num_requests, num_allowed=num_allowed, num_refused=self.num_refused
        )
        # Refusals are kept back until there is an answer, because an endpoint that refuses everything is misconfigured.
        held: list[tuple[int, Completion]] = []
        try:
            while True:
                if STOP.is_made:
                    # Send no more requests. Keep the answers that are there, and those that arrive within one poll.
                    stop.set()
                try:
                    outcome = outcomes.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    STOP.check()
                    continue
                if outcome is None:
                    watch.check_refusals(is_end=True)
                    yield from held
                    STOP.check()
                    watch.warn_of_empty_texts()
                    return
                if isinstance(outcome, BaseException):
                    raise outcome
                held.append(outcome)
                watch.count(outcome[1])
                if watch.num_answered:
                    yield from held
                    held.clear()
                try:
                    watch.check_refusals()
                except EndpointFailed:
                    # Keep the answers that have arrived.
                    yield from _received(outcomes)
                    raise
        finally:
            # Don't wait for requests in flight: an interrupted command would seem to hang.
            stop.set()

    def close(self) -> None:
        """Do nothing, because `generate` leaves no resources open."""

    def _ask_all(
        self, prompts: Sequence[Prompt], stop: threading.Event, outcomes: "queue.SimpleQueue[_Outcome]"
    ) -> None:
        try:
            asyncio.run(self._ask_concurrently(prompts, stop, outcomes))
        except BaseExceptionGroup as group:
            # The first task that fails cancels the others.
            outcomes.put(group.exceptions[0])
        except BaseException as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    async def _ask_concurrently(
        self, prompts: Sequence[Prompt], stop: threading.Event, outcomes: "queue.SimpleQueue[_Outcome]"
    ) -> None:
        longest_first = sorted(range(len(prompts)), key=lambda position: -_num_chars(prompts[position]))
        pending = iter(
            [(position, sample) for position in longest_first for sample in range(prompts[position].num_samples)]
        )

        async def work() -> None:
            # All workers share this iterator, so each of them takes the next pending request.
            for position, sample in pending:
                if stop.is_set():
                    return
                body = self.request_format.body(
                    model=self.settings.model,
                    messages=prompts[position].messages,
                    seed=_request_seed(self.seed, position, sample),
                )
                verdict = await self._ask_persistently(transport, body)
                outcomes.put((position, self._completion(verdict, transport)))

        async with EndpointTransport(self.settings) as transport, asyncio.TaskGroup() as group:
            for _ in range(self.settings.max_concurrent):
                group.create_task(work())

    async def _ask_persistently(self, transport: EndpointTransport, body: Mapping[str, Any]) -> Verdict:
        num_retries = self.settings.max_retries
        verdict = await _ask(transport, self.settings, body, max_retries=num_retries)
        if isinstance(verdict, TryAgain) and not verdict.is_about_prompt and num_retries >= _MAX_PROMPT_RETRIES:
            # If the endpoint still answers a tiny request, this prompt is the cause, and would end the evaluation each
            # time that it is continued.
            tiny = self.request_format.tiny_body(model=self.settings.model)
            if isinstance(await _ask(transport, self.settings, tiny, max_retries=0), Answered):
                return RefusedForGood(f"failed {num_retries + 1} times in a row: {verdict.reason}")
        return verdict

    def _completion(self, verdict: Verdict, transport: EndpointTransport) -> Completion:
        settings = self.settings
        if isinstance(verdict, Answered):
            return verdict.completion
        if isinstance(verdict, Misconfigured):
            raise _misconfigured(settings, verdict, transport.proxy)
        if isinstance(verdict, TryAgain) and not verdict.is_about_prompt:
            raise EndpointFailed(
                f"{settings.shown_url}{_through(transport.proxy)} failed {settings.max_retries + 1} times in a row: "
                f"{_shown(settings, verdict.reason)}"
            )
        reason = _shown(settings, verdict.reason)[:MAX_REFUSAL_CHARS].strip()
        return Completion("", None, None, refused=reason or "no reason given")


def _received(outcomes: "queue.SimpleQueue[_Outcome]") -> Iterator[tuple[int, Completion]]:
    while not outcomes.empty():
        outcome = outcomes.get()
        if isinstance(outcome, tuple):
            yield outcome


class _AnswerWatch:
    """Counts answers, empty answers and refusals of an endpoint."""

    def __init__(self, settings: EndpointSettings, *, num_requests: int, num_allowed: float, num_refused: int):
        self._settings = settings
        self._num_refused = num_refused
        self._num_requests = num_requests
        self._num_allowed = num_allowed
        self._reasons: list[str] = []
        self._num_empty = self._num_only_reasoning = 0
        self._has_warned = False
        self.num_answered = 0

    def count(self, completion: Completion) -> None:
        if completion.refused:
            self._num_refused += 1
            self._reasons.append(completion.refused)
            return
        self.num_answered += 1
        is_empty = not completion.text.strip()
        self._num_empty += is_empty
        self._num_only_reasoning += is_empty and bool(completion.reasoning_text)
        if self.num_answered == _NUM_EARLY_ANSWERS:
            self.warn_of_empty_texts()

    def check_refusals(self, *, is_end: bool = False) -> None:
        """Raise if more requests were refused than are allowed, or all of them."""
        settings, num_refused = self._settings, self._num_refused
        is_all = is_end and num_refused == self._num_requests and settings.max_refused_share < 1
        if num_refused <= self._num_allowed and not is_all:
            return
        reasons = ", ".join(list(dict.fromkeys(self._reasons))[:_MAX_REASONS])
        counts = f"{num_refused} of {self._num_requests} requests"
        if not self.num_answered:
            raise ConfigError(
                f"{settings.shown_url} refuses every request so far ({counts}, {reasons}); change the evaluation "
                "(max_tokens, the prompt, the model), or raise max_refused_share in the file's `endpoint`"
            )
        raise EndpointFailed(
            f"{settings.shown_url} has refused {counts} for good, more than endpoint.max_refused_share="
            f"{settings.max_refused_share:g} allows: {reasons}"
        )

    def warn_of_empty_texts(self) -> None:
        """Print a warning, once, if most answers so far are empty."""
        if self._has_warned or self._num_empty * 2 <= self.num_answered:
            return
        self._has_warned = True
        if self._num_only_reasoning:
            cause = (
                f", and {self._num_only_reasoning} of these have only reasoning, which is not judged; raise "
                "max_tokens, or check the server's reasoning parser"
            )
        else:
            cause = "; check the server's chat template, stop tokens and tool parser"
        say(f"\nwarning: {self._num_empty} of {self.num_answered} answers of {self._settings.model} are empty{cause}")


async def _connect(settings: EndpointSettings, preferred: RequestFormat, *, num_requests: int) -> EndpointEngine:
    async with EndpointTransport(settings) as transport:
        models = await _list_models(transport, settings)
        request_format, verdict = await negotiate(preferred, _prober(transport, settings))
        is_only_this_prompt = isinstance(verdict, TryAgain) and verdict.is_about_prompt
        if not isinstance(verdict, Answered) and not is_only_this_prompt:
            raise await _start_error(settings, transport, verdict, request_format, models)
    shown = {key: _shown(settings, reason)[:MAX_REFUSAL_CHARS] for key, reason in request_format.not_sent.items()}
    _report_format(settings, request_format, shown)
    listed = (models or {}).get(settings.model)
    if models and listed is None:
        say(f"warning: {settings.shown_url} does not list the model {settings.model!r}, but answers for it")
    return EndpointEngine(
        settings,
        replace(request_format, not_sent=shown),
        num_requests,
        max_model_len=listed.max_model_len if listed else None,
    )


async def _list_models(transport: EndpointTransport, settings: EndpointSettings) -> dict[str, ListedModel] | None:
    """Return the endpoint's models, or None if it does not list them."""
    timeout_s = min(_CHECK_TIMEOUT_S, settings.timeout_s)
    for wait_s in _waits(min(settings.max_retries, _MAX_START_RETRIES)):
        try:
            return read_models(await transport.exchange("models", timeout_s=timeout_s))
        except NoReply as error:
            if wait_s is None or isinstance(error, NoReplyInTime):
                raise _unreachable(settings, transport.proxy, str(error)) from error
            await asyncio.sleep(wait_s)
    return None


def _prober(transport: EndpointTransport, settings: EndpointSettings) -> Callable[[RequestFormat], Any]:
    """Return a function that sends a tiny request in a format and returns the decision."""

    async def probe(request_format: RequestFormat) -> Verdict:
        return await _ask(
            transport,
            settings,
            request_format.tiny_body(model=settings.model),
            max_retries=min(settings.max_retries, _MAX_START_RETRIES),
            # Some servers fail with status 500 because of a key that they don't know.
            is_final=lambda verdict: (
                verdict.is_timeout
                or any(map(request_format.keeps_meaning_without, complained_keys(request_format, verdict)))
            ),
        )

    return probe


async def _ask(
    transport: EndpointTransport,
    settings: EndpointSettings,
    body: Mapping[str, Any],
    *,
    max_retries: int,
    is_final: Callable[[TryAgain], bool] = lambda verdict: False,
) -> Verdict:
    """Send a request until the decision about it is final."""
    num_about_prompt = 0
    for wait_s in _waits(max_retries):
        verdict: Verdict
        try:
            verdict = read_reply(await transport.exchange(_CHAT, body, timeout_s=settings.timeout_s))
        except NoReply as error:
            verdict = TryAgain(str(error), is_timeout=isinstance(error, NoReplyInTime))
        if not isinstance(verdict, TryAgain) or wait_s is None or is_final(verdict):
            break
        num_about_prompt += verdict.is_about_prompt
        if num_about_prompt > _MAX_PROMPT_RETRIES:
            break
        await asyncio.sleep(max(wait_s, verdict.after_s or 0.0))
    return verdict


def _waits(max_retries: int) -> Iterator[float | None]:
    """Yield the seconds to wait after each failed attempt, None after the last one."""
    for attempt in range(max_retries):
        # Requests that failed together should not be repeated together.
        yield min(_FIRST_WAIT_S * 2 ** min(attempt, 10), _MAX_WAIT_S) * random.uniform(0.75, 1.0)
    yield None


async def _start_error(
    settings: EndpointSettings,
    transport: EndpointTransport,
    verdict: TryAgain | RefusedForGood | Misconfigured,
    request_format: RequestFormat,
    models: Mapping[str, ListedModel] | None,
) -> ConfigError:
    """Return the error for an endpoint that answers no request."""
    reason = _shown(settings, verdict.reason)
    if isinstance(verdict, Misconfigured) and verdict.fault != Fault.ADDRESS:
        return _misconfigured(settings, verdict, transport.proxy)
    if models and settings.model not in models:
        return ConfigError(
            f"{settings.shown_url} has no model {settings.model!r} ({reason}); "
            f"{settings.masked(choose_from(settings.model, models))}"
        )
    if isinstance(verdict, RefusedForGood):
        if named := complained_keys(request_format, verdict):
            given = ", ".join(f"{key} {request_format.values.get(key)!r}" for key in named)
            return ConfigError(
                f"{settings.shown_url} refuses {given} ({reason}); the evaluation would measure something else without "
                "it, so change the value in the evaluation file"
            )
        return ConfigError(f"{settings.shown_url} refuses every request ({reason}); change the evaluation or base_url")
    if (better := await _better_address(settings, transport)) is not None:
        return ConfigError(
            f"base_url {settings.shown_url} has no chat completions ({reason}); set base_url to {mask_secrets(better)}"
        )
    if isinstance(verdict, Misconfigured):
        return _misconfigured(settings, verdict, transport.proxy)
    return ConfigError(
        f"base_url {settings.shown_url}{_through(transport.proxy)} answers no request ({reason}); try again later, or "
        "check the server's log and that this is the address of an OpenAI-compatible endpoint"
    )


async def _better_address(settings: EndpointSettings, transport: EndpointTransport) -> str | None:
    """Return an address that is probably the right one, or None."""
    parts = urlsplit(settings.base_url)
    path = parts.path.rstrip("/")
    for end in _TOO_LONG_PATHS:
        if path.endswith(end):
            return urlunsplit(parts._replace(path=path.removesuffix(end)))
    if path.endswith("/v1"):
        return None
    longer = urlunsplit(parts._replace(path=f"{path}/v1"))
    try:
        timeout_s = min(_CHECK_TIMEOUT_S, settings.timeout_s)
        models = read_models(await transport.exchange("models", timeout_s=timeout_s, base_url=longer))
    except NoReply:
        return None
    return longer if models else None


def _misconfigured(settings: EndpointSettings, verdict: Misconfigured, proxy: str | None) -> ConfigError:
    reason = _shown(settings, verdict.reason)
    url, through = settings.shown_url, _through(proxy)
    if verdict.fault == Fault.KEY:
        return ConfigError(
            f"{url}{through} refuses the key in the environment variable {settings.api_key_env} ({reason}); export a "
            "valid key, or name the variable that holds it as api_key_env in the file's `endpoint`"
        )
    if verdict.fault == Fault.CREDIT:
        return ConfigError(
            f"{url} reports that the account of the key in {settings.api_key_env} has no credit left ({reason}); add "
            "credit or export another key"
        )
    if verdict.fault == Fault.REDIRECT:
        location = _shown(settings, verdict.location)
        for end in _TOO_LONG_PATHS:
            location = location.removesuffix(end)
        return ConfigError(f"base_url {url} redirects to {location} ({reason}); set base_url to that address")
    if verdict.fault == Fault.PROXY:
        return ConfigError(
            f"a proxy refuses the request to {url}{through} ({reason}); give its user and "
            "password as http://USER:PASSWORD@HOST:PORT, or add the endpoint's host to no_proxy"
        )
    return ConfigError(
        f"base_url {url}{through} has no chat completions for the model {settings.model!r} ({reason}); give the "
        "address in front of /chat/completions, which ends in /v1 at most servers, and a model that is served there"
    )


def _unreachable(settings: EndpointSettings, proxy: str | None, reason: str) -> ConfigError:
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        advice = "set SSL_CERT_FILE to a file with the certificate of the server's authority"
    elif "WRONG_VERSION_NUMBER" in reason or "record layer failure" in reason:
        advice = "write http:// instead of https:// if the server has no certificate"
    else:
        advice = "check that the server is running there"
    if proxy is not None:
        advice += f", and add {urlsplit(settings.base_url).hostname} to no_proxy if it is reached without the proxy"
    return ConfigError(
        f"cannot reach base_url {settings.shown_url}{_through(proxy)} to send a request "
        f"({_shown(settings, reason)}); {advice}"
    )


def _through(proxy: str | None) -> str:
    return "" if proxy is None else f" through the proxy {mask_secrets(proxy)} of the environment"


def _report_format(settings: EndpointSettings, request_format: RequestFormat, reasons: Mapping[str, str]) -> None:
    for key, name in request_format.renamed.items():
        say(f"{settings.shown_url} takes {key} as {name}")
    if reasons:
        say(f"{settings.shown_url} does not take {', '.join(reasons)}; the requests mean the same without")


def _request_seed(seed: int, position: int, sample: int) -> int:
    """Return a seed in [0, 2**31), which differs between requests so that a problem's answers differ."""
    digest = hashlib.blake2b(f"{seed} {position} {sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1


def _num_chars(prompt: Prompt) -> int:
    return sum(len(message["content"]) for message in prompt.messages)


def _shown(settings: EndpointSettings, text: str) -> str:
    # An endpoint's message is untrusted and may repeat the request with its key. Mask it before cutting it, because a
    # part of a key would not be recognised.
    return printable(settings.masked(text[:_MAX_MASKED_CHARS])[: 4 * _MAX_SHOWN_CHARS])[:_MAX_SHOWN_CHARS]
