"""Turn a question into chat messages and token ids, in the same way for training and evaluation."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reasoning_gym.factory import DATASETS
from reasoning_gym.utils import SYSTEM_PROMPTS

from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.mixture import MAX_SPLIT_SIZE, DatasetSpec, Problem, ProblemSource, Split, spec_of_split
from rgtrain.problems.plugins import FUNCTION_FORM, PLUGIN_PREFIX, load_plugin
from rgtrain.problems.question_sources import OWN_MESSAGES, SOURCES

ROLES = ("system", "developer", "user")
_MAX_REASON_CHARS = 200


@dataclass(frozen=True)
class PromptedQuestion:
    """The argument of a prompt function: a problem without its answer and without fields that may reveal it.

    Attributes:
        question: The question.
        dataset: The dataset's name in the mixture.
        level: The level in the dataset's curriculum, from 0; None without a curriculum and in evaluations.
        params: The dataset's parameters in the mixture, which are those of the level with a curriculum.
        difficulty: The entry's `metadata["difficulty"]`; empty if the dataset writes none.
        public: The entry's `metadata["public"]`, in which your own dataset may put further fields for prompts.
    """

    question: str
    dataset: str
    level: int | None
    params: Mapping[str, Any]
    difficulty: Mapping[str, Any]
    public: Mapping[str, Any]

    @classmethod
    def of(cls, problem: Problem) -> "PromptedQuestion":
        """Return the fields of a problem that a prompt may show, as copies."""
        metadata = problem.entry.get("metadata") or {}
        params, difficulty, public = (
            copy.deepcopy(value) if isinstance(value := metadata.get(name), Mapping) else {}
            for name in ("source_params", "difficulty", "public")
        )
        return cls(problem.question, problem.dataset, problem.level, params, difficulty, public)


@dataclass(frozen=True)
class WorkedExample:
    """A worked example of the user's own list: a question, its answer, and the thinking that leads to it."""

    question: str
    answer: str
    thinking: str | None = None


@dataclass(frozen=True)
class PromptStyle:
    """The style of a prompt.

    Attributes:
        system_prompt: A name from Reasoning Gym's SYSTEM_PROMPTS, a literal text, None, or a function as
            `pkg://package.module.name`. A text is recognised by white space or by a character outside of ASCII. The
            function gets a PromptedQuestion. It returns the system prompt, or the messages of the whole prompt, whose
            last one is the user's.
        role: The role of the system prompt, "system" or "developer". With "user" it becomes part of the first user
            message, for templates without a system role.
        num_examples: Number of worked examples of the same dataset that precede the question as earlier turns.
        examples_seed: Seed of the examples. Their range of Reasoning Gym seeds is separate from all other splits.
        examples: The user's own worked examples, which precede those of the dataset.
        examples_until_step: The last training step whose prompts have the worked examples; None for all steps. If it
            is given, validation and evaluations have none.

    Raises:
        ConfigError: A value cannot be used.
    """

    system_prompt: str | None = "DeepSeekZero"
    role: str = "system"
    num_examples: int = 0
    examples_seed: int = 0
    examples: tuple[WorkedExample, ...] = ()
    examples_until_step: int | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError(f"unknown prompt role {self.role!r}; {choose_from(self.role, ROLES)}")
        if isinstance(self.num_examples, bool) or not isinstance(self.num_examples, int) or self.num_examples < 0:
            raise ConfigError(f"num_examples is {self.num_examples!r}; give a whole number from 0 up")
        Split.EXAMPLES.base_seed(self.examples_seed)
        if self.examples_until_step is not None and not self.num_examples and not self.examples:
            raise ConfigError(
                f"examples_until_step is {self.examples_until_step}, but the prompt has no worked examples; set "
                "num_examples or examples, or leave it out"
            )
        if self.function() is None:
            self.text()

    @property
    def final(self) -> "PromptStyle":
        """The style that remains after `examples_until_step`, which validation and evaluations have."""
        if self.examples_until_step is None:
            return self
        return replace(self, num_examples=0, examples=(), examples_until_step=None)

    def text(self) -> str | None:
        """Return the text of the system prompt, the same for all problems.

        Returns:
            The text, or None without a system prompt.

        Raises:
            ConfigError: It is a single word that is not a known name, a file, or a function.
        """
        prompt = self.system_prompt
        if not isinstance(prompt, str | None):
            raise ConfigError(f"the system prompt is {prompt!r}; give a name, a literal text or null")
        if prompt is None or prompt in SYSTEM_PROMPTS:
            return SYSTEM_PROMPTS.get(prompt)
        if prompt.startswith(PLUGIN_PREFIX):
            raise ConfigError(
                f"the system prompt is the function {prompt!r}, which needs a problem of a dataset; give a name or a "
                "literal text"
            )
        if prompt.startswith("file://"):
            raise ConfigError(f"the system prompt is the file {prompt!r}; give its text here")
        if not prompt.strip() or (prompt.isascii() and len(prompt.split()) == 1):
            raise ConfigError(
                f"unknown system prompt {prompt!r}; {choose_from(prompt, SYSTEM_PROMPTS)}, or give a literal text, "
                f"file://PATH or {FUNCTION_FORM}"
            )
        return prompt

    def function(self) -> Callable[[PromptedQuestion], Any] | None:
        """Return the function that makes the prompt; None for a system prompt that is the same for all problems.

        Raises:
            ConfigError: It cannot be imported, or is no function.
        """
        prompt = self.system_prompt
        if not isinstance(prompt, str) or not prompt.startswith(PLUGIN_PREFIX):
            return None
        function = load_plugin(prompt, kind="prompt function")
        if not callable(function) or isinstance(function, type):
            raise ConfigError(
                f"the prompt function {prompt!r} is a {type(function).__name__}; name a function of a PromptedQuestion"
            )
        return function


