"""Find sentences that break a checkable rule of plain English: `python tests/support/prose.py [FILE ...]`.

Prose means docstrings, comments, test names and longer string literals in Python, comments in YAML and shell, and
Markdown without its code blocks. Words in backquotes are code.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_UNITS = (
    "second|minute|hour|step|dataset|group|sample|answer|token|rank|gpu|core|line|worker|process|problem|prompt|batch"
    "|seed|level|file|folder|run|request|sequence|layer|card|node|side|response|repeat|micro-batch"
)
# Only a count followed by `a UNIT` is a rate. `a second of silence` and `as a group` are not.
_COUNTED = (
    rf"(?:{_UNITS}|time|byte|call|copy|copie|completion|kernel|message|question|word|character|process|pass|batch)e?s"
)
_RATE = (
    r"(?i)\b(?:\d[\d,.]*(?: [a-z/-]+)?|once|twice|"
    rf"{_COUNTED}) an? (?:{_UNITS})(?=[.,;:)|]|$)"
)
# Each rule has a pattern, which is matched with each sentence, list item and table cell, and a piece of advice.
RULES = {
    "where": (
        r"(?i)\bwhere\b(?! to\b)",
        'use "if" or "when" for a condition, a relative clause or "in which" for a place',
    ),
    "what": (r"(?i)\bwhat(?:ever)?\b(?! to\b)(?![^.?]*\?)", "name the thing instead of a noun phrase with `what`"),
    "nobody": (r"(?i)\bnobody\b", 'use "no" or "without"'),
    "tell": (r"(?i)\b(?:tells?|told|telling)\b", 'use "report", "say" or "show"'),
    "per": (_RATE, 'use "per" for a rate'),
    "that of": (r"^(?:That|Those) of\b", "name the thing"),
    "of its own": (r"(?i)\bof (?:its|their|his|our|your) own\b", 'use "own", "separate" or leave it out'),
    "the main job": (r"(?i)\bmain job\b", 'say "the quickstart"'),
    "two colons": (r"[;:](?=\s)[^.]*[;:](?=\s)[^.]*\w", "split the sentence"),
    "long": (r"^(?:\S+\s+){44,}\S+", "split the sentence"),
}


class Violation(NamedTuple):
    """A sentence that breaks a rule."""

    path: Path
    line: int
    rule: str
    sentence: str


def tracked_files() -> list[Path]:
    """Return every tracked file that holds prose."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [
        path
        for path in paths
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".sh", ".toml", ".cff"} and path.exists()
    ]


def violations(path: Path) -> Iterator[Violation]:
    """Yield the sentences of a file that break a rule."""
    for line, piece in prose(path):
        for sentence in _sentences(piece):
            for rule, (pattern, _) in RULES.items():
                if re.search(pattern, sentence):
                    yield Violation(path, line, rule, sentence)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each piece of prose with the number of its first line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from _python_prose(text, strings=path.relative_to(ROOT).parts[0] not in {"tests", "benchmarks"})
    elif path.suffix == ".md":
        yield from _markdown_prose(text)
    else:
        yield from _joined(
            (number, found[1])
            for number, line in enumerate(text.splitlines(), 1)
            # Hydra's directive `# @package` is no prose.
            if (found := re.search(r"(?:^|\s)#+ (?!@package)(.*)", line))
        )


def _python_prose(text: str, *, strings: bool) -> Iterator[tuple[int, str]]:
    """Yield docstrings, comments and test names, and other string literals if `strings` is true."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield node.body[0].lineno, docstring
                node.body[0] = ast.Pass()
    # Test names are sentences, too.
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
    for node in ast.walk(tree) if strings else ():
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "`x`" for part in node.values]
            # Do not visit the parts again.
            node.values = []
            text_of = "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text_of = node.value
        else:
            continue
        if len(re.findall(r"\b[a-zA-Z]{2,}\b", text_of)) >= 4:
            yield node.lineno, re.sub(r"^\s*(?:error|warning): ", "", text_of)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from _joined((t.start[0], t.string.lstrip("# ")) for t in tokens if t.type == tokenize.COMMENT)


def _markdown_prose(text: str) -> Iterator[tuple[int, str]]:
    fenced, paragraph, first = False, [], 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and line.strip() and not re.match(r"\s*(?:[-*|#>]|\d+\.)", line):
            first = first or number
            paragraph.append(line)
            continue
        if paragraph:
            yield first, " ".join(paragraph)
            paragraph, first = [], 0
        if not fenced and re.match(r"\s*(?:[-*>#]|\d+\.)", line):
            paragraph, first = [line.lstrip("-*># 0123456789.")], number
        elif not fenced and line.lstrip().startswith("|"):
            for cell in line.strip().strip("|").split("|"):
                yield number, cell.strip()


def _joined(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join comments on adjacent lines into one piece."""
    first, last, words = 0, -1, []
    for number, line in lines:
        if number != last + 1 and words:
            yield first, " ".join(words)
            words = []
        first = number if not words else first
        last = number
        words.append(line)
    if words:
        yield first, " ".join(words)


def _sentences(piece: str) -> Iterator[str]:
    # List items, sections of a docstring and the entries of `Args:` are separate paragraphs.
    piece = re.sub(r"\n[ ]*- |\n[ ]*\w[\w ]*:\s*(?=\n)|\n[ ]*[\w*`., ]{1,40}: ", "\n\n", piece)
    for paragraph in re.split(r"\n\s*\n", piece):
        flat = re.sub(r"`[^`]*`|\[([^\]]*)\]\([^)]*\)", lambda m: m[1] or "`x`", " ".join(paragraph.split()))
        yield from re.split(r"(?<=[.?!])\s+(?=[A-Z`\"(])", flat)


def main() -> None:
    """Print every violation and the counts by rule; exit with code 1 if there is a violation."""
    paths = [Path(name).resolve() for name in sys.argv[1:]] or tracked_files()
    found = [violation for path in paths for violation in violations(path)]
    for path, line, rule, sentence in found:
        print(f"{path.relative_to(ROOT)}:{line}: {rule}: {sentence[:160]}")
    print(dict(Counter(violation.rule for violation in found).most_common()), file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
