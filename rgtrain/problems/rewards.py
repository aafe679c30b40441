"""Reward parts, which are named functions of a completion. The reward is their weighted sum.

Each part in this file is a pure function of a `JudgedCompletion`, and its docstring states the range of its values. To
add a part, decorate a function in this file, or name a function in the configuration as `pkg://package.module.function`
(see own_rewards.py).
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.answers import extract_answer
from rgtrain.problems.judged_completion import JudgedCompletion
from rgtrain.problems.own_rewards import (
    OPTIONS,
    OwnOptions,
    OwnReward,
    is_finite_number,
    parse_own_options,
)
from rgtrain.problems.plugins import FUNCTION_FORM, PLUGIN_PREFIX


@dataclass(frozen=True)
class RewardSpec:
    """A function of the reward, with its name or `pkg://` name, weight and arguments, and the options of an own one."""

    name: str
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)
    own: OwnOptions | None = None

    @property
    def label(self) -> str:
        """The name of its function without the package."""
        return self.name.rpartition(".")[2]

    @property
    def part_weights(self) -> dict[str, float]:
        """The weight of each part by its name in metrics: LABEL, or LABEL_NAME of each named part."""
        if self.own is None or not self.own.parts:
            return {self.label: self.weight}
        return {f"{self.label}_{part}": self.weight * weight for part, weight in self.own.parts.items()}


Part = Callable[..., float]
_PARTS: dict[str, Part] = {}
_NO_VALUES: Mapping[str, float] = {}


def reward_part(function: Part) -> Part:
    """Register `function(completion, **args)` as a reward part under its name."""
    _PARTS[function.__name__] = function
    return function


def combine(
    specs: Sequence[RewardSpec], completion: JudgedCompletion, *, own: Mapping[str, float] = _NO_VALUES
) -> tuple[float, dict[str, float]]:
    """Compute the reward of a completion.

    Args:
        specs: The functions of the reward.
        completion: The completion.
        own: The value of each part of own functions by its name in metrics.

    Returns:
        The weighted sum of the parts, and the unweighted value of each part by its name in metrics.

    Raises:
        ValueError: A part of this package returns a value that is not finite.
    """
    parts: dict[str, float] = {}
    reward = 0.0
    for spec in specs:
        if spec.own is not None:
            for label, weight in spec.part_weights.items():
                parts[label] = own[label]
                reward += weight * own[label]
            continue
        value = float(_PARTS[spec.name](completion, **spec.args))
        if not math.isfinite(value):
            raise ValueError(f"reward {spec.name!r} returned {value}; a reward must be a finite number")
        parts[spec.label] = value
        reward += spec.weight * value
    return reward, parts


def parse_reward(raw: Mapping[str, Any]) -> list[RewardSpec]:
    """Parse and check the reward of a configuration. Own functions are imported, but not called.

    Args:
        raw: Weight and arguments of each function by its name, as in `{accuracy: {weight: 1}, cosine: {max_len: 512}}`.

    Returns:
        The functions in order.

    Raises:
        ConfigError: A function or an argument is unknown, a value cannot be used, or all weights are 0.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"the reward is a {type(raw).__name__}; write a mapping, as in `{{accuracy: {{weight: 1}}}}`")
    specs = []
    for name, options in raw.items():
        if not isinstance(options, Mapping | None):
            raise ConfigError(f"reward {name!r} has {options!r}; write a mapping, as in `{{weight: 1}}`")
        args = dict(options or {})
        weight = args.pop("weight", 1.0)
        if not is_finite_number(weight):
            raise ConfigError(f"reward {name!r} has weight {weight!r}; give a finite number")
        parse = _parse_own if str(name).startswith(PLUGIN_PREFIX) else _parse_part
        specs.append(parse(name, float(weight), args))
    # Failures are counted by function.
    labels = [label for spec in specs for label in {spec.label, *spec.part_weights}]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"two rewards are called {label!r}; rename one of the functions")
    if not any(weight for spec in specs for weight in spec.part_weights.values()):
        raise ConfigError("all rewards have weight 0; add one, as in `{accuracy: {weight: 1}}`")
    return specs