def parse_prompt(raw: Mapping[str, Any]) -> PromptStyle:
    """Parse the prompt style of a configuration.

    Args:
        raw: Values of `PromptStyle` by name. A role of None is "system". `examples` are mappings, or None for none.

    Returns:
        The style.

    Raises:
        ConfigError: A key is unknown or a value cannot be used.
    """
    allowed = set(PromptStyle.__dataclass_fields__)
    for key in raw:
        if key not in allowed:
            raise ConfigError(f"unknown prompt key {key!r}; {choose_from(key, allowed)}")
    role = "system" if raw.get("role") is None else raw["role"]
    return PromptStyle(**{**raw, "role": role, "examples": parse_examples(raw.get("examples"))})


def parse_examples(raw: Any) -> tuple[WorkedExample, ...]:
    """Parse the user's own worked examples.

    Args:
        raw: A list of `{question: TEXT, answer: TEXT}`, with `thinking: TEXT` if the answer is preceded by it, or None.

    Returns:
        The examples.

    Raises:
        ConfigError: The form is different, or two examples have the same question.
    """
    form = "write a mapping with the texts question, answer and, if you want, thinking"
    if raw is None:
        return ()
    if not isinstance(raw, list | tuple):
        raise ConfigError(f"the worked examples are {raw!r:.80}; give a JSONL file or a list, and in it {form}")
    examples = []
    for number, example in enumerate(raw, start=1):
        if not isinstance(example, Mapping):
            raise ConfigError(f"worked example {number} is {example!r:.80}; {form}")
        if unknown := sorted(map(str, {*example} - {"question", "answer", "thinking"})):
            raise ConfigError(f"worked example {number} has the unknown key {unknown[0]!r}; {form}")
        if missing := sorted({"question", "answer"} - {*example}):
            raise ConfigError(f"worked example {number} lacks {missing[0]!r}; {form}")
        for key, value in example.items():
            if (key, value) != ("thinking", None) and not (isinstance(value, str) and value.strip()):
                advice = "put it in quotes" if isinstance(value, bool | int | float) else "give a text"
                raise ConfigError(f"worked example {number} has {key} {value!r:.80}; {advice}")
        examples.append(WorkedExample(**example))
    questions = [" ".join(example.question.split()) for example in examples]
    for number, question in enumerate(questions, start=1):
        if (first := questions.index(question) + 1) < number:
            raise ConfigError(f"worked examples {first} and {number} have the same question; remove one of them")
    return tuple(examples)


