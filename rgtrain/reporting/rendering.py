"""Render self-contained HTML pages in which only our own script can run."""

import base64
import functools
import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rgtrain.tables import percent

_TEMPLATES = Path(__file__).with_name("templates")
# Functions that the scripts of all pages share.
_COMMON_SCRIPT = "common.js"


def render(template: str, *, script: str | None = None, **values: Any) -> str:
    """Render a page. All values are escaped.

    The page's Content-Security-Policy forbids all other scripts and all requests, so text that got past the escaping
    could not run.

    Args:
        template: The file name of the template.
        script: The file name of the page's script, which may use the functions of common.js; None for a page without
            one.
        values: The values for the template.

    Returns:
        The HTML.
    """
    files = (_COMMON_SCRIPT, script) if script else ()
    source = "".join((_TEMPLATES / file).read_text(encoding="utf-8") for file in files)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template(template)
        .render(
            # These files belong to the repository, so they need no escaping.
            style=Markup(style),
            script=Markup(source),
            policy=policy,
            **values,
        )
    )
    # A model may write lone surrogates, which UTF-8 cannot encode.
    return page.encode("utf-8", "replace").decode()


def packed(content: bytes) -> str:
    """Return data for a page: compressed, and in base64 so that no browser takes a model's text for markup.

    Args:
        content: The data, which the function `unpacked` of common.js returns.
    """
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


@functools.cache
def _environment() -> jinja2.Environment:
    """Return the environment, cached because compiling the templates takes longer than rendering a page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "range": _range}
    return environment


def _range(interval: Sequence[float] | None) -> str:
    """Return a confidence interval in percent."""
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
