"""Render the chat template in a model's folder as text, without transformers, whose import takes seconds.

Importing transformers also reads environment variables, such as HF_HUB_OFFLINE, which a run sets after its checks.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.models.chat_templates import TEMPLATE_FILE, read_template_file

_CONFIG = "tokenizer_config.json"
_MORE_TEMPLATES = "additional_chat_templates"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# transformers marks the assistant's tokens by these tags, which write nothing.
_MARKS = re.compile(r"(\{%-?\s*)(end)?generation(\s*-?%\})")


class TemplateOnlyTokenizer:
    """The part of a Hugging Face tokenizer that renders chat messages as text.

    Attributes:
        chat_template: The template, or templates by name; None if the folder has none.
    """

    def __init__(self, folder: Path):
        config = _read_config(folder / _CONFIG)
        self.chat_template: str | dict[str, str] | None = config.get("chat_template")
        if isinstance(self.chat_template, list):
            self.chat_template = {item["name"]: item["template"] for item in self.chat_template}
        files = {path.stem: path for path in sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))}
        if (folder / TEMPLATE_FILE).is_file():
            files["default"] = folder / TEMPLATE_FILE
        if files:
            named = {name: read_template_file(path) for name, path in files.items()}
            self.chat_template = named["default"] if named.keys() == {"default"} else named
        tokens = {name: config.get(name) for name in _SPECIAL_TOKENS}
        self._tokens = {
            name: token["content"] if isinstance(token, Mapping) else token for name, token in tokens.items() if token
        }

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        chat_template: str,
        add_generation_prompt: bool,
        tokenize: bool,
        **arguments: Any,
    ) -> str:
        """Render messages as transformers does.

        Args:
            messages: The chat messages.
            chat_template: The text of the template.
            add_generation_prompt: Whether the text ends with the start of the assistant's turn.
            tokenize: Must be False.
            arguments: Arguments of the template.

        Returns:
            The text.

        Raises:
            TemplateError: The template raises an error.
            ValueError: Token ids are asked for.
        """
        if tokenize:
            raise ValueError("only texts can be rendered without a tokenizer")
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _as_json
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        template = environment.from_string(_MARKS.sub(_without_mark, chat_template))
        values = {"tools": None, "documents": None, **self._tokens, **arguments}
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **values)


def _without_mark(mark: re.Match[str]) -> str:
    # This strips white space as the mark does, and may stand in a comment as marks do.
    return f"{mark[1]}{'endif' if mark[2] else 'if true'}{mark[3]}"


def _as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error}); restore it or give another model") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{str(path)!r} holds no JSON object; restore it or give another model")
    return content