class PromptBuilder:
    """Builds chat messages in one style and caches the worked examples of each dataset."""

    def __init__(self, style: PromptStyle):
        self.style = style
        self._function = style.function()
        self._examples: dict[str, list[Problem]] = {}

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """Return the chat messages for `problem`; the last one is the question.

        Raises:
            ConfigError: The prompt function raises an error or returns no prompt.
        """
        if own := problem.entry.get("metadata", {}).get(OWN_MESSAGES):
            return with_system_role(own, self.style.role)
        examples = self.examples(problem)
        if self._function is None:
            return build_messages(problem.question, self.style, examples=examples)
        prompt = _called(self._function, problem, name=self.style.system_prompt)
        if isinstance(prompt, str):
            system, turns = [{"role": "system", "content": prompt}], [{"role": "user", "content": problem.question}]
        else:
            num_system = int(prompt[0]["role"] != "user")
            system, turns = prompt[:num_system], prompt[num_system:]
        return _with_examples(system, examples, turns, role=self.style.role)

    def examples(self, problem: Problem) -> list[Problem]:
        """Return the worked examples for `problem`: the user's own, then those of its dataset and parameters."""
        has_none = not self.style.num_examples and not self.style.examples
        if has_none or OWN_MESSAGES in problem.entry["metadata"]:
            return []
        params = problem.entry["metadata"].get("source_params", {})
        spec = problem.spec or DatasetSpec(problem.dataset, params=params)
        key = f"{spec.name} {sorted(spec.params.items())!r}"
        if key not in self._examples:
            self._examples[key] = worked_examples(spec, self.style)
        return self._examples[key]


def own_examples(spec: DatasetSpec, style: PromptStyle) -> list[Problem]:
    """Return the user's own worked examples as problems of a dataset, so that no problem with their content is used."""
    return [
        Problem(spec.name, 0, number, one.question, {"answer": one.answer, "thinking": one.thinking}, spec=spec)
        for number, one in enumerate(style.examples)
    ]


def _called(function: Callable[[PromptedQuestion], Any], problem: Problem, *, name: str | None) -> Any:
    """Return the text or the messages that a prompt function returns, after checking them."""
    try:
        prompt = function(PromptedQuestion.of(problem))
    # The function is the user's and may raise anything.
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_REASON_CHARS]
        raise ConfigError(
            f"the prompt function {name!r} fails for a problem of dataset {problem.dataset!r} ({reason}); it gets one "
            f"argument with the fields {', '.join(PromptedQuestion.__dataclass_fields__)}"
        ) from error
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    fault = _fault_in_messages(prompt)
    if fault is None:
        return [dict(message) for message in prompt]
    if hasattr(prompt, "__await__"):
        prompt.close()
    raise ConfigError(
        f"the prompt function {name!r} returned {fault} for a problem of dataset {problem.dataset!r}; return "
        "the text of the system prompt, or a list of messages with role and content, whose roles are system (if you "
        "want), user, assistant, ..., user"
    )


def _fault_in_messages(prompt: Any) -> str | None:
    """Describe why a value is no list of chat messages that ends with the user's; None if it is one."""
    if not isinstance(prompt, list | tuple) or not prompt:
        return "an empty text" if isinstance(prompt, str) else f"{prompt!r:.80}"
    for message in prompt:
        if not isinstance(message, Mapping) or {*message} != {"role", "content"}:
            return f"the message {message!r:.80}"
        if not isinstance(message["content"], str) or not message["content"].strip():
            return f"a message with the content {message['content']!r:.80}"
    roles = [message["role"] for message in prompt]
    turns = roles[1:] if roles[0] == "system" else roles
    # Many templates refuse other orders.
    if turns != ["assistant" if number % 2 else "user" for number in range(len(turns))] or not len(turns) % 2:
        return f"messages with the roles {roles!r:.80}"
    return None


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


