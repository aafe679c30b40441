"""Links of the tracked Markdown files: python tests/support/links.py [FILE ...] prints those that lead nowhere.

A relative link has to name a tracked file or a folder that holds one, and its anchor a heading of that file. Addresses
of other sites are not visited.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
# A link or an image whose text holds no other one; a target may hold one pair of parentheses.
_LINK = re.compile(r"!?\[[^\[\]]*\]\(\s*<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)?)>?(?:\s+[\"'(][^)]*)?\)")
_DEFINITION = re.compile(r"^ {0,3}\[[^\]^]+\]:\s*<?(\S+?)>?(?:\s+[\"'(].*)?$")
_HTML = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=[\"']([^\"']+)[\"']")
_HTML_ANCHOR = re.compile(r"<[a-z]+\b[^>]*?\b(?:id|name)=[\"']([^\"']+)[\"']")
_OTHER_SITE = re.compile(r"(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


class Link(NamedTuple):
    """A link in a Markdown file of the tree that starts at `root`."""

    path: Path
    line: int
    target: str


def tracked_files(root: Path = ROOT) -> set[Path]:
    """Return every tracked file below `root`, and new files that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return {root / name for name in listed.split("\0") if name and (root / name).exists()}


def links(path: Path) -> Iterator[Link]:
    """Yield the links, images and link definitions of a Markdown file, except those in code."""
    for number, line in _lines_without_code(path):
        # A link's text may hold an image: the inner ones come first and leave their place.
        while match := _LINK.search(line):
            yield Link(path, number, match[1])
            line = f"{line[: match.start()]}image{line[match.end() :]}"
        for pattern in (_DEFINITION, _HTML):
            yield from (Link(path, number, match[1]) for match in pattern.finditer(line))


def anchors(path: Path) -> set[str]:
    """Return the anchors that a code host makes of a Markdown file's headings, and those of its HTML tags."""
    found: set[str] = set()
    previous = ""
    for _, line in _lines_without_code(path, inline=False):
        heading = re.match(r" {0,3}#{1,6}\s+(.*?)(?:\s+#+)?\s*$", line)
        # A line under which a line of `=` or `-` stands is a heading, too.
        text = heading[1] if heading else previous if re.fullmatch(r" {0,3}(?:=+|-{2,})\s*", line) else ""
        if text and not text.lstrip().startswith("|"):
            found.add(_unused(slug(text), found))
        found |= set(_HTML_ANCHOR.findall(line))
        previous = line.strip()
    return found


def slug(heading: str) -> str:
    """Return the anchor of a heading: its words in lower case, joined by hyphens, without markup and punctuation.

    >>> slug("Exit `codes`, and [reasons](a.md)")
    'exit-codes-and-reasons'
    """
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"<[^>]*>|[*`]", "", text)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def broken(path: Path, tracked: set[Path], *, root: Path = ROOT) -> Iterator[str]:
    """Yield a message for each link of a Markdown file that leads nowhere.

    Args:
        path: The Markdown file.
        tracked: All files that a link may lead to.
        root: The folder of the tree, which links that start with a slash start from.
    """
    for link in links(path):
        if _OTHER_SITE.match(link.target):
            continue
        fault = _fault(link, tracked, root)
        if fault:
            yield f"{path.relative_to(root)}:{link.line}: {link.target}: {fault}"


def _fault(link: Link, tracked: set[Path], root: Path) -> str | None:
    name, _, anchor = unquote(link.target).partition("#")
    base = root if name.startswith("/") else link.path.parent
    # Path.resolve would follow symbolic links, which git tracks as files.
    target = Path(_normal(base / name.lstrip("/"))) if name else link.path
    if target in tracked:
        return _anchor_fault(target, anchor) if anchor else None
    if any(file.is_relative_to(target) for file in tracked):
        return "a folder has no anchors" if anchor else None
    return "exists, but git does not track it" if target.exists() else "no such file"


def _anchor_fault(target: Path, anchor: str) -> str | None:
    if target.suffix == ".md":
        return None if anchor in _anchors_of(target) else f"{target.name} has no heading with this anchor"
    lines = re.fullmatch(r"L(\d+)(?:-L?(\d+))?", anchor)
    if lines is None:
        return f"{target.name} is no Markdown; only #L10 or #L10-L20 can follow"
    last = int(lines[2] or lines[1])
    count = len(target.read_text(encoding="utf-8").splitlines())
    return None if last <= count else f"{target.name} has {count} lines"


@cache
def _anchors_of(path: Path) -> set[str]:
    return anchors(path)


def _lines_without_code(path: Path, *, inline: bool = True) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines outside fenced code, without inline code if `inline`."""
    fence = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        marker = re.match(r"\s*(`{3,}|~{3,})", line)
        if fence:
            if marker and marker[1].startswith(fence) and line.strip() == marker[1]:
                fence = ""
            continue
        if marker:
            fence = marker[1]
            continue
        # A link's text may be code, so its words stay. Brackets in code make no link.
        yield number, re.sub(r"(`+)(.+?)\1", lambda m: re.sub(r"[\[\]()<>]", "", m[2]), line) if inline else line


def _unused(name: str, used: set[str]) -> str:
    if name not in used:
        return name
    return next(f"{name}-{i}" for i in range(1, len(used) + 2) if f"{name}-{i}" not in used)


def _normal(path: Path) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return str(Path(*parts))


def main() -> None:
    """Print every broken link; the exit code is 1 if there is any."""
    tracked = tracked_files()
    paths = [Path(name).absolute() for name in sys.argv[1:]] or sorted(f for f in tracked if f.suffix == ".md")
    found = [message for path in paths for message in broken(path, tracked)]
    print("".join(f"{message}\n" for message in found), end="")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
