"""Turn a question into chat messages and token ids, in the same way for training and evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasoning_gym.utils import SYSTEM_PROMPTS

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.mixture import MAX_SPLIT_SIZE, DatasetSpec, Problem, ProblemSource, Split, spec_of_split

ROLES = ("system", "developer", "user")


@dataclass(frozen=True)
class PromptStyle:
    """The style of a prompt.

    Attributes:
        system_prompt: A name from Reasoning Gym's SYSTEM_PROMPTS, a literal text (recognised by a space), or None.
        role: The role of the system prompt, "system" or "developer". With "user" it becomes part of the first user
            message, for templates without a system role.
        num_examples: Number of worked examples of the same dataset that precede the question as earlier turns.
        examples_seed: Seed of the examples. Their range of Reasoning Gym seeds is separate from all other splits.

    Raises:
        ConfigError: A value cannot be used.
    """

    system_prompt: str | None = "DeepSeekZero"
    role: str = "system"
    num_examples: int = 0
    examples_seed: int = 0

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError(f"unknown prompt role {self.role!r}; {choose_from(self.role, ROLES)}")
        if isinstance(self.num_examples, bool) or not isinstance(self.num_examples, int) or self.num_examples < 0:
            raise ConfigError(f"num_examples is {self.num_examples!r}; give a whole number from 0 up")
        Split.EXAMPLES.base_seed(self.examples_seed)
        self.text()

    def text(self) -> str | None:
        """Return the text of the system prompt. Raises ConfigError for a single word that is not a known name."""
        prompt = self.system_prompt
        if not isinstance(prompt, str | None):
            raise ConfigError(f"the system prompt is {prompt!r}; give a name, a literal text or null")
        if prompt is None or prompt in SYSTEM_PROMPTS:
            return SYSTEM_PROMPTS.get(prompt)
        if not prompt.strip() or " " not in prompt.strip():
            raise ConfigError(
                f"unknown system prompt {prompt!r}; {choose_from(prompt, SYSTEM_PROMPTS)}, or give a literal text"
            )
        return prompt


def parse_prompt(raw: Mapping[str, Any]) -> PromptStyle:
    """Parse the prompt style of a configuration.

    Args:
        raw: Values of `PromptStyle` by name.

    Returns:
        The style.

    Raises:
        ConfigError: A key is unknown or a value cannot be used.
    """
    allowed = set(PromptStyle.__dataclass_fields__)
    for key in raw:
        if key not in allowed:
            raise ConfigError(f"unknown prompt key {key!r}; {choose_from(key, allowed)}")
    return PromptStyle(**raw)


class PromptBuilder:
    """Builds chat messages in one style and caches the worked examples of each dataset."""

    def __init__(self, style: PromptStyle):
        self.style = style
        self._examples: dict[str, list[Problem]] = {}

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """Return the chat messages for `problem`; the last one is the question."""
        return build_messages(problem.question, self.style, examples=self.examples(problem))

    def examples(self, problem: Problem) -> list[Problem]:
        """Return the worked examples for `problem`, which have the same dataset and parameters."""
        if not self.style.num_examples:
            return []
        params = problem.entry["metadata"].get("source_params", {})
        spec = problem.spec or DatasetSpec(problem.dataset, params=params)
        key = f"{spec.name} {sorted(spec.params.items())!r}"
        if key not in self._examples:
            self._examples[key] = worked_examples(spec, self.style)
        return self._examples[key]


def with_system_role(messages: Sequence[Mapping[str, str]], role: str) -> list[dict[str, str]]:
    """Give the system prompt of chat messages another role.

    Args:
        messages: Messages whose first one may have the role "system".
        role: One of ROLES. With "user", the system prompt becomes part of the next message.

    Returns:
        The messages.
    """
    first, *others = [dict(message) for message in messages]
    if first["role"] != "system" or role == "system":
        return [first, *others]
    if role == "user" and others:
        others[0]["content"] = f"{first['content']}\n\n{others[0]['content']}"
        return others
    return [{**first, "role": role}, *others]


def worked_examples(spec: DatasetSpec, style: PromptStyle) -> list[Problem]:
    """Make the worked examples that precede every question of a dataset.

    Args:
        spec: The dataset and its parameters.
        style: Its `num_examples` and `examples_seed` are used.

    Returns:
        Problems with distinct questions and a known answer.

    Raises:
        ConfigError: The dataset has too few such problems.
    """
    if not style.num_examples:
        return []
    seed = Split.EXAMPLES.base_seed(style.examples_seed)
    source = ProblemSource(spec_of_split(spec, Split.EXAMPLES), seed=seed)
    found: dict[str, Problem] = {}
    for index in range(min(50 * style.num_examples, MAX_SPLIT_SIZE)):
        problem = source[index]
        if problem.entry.get("answer") is not None:
            found.setdefault(problem.fingerprint, problem)
        if len(found) == style.num_examples:
            return list(found.values())
    raise ConfigError(
        f"dataset {spec.name!r} has only {len(found)} of {style.num_examples} worked examples; "
        f"set num_examples to at most {len(found)}"
    )


def sample_messages(style: PromptStyle) -> list[dict[str, str]]:
    """Build the chat messages of a prompt with an invented question and example, to try a chat template with."""
    example = Problem("example", 0, 0, "What is 17 + 25?", {"answer": "42"})
    # Characters and line breaks that a template might escape or remove.
    question = 'Is 31 < 58 & 58 > 31?\n\nAnswer "yes" or "no".'
    return build_messages(question, style, examples=[example] if style.num_examples else [])


def build_messages(question: str, style: PromptStyle, *, examples: Sequence[Problem] = ()) -> list[dict[str, str]]:
    """Build the chat messages of a prompt.

    Args:
        question: The question.
        style: The style.
        examples: Worked examples, which become earlier turns.

    Returns:
        The system prompt, the examples and the question, as messages with `role` and `content`.
    """
    system = style.text()
    messages = [] if system is None else [{"role": "system", "content": system}]
    for example in examples:
        messages.append({"role": "user", "content": example.question})
        messages.append({"role": "assistant", "content": f"<answer>{example.entry['answer']}</answer>"})
    messages.append({"role": "user", "content": question})
    return with_system_role(messages, style.role)