# A start needs the worked examples of a dataset several times, for its checks and for the trainer.
_MADE: dict[tuple[type, str], list[Problem]] = {}


def worked_examples(spec: DatasetSpec, style: PromptStyle) -> list[Problem]:
    """Make the worked examples that precede every question of a dataset: the user's own, then those of the dataset.

    Args:
        spec: The dataset and its parameters.
        style: Its `examples`, `num_examples` and `examples_seed` are used.

    Returns:
        Problems with distinct questions and a known answer. None of a dataset that writes its own prompts.

    Raises:
        ConfigError: The dataset has too few such problems.
    """
    own = own_examples(spec, style)
    if not style.num_examples:
        return own
    if spec.generator in SOURCES:
        # A source may read a file, which can change.
        made = _made_examples(spec, style)
    else:
        key = DATASETS[spec.generator][0], repr((spec, style.num_examples, style.examples_seed))
        if key not in _MADE:
            _MADE[key] = _made_examples(spec, style)
        made = _MADE[key]
    # Datasets that write their own prompts have none.
    return [*own, *made] if made else []


def _made_examples(spec: DatasetSpec, style: PromptStyle) -> list[Problem]:
    seed = Split.EXAMPLES.base_seed(style.examples_seed)
    source = ProblemSource(spec_of_split(spec, Split.EXAMPLES), seed=seed)
    found: dict[str, Problem] = {}
    for index in range(min(50 * style.num_examples, MAX_SPLIT_SIZE)):
        problem = source[index]
        if OWN_MESSAGES in problem.entry["metadata"]:
            return []
        if problem.entry.get("answer") is not None:
            found.setdefault(problem.fingerprint, problem)
        if len(found) == style.num_examples:
            return list(found.values())
    raise ConfigError(
        f"dataset {spec.name!r} has only {len(found)} of {style.num_examples} worked examples; "
        f"set num_examples to at most {len(found)}"
    )


def sample_messages(style: PromptStyle) -> list[dict[str, str]]:
    """Build the chat messages of a prompt with an invented question and example, to try a chat template with.

    Args:
        style: The style.

    Returns:
        The messages.

    Raises:
        ConfigError: A function makes the prompt, which needs a real problem.
    """
    example = Problem("example", 0, 0, "What is 17 + 25?", {"answer": "42"})
    # Characters and line breaks that a template might escape or remove.
    question = 'Is 31 < 58 & 58 > 31?\n\nAnswer "yes" or "no".'
    examples = [*own_examples(DatasetSpec("example"), style), *([example] if style.num_examples else [])]
    return build_messages(question, style, examples=examples)


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
    return _with_examples(
        [] if system is None else [{"role": "system", "content": system}],
        examples,
        [{"role": "user", "content": question}],
        role=style.role,
    )


def _with_examples(
    system: list[dict[str, str]], examples: Sequence[Problem], turns: list[dict[str, str]], *, role: str
) -> list[dict[str, str]]:
    """Return the messages of a prompt, with the worked examples as turns between the system prompt and the others."""
    messages = list(system)
    for example in examples:
        messages.append({"role": "user", "content": example.question})
        messages.append({"role": "assistant", "content": worked_answer(example.entry)})
    return with_system_role([*messages, *turns], role)


def worked_answer(entry: Mapping[str, Any]) -> str:
    """Return the given answer of an entry in the trained format, with its thinking if it has any.

    >>> worked_answer({"answer": 4})
    '<answer>4</answer>'
    """
    answer = f"<answer>{entry['answer']}</answer>"
    if thinking := entry.get("thinking"):
        # In this form, templates that write think blocks anew change nothing.
        answer = f"<think>\n{thinking.strip()}\n</think>\n\n{answer}"
    return answer
