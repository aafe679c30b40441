"""The troubleshooting page quotes messages that the program prints."""

import re

import pytest
from support.prose import ROOT, prose

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# The symptoms are named in code font only if they are keys or metrics.
SECTIONS = ("## Set-up", "## At the start of a run", "## During a run", "## Evaluation and export")
KEY_OR_METRIC = re.compile(r"[\w./]+(?:=\S*)?")


def quoted_messages() -> list[str]:
    """Return the messages in the first column of the page's tables."""
    messages = []
    for section in SECTIONS:
        rows = [line for line in PAGE.partition(section)[2].partition("\n## ")[0].splitlines() if line.startswith("|")]
        for row in rows:
            messages += re.findall(r"`([^`]+)`", row.split("|")[1])
    return [message for message in messages if not KEY_OR_METRIC.fullmatch(message)]


def printed() -> list[str]:
    """Return every text in the program, with one space for each run of blanks or inserted values."""
    sources = [*(ROOT / "rgtrain").rglob("*.py"), *(ROOT / "utils").glob("*.py")]
    texts = [piece for path in sources for _, piece in prose(path)]
    return [" ".join(text.replace("`x`", " ").split()) for text in (*texts, (ROOT / "utils" / "setup.sh").read_text())]


@pytest.fixture(scope="module")
def texts() -> str:
    return "\n".join(printed())


def test_there_are_twenty_messages_and_symptoms():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    assert len(rows) >= 25


@pytest.mark.parametrize("message", quoted_messages())
def test_a_quoted_message_is_printed(message, texts):
    for part in re.split(r"\.\.\.|(?<==)", message):
        words = " ".join(part.strip(" ,=").split())
        assert words in texts, f"{words!r} is in no message"