def _parse_part(name: str, weight: float, args: Mapping[str, Any]) -> RewardSpec:
    if name not in _PARTS:
        raise ConfigError(f"unknown reward {name!r}; {choose_from(name, _PARTS)} or {FUNCTION_FORM}")
    allowed = set(list(inspect.signature(_PARTS[name]).parameters)[1:])
    for arg in args:
        if arg not in allowed:
            raise ConfigError(f"reward {name!r} has no argument {arg!r}; {choose_from(arg, allowed | {'weight'})}")
    try:
        combine([RewardSpec(name, 1.0, args)], JudgedCompletion("", accuracy=0.0, num_tokens=1, max_tokens=10**6))
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward {name!r} refuses {args}: {error}") from error
    return RewardSpec(name, weight, args)


def _parse_own(name: str, weight: float, raw: Mapping[str, Any]) -> RewardSpec:
    options = parse_own_options(name, {key: value for key, value in raw.items() if key in OPTIONS})
    args = {key: value for key, value in raw.items() if key not in OPTIONS}
    function = OwnReward(name, args, tuple(options.parts))
    if function.is_async and not options.trusted:
        raise ConfigError(
            f"reward {name!r} is asynchronous, but the sandbox has no network to wait for; add `trusted: true` to run "
            "it in the process that computes rewards, or write a plain function"
        )
    return RewardSpec(name, weight, args, options)


@reward_part
def accuracy(completion: JudgedCompletion) -> float:
    """Return the dataset's score of the answer, in [0, 1]."""
    return completion.accuracy


@reward_part
def solved(completion: JudgedCompletion) -> float:
    """Return 1 if the dataset's score is 1, else 0, so that a policy cannot settle for partial credit."""
    return float(completion.accuracy >= 1)


@reward_part
def format(completion: JudgedCompletion, *, thinking: bool = True, prepend_thinking_token: bool = False) -> float:
    """Reward the format: a think block, followed by an answer block, and no other text.

    Each block counts half. The think block must be closed, occur once, and start the completion. The answer block must
    be closed, occur once, and end the completion.

    Args:
        completion: The completion.
        thinking: Whether to expect a think block. If not, the answer block counts 1 and must be the whole completion.
        prepend_thinking_token: Whether the chat template has already written the opening think tag.

    Returns:
        0, 0.5 or 1.
    """
    text = ("<think>" if prepend_thinking_token else "") + completion.text
    text = text.strip()
    answered = _occurs_once(text, "<answer>", "</answer>") and text.endswith("</answer>")
    # A block with a think tag in it is no answer.
    answered = answered and extract_answer(text[text.index("<answer>") :]) is not None
    if not thinking:
        return float(answered and text.startswith("<answer>"))
    thought = _occurs_once(text, "<think>", "</think>") and text.startswith("<think>")
    if thought and answered:
        between = text[text.index("</think>") + len("</think>") : text.index("<answer>")]
        return 1.0 if not between.strip() else 0.5
    return 0.5 * (thought + answered)


@reward_part
def length(completion: JudgedCompletion, *, max_len: int | None = None, buffer: int | None = None) -> float:
    """Penalise long completions with DAPO's soft overlong penalty (arXiv 2503.14476, eq. 13).

    The value is 0 up to `max_len - buffer` tokens and falls linearly to -1 at `max_len`.

    Args:
        completion: The completion.
        max_len: Length in tokens; by default the maximum length of a response.
        buffer: Length in tokens; by default a quarter of `max_len`.

    Returns:
        The penalty, in [-1, 0].

    Raises:
        ConfigError: `max_len` is less than 1, or `buffer` less than 0.
    """
    limit = _limit("length", completion, max_len)
    soft = limit // 4 if buffer is None else buffer
    if soft < 0:
        raise ConfigError(f"reward 'length' has buffer {soft!r}; give a number of tokens from 0 up")
    excess = completion.num_tokens - (limit - soft)
    if excess <= 0:
        return 0.0
    return -1.0 if excess >= soft else -excess / soft


@reward_part
def cosine(
    completion: JudgedCompletion,
    *,
    max_len: int | None = None,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -0.5,
    wrong_long: float = 0.0,
) -> float:
    """Scale the reward with the length of the completion by a cosine (arXiv 2502.03373, sec. 4).

    The reward of right answers (accuracy 1) falls from `right_short` to `right_long`. The reward of all other answers
    rises from `wrong_short` to `wrong_long`.

    Args:
        completion: The completion.
        max_len: Length in tokens after which the reward is constant; by default the maximum length of a response.
        right_short: Reward of a right answer with 0 tokens.
        right_long: Reward of a right answer with `max_len` tokens.
        wrong_short: Reward of a wrong answer with 0 tokens.
        wrong_long: Reward of a wrong answer with `max_len` tokens.

    Returns:
        The reward, in [wrong_short, right_short].

    Raises:
        ConfigError: A wrong answer could earn more than a right one, or `max_len` is less than 1.
    """
    if not wrong_short <= wrong_long <= right_long <= right_short:
        raise ConfigError(
            f"reward 'cosine' has the values {wrong_short}, {wrong_long}, {right_long}, {right_short}; "
            "give wrong_short <= wrong_long <= right_long <= right_short"
        )
    limit = _limit("cosine", completion, max_len)
    progress = min(completion.num_tokens, limit) / limit
    short, long = (right_short, right_long) if completion.accuracy >= 1 else (wrong_short, wrong_long)
    return long + 0.5 * (short - long) * (1 + math.cos(progress * math.pi))


