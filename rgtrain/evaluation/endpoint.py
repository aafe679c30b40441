"""A model behind an OpenAI-compatible endpoint: many requests at a time, failed ones tried again, none lost."""

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

# More than the longest honest reply. A longer one is refused while it arrives: it could fill the memory.
MAX_REPLY_BYTES = 16 << 20
# A reply is counted before it is decompressed, and gzip makes up to a thousand times of it.
_UNCOMPRESSED = {"Accept-Encoding": "identity"}
_MAX_COMPRESSED_BYTES = 256 << 10
_LOOK_EVERY_SECONDS = 0.2
_CHECK_TIMEOUT_S = 30.0
_MAX_MASKED_CHARS = 100_000
# Errors of parsing a reply that is no completion. RecursionError: its brackets are nested too deeply.
_NO_COMPLETION = (ValueError, TypeError, LookupError, AttributeError, RecursionError)

# The last outcome of the requests' thread is None, or the error that ended it.
_Outcome = tuple[int, Completion] | BaseException | None


class EndpointFailed(EngineFailed):
    """The endpoint stopped answering."""


def connect(settings: EndpointSettings) -> "EndpointEngine":
    """Return the engine of an endpoint that has answered.

    Raises:
        ConfigError: The endpoint cannot be reached, refuses the key, or does not have the model.
    """
    return EndpointEngine(settings, max_model_len=_ask_context(settings))


class EndpointEngine:
    """Asks the chat completions of an endpoint, one request per completion: not all servers know several in one.

    Attributes:
        max_model_len: The context of its model in tokens; None if the endpoint does not report it.
    """

    def __init__(self, settings: EndpointSettings, *, max_model_len: int | None):
        self._settings = settings
        self.max_model_len = max_model_len
        self._stop = threading.Event()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """See Engine. Raises ConfigError if the endpoint refuses a prompt, EndpointFailed if it gives up.

        The longest prompts come first, so that one that is too long is reported before the others are paid for.
        """
        outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        thread = threading.Thread(target=self._ask_all, args=(prompts, sampling, outcomes), daemon=True)
        thread.start()
        try:
            while True:
                if STOP.is_made:
                    # No new requests. The answers that have come are kept, and those that come at once.
                    self._stop.set()
                try:
                    outcome = outcomes.get(timeout=_LOOK_EVERY_SECONDS)
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
            # Requests under way are not waited for: an interrupted command would seem to hang.
            self._stop.set()

    def close(self) -> None:
        """See Engine."""

    def _ask_all(self, prompts: Sequence[Prompt], sampling: Sampling, outcomes: "queue.SimpleQueue[_Outcome]") -> None:
        try:
            asyncio.run(self._ask_concurrently(prompts, sampling, outcomes))
        except BaseExceptionGroup as group:
            # The first task to fail ends the others.
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
        waiting = iter([position for position in longest_first for _ in range(prompts[position].num_samples)])

        async def ask_one_after_the_other() -> None:
            # An iterator shared by all: each takes the next one that is left.
            for position in waiting:
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
                group.create_task(ask_one_after_the_other())

    async def _ask(self, client: Any, prompt: Prompt, sampling: Sampling) -> Completion:
        import openai

        try:
            response = await client.chat.completions.create(
                model=self._settings.model,
                messages=list(prompt.messages),
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
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
                f"{self._settings.shown_url} refuses a prompt of {prompt.label} with {sampling.max_tokens} tokens to "
                f"answer: {_cause(self._settings, error)}"
            ) from error
        except (openai.APIError, *_NO_COMPLETION) as error:
            raise self._no_completion(_cause(self._settings, error)) from error
        try:
            return _completion(response)
        except _NO_COMPLETION as error:
            # A proxy's page of HTML comes as a text.
            raise self._no_completion(_shown(self._settings, repr(response))) from error

    def _no_completion(self, reply: str) -> EndpointFailed:
        return EndpointFailed(f"{self._settings.shown_url} replied with something that is no completion: {reply}")


def _completion(response: Any) -> Completion:
    """The completion in a reply. Nothing has checked the types of its values."""
    choice = response.choices[0]
    text, reason = choice.message.content, choice.finish_reason
    num_tokens = response.usage.completion_tokens if response.usage else 0
    if not isinstance(text, str | None) or not isinstance(reason, str | None):
        raise TypeError("content and finish_reason are texts or null")
    if not isinstance(num_tokens, int) or not 0 <= num_tokens < 1 << 40:
        raise ValueError("completion_tokens is a number of tokens")
    return Completion(text or "", num_tokens, reason)


def _limit(response: Any, *, timeout_s: float) -> None:
    """Have a reply refused while it arrives if it is too long, or if its body takes longer than `timeout_s`.

    The client then tries again, as it does after a lost connection.
    """
    # openai's HTTP library, which is httpx or httpx2, depending on its version.
    http = sys.modules[type(response).__module__.partition(".")[0]]
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise http.ReadError(f"the reply is compressed by {encoding[:20]!r}, which was not asked for")
    # The library insists on its own base classes.
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
            raise self._http.ReadTimeout("the reply does not end")
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
    """Return the context of the endpoint's model, None if it is not reported. Raises ConfigError as `connect` does."""
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
    except Exception as error:  # the HTTP library's own, of an address that it cannot use
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
            f"cannot reach base_url {settings.shown_url}: {_cause(settings, error)}; is it running?"
        ) from error
    except _NO_COMPLETION as error:
        raise ConfigError(
            f"base_url {settings.shown_url} replies with something that is no list of models "
            f"({_cause(settings, error)}); is it an OpenAI-compatible endpoint?"
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
        f"({_cause(settings, error)}); "
        "export another, or name its variable in endpoint: {api_key_env: NAME}"
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
    # An endpoint's message is another program's text, and may repeat the request with its key. It is masked before it
    # is cut, because a part of a key would not be recognised.
    return " ".join(settings.masked(text[:_MAX_MASKED_CHARS]).split())[:300]
