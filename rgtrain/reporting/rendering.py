"""Pages of their own: HTML with all it needs inside, in which only our own script can run."""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, *, script: str | None = None, **values: Any) -> str:
    """The page that `template` makes of `values`, all of which are escaped.

    `script` names the file of the page's script. The page's policy forbids every other one and every request, so even
    text that got past the escaping could not run.
    """
    source = (_TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template(template)
        .render(
            # Files of ours: safe by being in the repository.
            style=Markup(style),
            script=Markup(source),
            policy=policy,
            **values,
        )
    )
    # A lone surrogate, which a model may write, has no UTF-8.
    return page.encode("utf-8", "replace").decode()


@functools.cache
def _environment() -> jinja2.Environment:
    """The environment with the compiled templates, which take longer than a page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": lambda share: f"{100 * share:.2f}"}
    return environment


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
