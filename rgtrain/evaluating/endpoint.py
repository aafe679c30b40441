"""A model behind an OpenAI-compatible endpoint: many requests at a time, failed ones tried again, none lost."""

import asyncio
import json
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.evaluating.endpoint_settings import EndpointSettings
from rgtrain.evaluating.engine import Completion, Prompt, Sampling

# What the requests' thread puts last: None, or the error that ended it.
_Outcome = tuple[int, Completion] | BaseException | None


class EndpointFailed(RuntimeError):
    """The endpoint stopped answering; what it has answered is kept."""


class EndpointEngine:
    """Asks the chat completions of an endpoint, one request a completion: not all servers know several in one."""

    def __init__(self, settings: EndpointSettings):
        """Raises ConfigError where the endpoint can't be reached, refuses the key or does not have the model."""
        self._settings = settings
        self.max_model_len = _check(settings)
        self._stop = threading.Event()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """See Engine. Raises ConfigError where the endpoint refuses a prompt, EndpointFailed where it gives up.

        The longest prompts are asked first: one that is too long is told before the others are paid for.
        """
        outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        thread = threading.Thread(target=self._ask_all, args=(prompts, sampling, outcomes), daemon=True)
        thread.start()
        try:
            while (outcome := outcomes.get()) is not None:
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
        from openai import AsyncOpenAI

        longest_first = sorted(range(len(prompts)), key=lambda position: -_num_chars(prompts[position]))
        waiting = iter([position for position in longest_first for _ in range(prompts[position].num_samples)])

        async def ask_one_after_the_other() -> None:
            # An iterator shared by all: each takes the next one that is left.
            for position in waiting:
                if self._stop.is_set():
                    return
                outcomes.put((position, await self._ask(client, prompts[position], sampling)))

        settings = self._settings
        async with (
            AsyncOpenAI(
                base_url=settings.base_url,
                api_key=settings.api_key,
                max_retries=settings.max_retries,
                timeout=settings.timeout_s,
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
                f"{self._settings.base_url} failed {self._settings.max_retries + 1} times in a row: {_told(error)}"
            ) from error
        except openai.APIStatusError as error:
            raise ConfigError(
                f"{self._settings.base_url} refuses a prompt of {prompt.label} with {sampling.max_tokens} tokens to "
                f"answer: {_told(error)}"
            ) from error
        except (openai.APIError, json.JSONDecodeError) as error:
            raise EndpointFailed(f"{self._settings.base_url} answered what is no completion: {_told(error)}") from error
        # A proxy's page of HTML comes as a text.
        if not getattr(response, "choices", None):
            raise EndpointFailed(f"{self._settings.base_url} answered what is no completion: {response!r:.300}")
        choice = response.choices[0]
        num_tokens = response.usage.completion_tokens if response.usage else 0
        return Completion(choice.message.content or "", num_tokens, choice.finish_reason)


def _check(settings: EndpointSettings) -> int | None:
    """The context of the endpoint's model, where it tells; ConfigError where it can't be used."""
    import openai

    client = openai.OpenAI(base_url=settings.base_url, api_key=settings.api_key, max_retries=4, timeout=30)
    try:
        models = {model.id: model for model in client.models.list()}
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise _key_refused(settings, error) from error
    except openai.NotFoundError:
        # Not every endpoint lists its models.
        return None
    except openai.APIError as error:
        raise ConfigError(f"cannot reach base_url {settings.base_url}: {_told(error)}; is it running?") from error
    if settings.model not in models:
        raise ConfigError(f"{settings.base_url} has no model {settings.model!r}; {choose_from(settings.model, models)}")
    return getattr(models[settings.model], "max_model_len", None)


def _key_refused(settings: EndpointSettings, error: Exception) -> ConfigError:
    return ConfigError(
        f"{settings.base_url} refuses the key in the environment variable {settings.api_key_env} ({_told(error)}); "
        "export another, or name its variable in endpoint: {api_key_env: NAME}"
    )


def _num_chars(prompt: Prompt) -> int:
    return sum(len(message["content"]) for message in prompt.messages)


def _told(error: Exception) -> str:
    # An endpoint's message is another program's text.
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
