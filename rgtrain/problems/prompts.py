"""From a question to the chat messages and token ids a model sees: one road for training and evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasoning_gym.utils import SYSTEM_PROMPTS

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.mixture import MAX_SPLIT_SIZE, DatasetSpec, Problem, ProblemSource, Split

ROLES = ("system", "developer", "user")


@dataclass(frozen=True)
class PromptStyle:
    """How questions are put to the model.

    system_prompt: a name from Reasoning Gym's SYSTEM_PROMPTS, or a literal text (it has a space); None for none.
    role: who says it: "system", "developer", or "user" to fold it into the question, for templates without a
        system role.
    num_examples: worked examples of the same dataset as earlier turns, for models that don't know the format yet.
    examples_seed: draws the examples, from a range of seeds that no training or held-out problem comes from.
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
        """The system prompt's text. Raises ConfigError for a single word that names none."""
        prompt = self.system_prompt
        if not isinstance(prompt, str | None):
            raise ConfigError(f"the system prompt is {prompt!r}; give a name, a literal text or null for none")
        if prompt is None or prompt in SYSTEM_PROMPTS:
            return SYSTEM_PROMPTS.get(prompt)
        if not prompt.strip() or " " not in prompt.strip():
            raise ConfigError(
                f"unknown system prompt {prompt!r}; {choose_from(prompt, SYSTEM_PROMPTS)}, or give a literal text"
            )
        return prompt


def parse_prompt(raw: Mapping[str, Any]) -> PromptStyle:
    """The style from the configuration's mapping. Raises ConfigError on unknown keys or values."""
    allowed = set(PromptStyle.__dataclass_fields__)
    for key in raw:
        if key not in allowed:
            raise ConfigError(f"unknown prompt key {key!r}; {choose_from(key, allowed)}")
    return PromptStyle(**raw)


class PromptBuilder:
    """Builds chat messages in one style, with the worked examples of each dataset made once."""

    def __init__(self, style: PromptStyle):
        self.style = style
        self._examples: dict[str, list[Problem]] = {}

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The chat messages for `problem`; the last one is the user's question."""
        return build_messages(problem.question, self.style, examples=self.examples(problem))

    def examples(self, problem: Problem) -> list[Problem]:
        """`num_examples` problems of the same dataset and parameters with different questions and an answer."""
        if not self.style.num_examples:
            return []
        spec = DatasetSpec(problem.dataset, params=problem.entry["metadata"].get("source_params", {}))
        key = f"{spec.name} {sorted(spec.params.items())!r}"
        if key not in self._examples:
            self._examples[key] = worked_examples(spec, self.style)
        return self._examples[key]


def worked_examples(spec: DatasetSpec, style: PromptStyle) -> list[Problem]:
    """The examples shown before every question of `spec`. Raises ConfigError where the dataset has too few."""
    if not style.num_examples:
        return []
    source = ProblemSource(spec, seed=Split.EXAMPLES.base_seed(style.examples_seed))
    found: dict[str, Problem] = {}
    for index in range(min(50 * style.num_examples, MAX_SPLIT_SIZE)):
        problem = source[index]
        if problem.entry.get("answer") is not None:
            found.setdefault(problem.fingerprint, problem)
        if len(found) == style.num_examples:
            return list(found.values())
    raise ConfigError(
        f"dataset {spec.name!r} gave {len(found)} worked examples of the {style.num_examples} asked for: "
        f"set num_examples to at most {len(found)}"
    )


def build_messages(question: str, style: PromptStyle, *, examples: Sequence[Problem] = ()) -> list[dict[str, str]]:
    """System prompt, worked examples as earlier turns, then the question, in `style`."""
    system = style.text()
    folded = system is not None and style.role == "user"
    messages = [] if system is None or folded else [{"role": style.role, "content": system}]
    for example in examples:
        messages.append({"role": "user", "content": example.question})
        messages.append({"role": "assistant", "content": f"<answer>{example.entry['answer']}</answer>"})
    messages.append({"role": "user", "content": question})
    if folded:
        messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
    return messages


def render_prompt(messages: Sequence[Mapping[str, str]], tokenizer: Any, **template_kwargs: Any) -> list[int]:
    """Token ids of `messages` under the tokenizer's chat template, ready for the assistant's turn."""
    return tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **template_kwargs
    )
