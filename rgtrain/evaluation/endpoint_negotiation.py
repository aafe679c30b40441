"""Find the keys of a request that an endpoint accepts, by one tiny request and at most a few more.

Endpoints differ in the sampling parameters that they know. A key is left out or renamed only if the request still means
the same. Otherwise, the evaluation is refused, because it would measure something else.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rgtrain.evaluation.endpoint_replies import RefusedForGood, TryAgain, Verdict
from rgtrain.evaluation.engine_interface import Sampling

# A question whose answer is short.
PROBE = "Reply with the single word OK."
# Some reasoning models refuse fewer.
PROBE_TOKENS = 16
# Values that don't change the distribution. They are sent, because a server may have other defaults. vLLM's server
# takes its defaults from the model's generation_config.json.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "top_k": (-1, 0, None),
    "min_p": (0, None),
    "repetition_penalty": (1, None),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
# These parameters choose among the likely tokens, so that they don't matter to greedy decoding.
_WITHOUT_EFFECT_IF_GREEDY = ("top_p", "top_k", "min_p")
# Keys that only some servers know. They are left out together if a server refuses a request without naming a key.
_EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
_MAX_ROUNDS = 12


@dataclass(frozen=True)
class RequestFormat:
    """The form in which an endpoint takes the sampling parameters.

    Attributes:
        values: Every key of the request except for the model, the messages and the seed, with its value.
        renamed: The endpoint's names of keys that it calls differently.
        not_sent: Keys that are left out, each with the endpoint's reason.
    """

    values: Mapping[str, Any]
    renamed: Mapping[str, str] = field(default_factory=dict)
    not_sent: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_seed(self) -> bool:
        """Whether requests carry a seed."""
        return self.values.get("temperature") != 0 and "seed" not in self.not_sent

    @property
    def sent_keys(self) -> set[str]:
        """The keys, by our own names, that are sent."""
        return (set(self.values) | ({"seed"} if self.has_seed else set())) - set(self.not_sent)

    def body(self, *, model: str, messages: Sequence[Mapping[str, str]], seed: int) -> dict[str, Any]:
        """Return the JSON body of a request.

        Args:
            model: The name of the model.
            messages: The chat messages.
            seed: The seed of this request.

        Returns:
            The body.
        """
        asked = {"model": model, "messages": [dict(message) for message in messages], **self._sent_values()}
        return asked | {"seed": seed} if self.has_seed else asked

    def tiny_body(self, *, model: str) -> dict[str, Any]:
        """Return the JSON body of a request with the same keys and an answer of at most `PROBE_TOKENS` tokens."""
        tiny = replace(self, values={**self.values, "max_tokens": min(PROBE_TOKENS, self.values["max_tokens"])})
        return tiny.body(model=model, messages=[{"role": "user", "content": PROBE}], seed=0)

    def keeps_meaning_without(self, key: str) -> bool:
        """Return whether a request without `key` means the same."""
        if key == "seed":
            return True
        is_greedy = self.values.get("temperature") == 0
        return self.values[key] in _NEUTRAL.get(key, ()) or (is_greedy and key in _WITHOUT_EFFECT_IF_GREEDY)

    def as_json(self) -> dict[str, Any]:
        """Return the format as plain JSON values, for the summary."""
        sent = {**self._sent_values(), "seed": self.has_seed}
        return {"sent": sent, "renamed": dict(self.renamed), "not_sent": dict(self.not_sent)}

    def _sent_values(self) -> dict[str, Any]:
        return {self.renamed.get(key, key): value for key, value in self.values.items() if key not in self.not_sent}


def preferred_format(sampling: Sampling, *, chat_template_kwargs: Mapping[str, Any] | None = None) -> RequestFormat:
    """Return the format with every sampling parameter, also those with a neutral value.

    Args:
        sampling: The sampling parameters.
        chat_template_kwargs: Arguments of the model's chat template; none if it is empty.

    Returns:
        The format to try first.
    """
    values = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0} | vars(sampling)
    values = {key: _NEUTRAL[key][0] if value is None else value for key, value in values.items()}
    if not values.get("stop"):
        values.pop("stop", None)
    elif not isinstance(values["stop"], str):
        values["stop"] = list(values["stop"])
    if chat_template_kwargs:
        values["chat_template_kwargs"] = dict(chat_template_kwargs)
    return RequestFormat(values)


async def negotiate(
    preferred: RequestFormat, ask: Callable[[RequestFormat], Awaitable[Verdict]]
) -> tuple[RequestFormat, Verdict]:
    """Change the format until the endpoint accepts a request, as long as the request keeps its meaning.

    Args:
        preferred: The format to try first.
        ask: Sends one tiny request in a format, and returns the decision about the reply.

    Returns:
        The last format, and the decision about its reply. The format is accepted unless that is a refusal.
    """
    current = preferred
    for _ in range(_MAX_ROUNDS):
        verdict = await ask(current)
        if not isinstance(verdict, RefusedForGood | TryAgain):
            break
        changed = _changed(current, verdict)
        if changed is None:
            break
        current = changed
    return current, verdict


def complained_keys(current: RequestFormat, verdict: RefusedForGood | TryAgain) -> list[str]:
    """Return the sent keys that a refusal names. Some servers write `presencePenalty` for `presence_penalty`."""
    plain = {key.replace("_", ""): key for key in current.sent_keys}
    found = (plain.get(name.replace("_", "").lower()) for name in verdict.keys)
    return list(dict.fromkeys(key for key in found if key))


def _changed(current: RequestFormat, verdict: RefusedForGood | TryAgain) -> RequestFormat | None:
    """Return the format without the keys that the endpoint refuses, or None if that is impossible."""
    named = complained_keys(current, verdict)
    if "max_tokens" in named and "max_completion_tokens" in verdict.keys and not current.renamed:
        return replace(current, renamed={"max_tokens": "max_completion_tokens"})
    removable = [key for key in named if current.keeps_meaning_without(key)]
    if removable:
        # One at a time: of two parameters that exclude each other, one can stay. Temperature is left out last.
        key = min(removable, key=lambda name: name == "temperature")
        return replace(current, not_sent={**current.not_sent, key: verdict.reason})
    if not isinstance(verdict, RefusedForGood):
        return None
    if "max_tokens" in named and not current.renamed:
        return replace(current, renamed={"max_tokens": "max_completion_tokens"})
    if named:
        return None
    # The server refuses the request without naming a key.
    extensions = [key for key in _EXTENSIONS if key in current.sent_keys and current.keeps_meaning_without(key)]
    if extensions:
        return replace(current, not_sent={**current.not_sent, **dict.fromkeys(extensions, verdict.reason)})
    return None if current.renamed else replace(current, renamed={"max_tokens": "max_completion_tokens"})
