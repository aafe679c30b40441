"""An engine for OpenAI-compatible endpoints. It sends many requests concurrently and retries those that fail."""

import asyncio
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.evaluation.endpoint_settings import EndpointSettings
from rgtrain.evaluation.engine_interface import Completion, EngineFailed, Prompt, Sampling
from rgtrain.evaluation.evaluation_stopping import STOP

# Larger than any legitimate reply. A longer reply is rejected while it arrives, because it could exhaust the memory.
MAX_REPLY_BYTES = 16 << 20
# Replies are measured before decompression, and gzip can expand them a thousandfold.
_UNCOMPRESSED = {"Accept-Encoding": "identity"}
_MAX_COMPRESSED_BYTES = 256 << 10
_POLL_SECONDS = 0.2
_CHECK_TIMEOUT_S = 30.0
_MAX_MASKED_CHARS = 100_000
# Errors raised by parsing a reply that is not a completion. RecursionError means too deeply nested brackets.
_PARSE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, RecursionError)

# The last outcome that the request thread reports is None, or the error that ended it.
_Outcome = tuple[int, Completion] | BaseException | None


class EndpointFailed(EngineFailed):
    """The endpoint stopped answering."""


def connect(settings: EndpointSettings) -> "EndpointEngine":
    """Return an engine for an endpoint, after checking that the endpoint answers and has the model.

    Args:
        settings: The endpoint, one of its models, and the limits of its requests.

    Returns:
        The engine.

    Raises:
        ConfigError: The endpoint cannot be reached, refuses the key, or does not have the model.
    """
    return EndpointEngine(settings, max_model_len=_ask_context(settings))


class EndpointEngine:
    """Requests chat completions from an endpoint.

    It sends one request per completion, because not all servers support several completions per request.

    Attributes:
        max_model_len: The context length of the model in tokens; None if the endpoint does not report it.
    """

    def __init__(self, settings: EndpointSettings, *, max_model_len: int | None):
        self._settings = settings
        self.max_model_len = max_model_len
        self._stop = threading.Event()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Generate completions, as described in `Engine.generate`.

        The longest prompts are sent first, so that one that is too long is reported before the others are paid for.

        Args:
            prompts: The prompts. Only their messages are used.
            sampling: The sampling parameters.

        Yields:
            The position of a prompt, and one of its completions.

        Raises:
            ConfigError: The endpoint refuses the key or a prompt.
            EndpointFailed: A request kept failing, or a reply was not a completion.
            EvaluationStopped: The evaluation was asked to stop.
        """
        outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        thread = threading.Thread(target=self._ask_all, args=(prompts, sampling, outcomes), daemon=True)
        thread.start()
        try:
            while True:
                if STOP.is_made:
                    # Send no more requests. Keep the answers that are there, and those that arrive within one poll.
                    self._stop.set()
                try:
                    outcome = outcomes.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    STOP.check()
                    continue
                if outcome is None:
                    STOP.check()
                    return
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            # Don't wait for requests in flight: an interrupted command would seem to hang.
            self._stop.set()

    def close(self) -> None:
        """Do nothing, because `generate` leaves no resources open."""

    def _ask_all(self, prompts: Sequence[Prompt], sampling: Sampling, outcomes: "queue.SimpleQueue[_Outcome]") -> None:
        try:
            asyncio.run(self._ask_concurrently(prompts, sampling, outcomes))
        except BaseExceptionGroup as group:
            # The first task that fails cancels the others.
            outcomes.put(group.exceptions[0])
        except BaseException as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    async def _ask_concurrently(
        self, prompts: Sequence[Prompt], sampling: Sampling, outcomes: "queue.SimpleQueue[_Outcome]"
    ) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        longest_first = sorted(range(len(prompts)), key=lambda position: -_num_chars(prompts[position]))
        pending = iter([position for position in longest_first for _ in range(prompts[position].num_samples)])

        async def work() -> None:
            # All workers share this iterator, so each of them takes the next pending request.
            for position in pending:
                if self._stop.is_set():
                    return
                outcomes.put((position, await self._ask(client, prompts[position], sampling)))

        async def limit(response: Any) -> None:
            _limit(response, timeout_s=self._settings.timeout_s)

        settings = self._settings
        async with (
            AsyncOpenAI(
                base_url=settings.base_url,
                api_key=settings.api_key,
                max_retries=settings.max_retries,
                timeout=settings.timeout_s,
                default_headers=_UNCOMPRESSED,
                http_client=DefaultAsyncHttpxClient(event_hooks={"response": [limit]}),
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(settings.max_concurrent):
                group.create_task(work())

    async def _ask(self, client: Any, prompt: Prompt, sampling: Sampling) -> Completion:
        import openai

        try:
            response = await client.chat.completions.create(
                model=self._settings.model,
                messages=list(prompt.messages),
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                stop=list(sampling.stop) or openai.NOT_GIVEN,
                extra_body={
                    "top_k": sampling.top_k or -1,
                    "min_p": sampling.min_p,
                    "repetition_penalty": sampling.repetition_penalty,
                },
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise _key_refused(self._settings, error) from error
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            raise EndpointFailed(
                f"{self._settings.shown_url} failed {self._settings.max_retries + 1} times in a row: "
                f"{_cause(self._settings, error)}"
            ) from error
        except openai.APIStatusError as error:
            raise ConfigError(
                f"{self._settings.shown_url} refuses a prompt of {prompt.label} with max_tokens {sampling.max_tokens}: "
                f"{_cause(self._settings, error)}"
            ) from error
        except (openai.APIError, *_PARSE_ERRORS) as error:
            raise self._invalid_reply(_cause(self._settings, error)) from error
        try:
            return _completion(response)
        except _PARSE_ERRORS as error:
            # The client returns a proxy's HTML page as a string, for example.
            raise self._invalid_reply(_shown(self._settings, repr(response))) from error

    def _invalid_reply(self, reply: str) -> EndpointFailed:
        return EndpointFailed(f"{self._settings.shown_url} replied with something that is not a completion: {reply}")


def _completion(response: Any) -> Completion:
    """Return the completion in a reply. The client library does not check the types of a reply's values."""
    choice = response.choices[0]
    text, reason = choice.message.content, choice.finish_reason
    num_tokens = response.usage.completion_tokens if response.usage else 0
    if not isinstance(text, str | None) or not isinstance(reason, str | None):
        raise TypeError("content and finish_reason must be texts or null")
    if not isinstance(num_tokens, int) or not 0 <= num_tokens < 1 << 40:
        raise ValueError("completion_tokens must be a number of tokens")
    return Completion(text or "", num_tokens, reason)