@reward_part
def published_format(completion: JudgedCompletion, *, prepend_thinking_token: bool = False) -> float:
    """Reward the format as the published experiments do (arXiv 2505.24760): both blocks, or nothing.

    The completion must start with a think block, and an answer block must follow the think block. There must be one
    closed block of each kind, without tags in it. Text after the answer block does not count.

    Args:
        completion: The completion.
        prepend_thinking_token: Whether the chat template has already written the opening think tag.

    Returns:
        0 or 1.
    """
    text = ("<think>" if prepend_thinking_token else "") + completion.text
    start = len(text) - len(text.lstrip())
    answer = _ANSWER_AFTER_THOUGHT.search(text, start + len("<think>")) if text.startswith("<think>", start) else None
    if answer is None or text.find("</answer>", answer.end()) < 0:
        return 0.0
    thoughts, answers = _blocks(text, "<think>", "</think>"), _blocks(text, "<answer>", "</answer>")
    if len(thoughts) != 1 or len(answers) != 1:
        return 0.0
    return float(not any(tag in block for tag in ("<think>", "<answer>") for block in thoughts + answers))


@reward_part
def published_length(completion: JudgedCompletion, *, max_chars: int = 1024, right_answers_lose: bool = False) -> float:
    """Pay for long completions as the published experiments do (arXiv 2505.24760), the more the worse the answer.

    The value is `(1 - accuracy) * min(characters / max_chars, 1)`, so a right answer earns 0.

    Args:
        completion: The completion.
        max_chars: Length in characters after which the reward is constant.
        right_answers_lose: Whether a right answer earns `-min(characters / max_chars, 1)`, as in the first two
            experiments that were published.

    Returns:
        The reward, in [0, 1], or in [-1, 1] with `right_answers_lose`.

    Raises:
        ConfigError: `max_chars` is less than 1.
    """
    if max_chars < 1:
        raise ConfigError(f"reward 'published_length' has max_chars {max_chars!r}; give a number from 1 up")
    progress = min(len(completion.text) / max_chars, 1.0)
    if right_answers_lose and completion.accuracy >= 1 - 1e-6:
        return -progress
    return (1 - completion.accuracy) * progress


@reward_part
def published_cosine(completion: JudgedCompletion) -> float:
    """Scale the reward with the length as the published experiments do (arXiv 2505.24760).

    The reward of right answers (accuracy 1) falls from 1 to 0.95 at 1,000 characters. The reward of all other answers
    rises from 0 to 0.7. The cosine is not limited to 1,000 characters, so both swing back and forth beyond that.

    Args:
        completion: The completion.

    Returns:
        The reward, in [0, 1].
    """
    low, high = (0.95, 1.0) if completion.accuracy == 1 else (0.7, 0.0)
    return low + 0.5 * (high - low) * (1 + math.cos(len(completion.text) / 1000 * math.pi))


_ANSWER_AFTER_THOUGHT = re.compile(r"</think>\s*<answer>")


def _blocks(text: str, opening: str, closing: str) -> list[str]:
    """Return the contents of the closed blocks, each from an opening tag to the next closing tag."""
    blocks, position = [], 0
    while (start := text.find(opening, position)) >= 0 and (end := text.find(closing, start + len(opening))) >= 0:
        blocks.append(text[start + len(opening) : end])
        position = end + len(closing)
    return blocks


def _limit(name: str, completion: JudgedCompletion, max_len: int | None) -> int:
    limit = completion.max_tokens if max_len is None else max_len
    if limit < 1:
        raise ConfigError(f"reward {name!r} has max_len {limit!r}; give a number of tokens from 1 up")
    return limit


def _occurs_once(text: str, opening: str, closing: str) -> bool:
    return text.count(opening) == text.count(closing) == 1 and text.index(opening) < text.index(closing)
