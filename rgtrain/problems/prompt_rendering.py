"""Render prompts with a model's chat template, and check that the template keeps every part of them."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from rgtrain.errors import ConfigError

# Values that the rendering sets itself. A template argument of this name would replace them or raise an error.
_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)
# Templates that ask for today's date get this one, so that prompts are equal on every day. It is the date that Llama's
# own template falls back to.
_DATE = date(2024, 7, 26)
_PROBE = {"role": "assistant", "content": "<answer>probe</answer>"}
_SYSTEM_PROBE = "Probe of the system prompt."
_MAX_REASON_CHARS = 200
_MAX_SHOWN_CHARS = 60

Messages = Sequence[Mapping[str, str]]


def check_template_arguments(arguments: Mapping[str, Any], *, key: str) -> None:
    """Check the names of a chat template's arguments.

    Args:
        arguments: The arguments by name.
        key: The configuration key that holds them, for the error message.

    Raises:
        ConfigError: A name is not a text, or is one that the rendering sets itself.
    """
    for name in arguments:
        if not isinstance(name, str):
            raise ConfigError(f"{key} has the name {name!r}; give names of template arguments, such as enable_thinking")
        if name in _RESERVED:
            raise ConfigError(
                f"{key} has {name!r}, which is set by the rendering and is no argument of the template; remove it"
            )


class PromptRenderer:
    """Renders chat messages as token ids with the tokenizer's chat template.

    The first prompt of each dataset is checked. A template must not drop or change the system prompt, a worked example
    or the question, and the prompt must end with the start of the assistant's turn.

    Attributes:
        tokenizer: The tokenizer.
        notes: Facts about the rendering that the user should know, one line each. Rendering a prompt may add to them.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        model: The model's path as the user gave it, for messages.
        arguments: Arguments of the template, such as `{"enable_thinking": False}`. `chat_template` replaces the
            tokenizer's template.
        role_key: The configuration key of the system prompt's role, for messages.
        template_key: The configuration key of a template that replaces the model's, for messages.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        model: str,
        arguments: Mapping[str, Any] | None = None,
        role_key: str = "role",
        template_key: str = "chat_template",
    ):
        self.tokenizer = tokenizer
        self.notes: list[str] = []
        self._model = model
        self._role_key = role_key
        self._other_template = f"give another template as {template_key}"
        self._arguments = dict(arguments or {})
        self._checked: set[str] = set()
        self._is_longer = False
        template = str(self._arguments.get("chat_template") or tokenizer.chat_template)
        for name in self._arguments.keys() - {"chat_template"}:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                self.notes.append(f"the chat template of {model!r} has no argument {name!r}, so it changes nothing")
        if "strftime_now" in template:
            self._arguments.setdefault("strftime_now", self._fixed_date)

    def token_ids(self, messages: Messages, *, dataset: str = "") -> list[int]:
        """Render a prompt.

        Args:
            messages: The chat messages, whose last one is the question.
            dataset: The dataset of the question. The first prompt of each dataset is checked.

        Returns:
            Token ids that end with the start of the assistant's turn.

        Raises:
            ConfigError: The template raises an error, or a part of the prompt is missing.
        """
        if dataset not in self._checked:
            self.check(messages)
            self._checked.add(dataset)
        ids: list[int] = self._render(messages, tokenize=True, return_dict=False)
        stated = getattr(self.tokenizer, "model_max_length", len(ids))
        if len(ids) > stated and not self._is_longer:
            self._is_longer = True
            self.notes.append(
                f"a prompt of {len(ids)} tokens exceeds the model_max_length of {stated} in the tokenizer of "
                f"{self._model!r}; it is not cut, because the model's own limit counts"
            )
        return ids

    def text(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """Render messages as text, without checking it.

        Args:
            messages: The chat messages.
            add_generation_prompt: Whether the text ends with the start of the assistant's turn, as a prompt does.

        Returns:
            The text, with special tokens.

        Raises:
            ConfigError: The template raises an error.
        """
        return self._render(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def check(self, messages: Messages) -> None:
        """Check that a rendered prompt has all its parts: system prompt, examples, question and generation prompt.

        A template may trim white space at the ends of a part, and may put the system prompt into any user turn.

        Args:
            messages: The chat messages, whose last one is the question.

        Raises:
            ConfigError: The template raises an error, drops or changes a part, or adds no generation prompt.
        """
        text = self.text(messages)
        has_system = len(messages) > 1 and messages[0]["role"] not in ("user", "assistant")
        turns = messages[1:] if has_system else messages
        start = end = 0
        for number, turn in enumerate(turns):
            start = text.find(turn["content"].strip(), end)
            if start < 0:
                name = "answer" if turn["role"] == "assistant" else "question"
                example = f" of worked example {number // 2 + 1}" if number < len(turns) - 1 else ""
                raise self._lacks(f"{name}{example}", turn, text)
            end = start + len(turn["content"].strip())
        if has_system and messages[0]["content"].strip() not in text[:start]:
            raise self._lacks("system prompt", messages[0], text[:start])
        if not has_system:
            self._note_own_system_prompt(messages, text[: text.find(messages[0]["content"].strip())])
        self._check_turns(messages, text, start, end)

    def _check_turns(self, messages: Messages, text: str, start: int, end: int) -> None:
        """Check the text around the question, which is `text[start:end]`."""
        try:
            without = self.text(messages, add_generation_prompt=False)
            answered = self.text([*messages, _PROBE], add_generation_prompt=False)
        except ConfigError:
            # The template renders nothing but prompts, so there is no answered turn to compare with.
            return
        added = text[len(without) :].strip() if text.startswith(without) else ""
        if added and text[:start].rstrip().endswith(added):
            raise ConfigError(
                f"the chat template of {self._model!r} writes the question as the assistant's turn, because "
                f"{_shown(added)} precedes the question too; {self._other_template}"
            )
        answer, question = answered.rfind(_PROBE["content"]), text[start:end]
        question_end = answered.rfind(question, 0, max(answer, 0)) + len(question)
        before_answer, tail = answered[question_end:answer].strip(), text[end:].strip()
        if text == without and answer >= question_end >= len(question) and len(before_answer) > len(tail):
            raise ConfigError(
                f"the chat template of {self._model!r} adds no generation prompt, because an answer follows "
                f"{_shown(before_answer)}, but the prompt ends with {_shown(tail)}; {self._other_template}"
            )

    def _note_own_system_prompt(self, messages: Messages, start: str) -> None:
        """Note a system prompt that the template writes by itself before the first turn."""
        try:
            text = self.text([{"role": "system", "content": _SYSTEM_PROBE}, *messages])
        except ConfigError:
            return
        before, probe, rest = text.partition(_SYSTEM_PROBE)
        after = rest[: rest.find(messages[0]["content"].strip())]
        own = start[len(before) : len(start) - len(after)].strip()
        if probe and own and start.startswith(before) and start.endswith(after):
            note = f"the chat template of {self._model!r} writes its own system prompt {_shown(own)} if there is none"
            if note not in self.notes:
                self.notes.append(note)

    def _lacks(self, name: str, message: Mapping[str, str], text: str) -> ConfigError:
        content, role = message["content"].strip(), message["role"]
        fix = self._other_template
        if name == "system prompt":
            fix = f"set {self._role_key} to user, which puts it into the question, or {fix}"
        if name.startswith("answer of worked example") and "</think>" in content:
            fix = f"leave out its thinking, which many templates remove from earlier turns, or {fix}"
        if content in html.unescape(text) or json.dumps(content, ensure_ascii=False)[1:-1] in text:
            fault = f"escapes characters of the {name}"
        else:
            fault = f"drops or changes the {name}"
        return ConfigError(f"the chat template of {self._model!r} {fault}, whose role is {role!r}; {fix}")

    def _render(self, messages: Messages, *, add_generation_prompt: bool = True, **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, **options, **self._arguments
            )
        # A template is a program of the model's author, which may raise anything.
        except Exception as error:
            role = messages[0]["role"]
            fix = self._other_template
            if role != "user":
                fix = f"set {self._role_key} to user, which puts the prompt into the question, or {fix}"
            reason = " ".join(str(error)[:1000].split())[:_MAX_REASON_CHARS] or type(error).__name__
            raise ConfigError(
                f"the chat template of {self._model!r} refuses role {role!r} ({reason}); {fix}"
            ) from error

    def _fixed_date(self, format: str) -> str:
        note = (
            f"the chat template of {self._model!r} writes today's date; prompts get {_DATE} instead, so that they are "
            "equal on every day"
        )
        if note not in self.notes:
            self.notes.append(note)
        return _DATE.strftime(format)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}...")