def _limit(response: Any, *, timeout_s: float) -> None:
    """Make reading a reply fail if its body is too long, or takes longer than `timeout_s`.

    It fails while the body arrives. The client then retries, as it does after a lost connection.
    """
    # The client's HTTP library is httpx or httpx2, depending on the version of openai.
    http = sys.modules[type(response).__module__.partition(".")[0]]
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise http.ReadError(f"the reply is compressed with {encoding[:20]!r}, which was not requested")
    # The library accepts only subclasses of its stream classes.
    limited = type("LimitedStream", (_LimitedStream, http.AsyncByteStream, http.SyncByteStream), {})
    max_bytes = MAX_REPLY_BYTES if encoding == "identity" else _MAX_COMPRESSED_BYTES
    response.stream = limited(http, response.stream, max_bytes=max_bytes, deadline=time.monotonic() + timeout_s)


class _LimitedStream:
    def __init__(self, http: Any, stream: Any, *, max_bytes: int, deadline: float):
        self._http = http
        self._stream = stream
        self._max_bytes = max_bytes
        self._deadline = deadline
        self._num_bytes = 0

    def _count(self, part: bytes) -> bytes:
        self._num_bytes += len(part)
        if self._num_bytes > self._max_bytes:
            raise self._http.ReadError(f"the reply has more than {self._max_bytes >> 10} KB")
        if time.monotonic() > self._deadline:
            raise self._http.ReadTimeout("the reply took too long")
        return part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield self._count(part)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            yield self._count(part)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()


def _ask_context(settings: EndpointSettings) -> int | None:
    """Return the context length of the endpoint's model in tokens, or None if the endpoint does not report it."""
    import openai

    hooks = {"response": [lambda response: _limit(response, timeout_s=_CHECK_TIMEOUT_S)]}
    try:
        client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=settings.api_key,
            max_retries=4,
            timeout=_CHECK_TIMEOUT_S,
            default_headers=_UNCOMPRESSED,
            http_client=openai.DefaultHttpxClient(event_hooks=hooks),
        )
    except Exception as error:  # the HTTP library's own error for an invalid address
        raise ConfigError(f"base_url {settings.shown_url} cannot be used: {_cause(settings, error)}") from error
    try:
        models = {str(model.id): model for model in client.models.list()}
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise _key_refused(settings, error) from error
    except openai.NotFoundError:
        # Not every endpoint lists its models.
        return None
    except openai.APIError as error:
        raise ConfigError(
            f"cannot reach base_url {settings.shown_url} ({_cause(settings, error)}); check that the server is running"
        ) from error
    except _PARSE_ERRORS as error:
        raise ConfigError(
            f"base_url {settings.shown_url} did not reply with a list of models ({_cause(settings, error)}); "
            "give the address of an OpenAI-compatible endpoint"
        ) from error
    if settings.model not in models:
        raise ConfigError(
            f"{settings.shown_url} has no model {settings.model!r}; "
            f"{settings.masked(choose_from(settings.model, models))}"
        )
    context = getattr(models[settings.model], "max_model_len", None)
    return context if isinstance(context, int) else None


def _key_refused(settings: EndpointSettings, error: Exception) -> ConfigError:
    return ConfigError(
        f"{settings.shown_url} refuses the key in the environment variable {settings.api_key_env} "
        f"({_cause(settings, error)}); export a valid key, or name the variable that holds it "
        "as api_key_env in the file's `endpoint`"
    )


def _num_chars(prompt: Prompt) -> int:
    return sum(len(message["content"]) for message in prompt.messages)


def _cause(settings: EndpointSettings, error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    # The client reports a failed connection without its cause.
    if error.__cause__ is not None and str(error) == "Connection error.":
        text += f" ({type(error.__cause__).__name__}: {error.__cause__})"
    return _shown(settings, text)


def _shown(settings: EndpointSettings, text: str) -> str:
    # An endpoint's message is untrusted and may repeat the request with its key. Mask it before cutting it, because a
    # part of a key would not be recognised.
    return " ".join(settings.masked(text[:_MAX_MASKED_CHARS]).split())[:300]
