"""The commands of shell text in documentation: their words after quotes, comments and prompts are taken away."""

import re
from typing import NamedTuple

# A stand-in for the output of a command substitution in a word.
SUBSTITUTED = "SUBSTITUTED"
_RESERVED = {"if", "then", "elif", "else", "fi", "while", "until", "do", "done", "{", "}", "!", "time", "esac", "in"}
_WITHOUT_COMMAND = {"for", "case", "select", "function", "[["}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_REDIRECTION = re.compile(r"<<<|<<-?|>>|[<>]&|&>>?|<>|>\||[<>]")


class Command(NamedTuple):
    """A simple command: its line in the text, its words, and the files that it reads through `<`."""

    line: int
    words: tuple[str, ...]
    inputs: tuple[str, ...] = ()


def parse_commands(text: str) -> tuple[list[Command], set[str]]:
    """Return the commands of shell text, those inside substitutions and groups too, and the functions that it defines.

    If lines begin with the prompt `$ `, all other lines are output.

    Raises:
        ValueError: A quote or a substitution is not closed.
    """
    scanner = _Scanner(_without_prompts(text))
    scanner.scan()
    return scanner.commands, scanner.functions


def _without_prompts(text: str) -> str:
    lines = text.splitlines()
    if not any(line.lstrip().startswith("$ ") for line in lines):
        return text
    kept, continued = [], False
    for line in lines:
        is_command = continued or line.lstrip().startswith("$ ")
        kept.append(re.sub(r"^\s*\$ ", "", line) if is_command else "")
        continued = is_command and line.endswith("\\")
    return "\n".join(kept)


class _Scanner:
    def __init__(self, text: str):
        self.text, self.at, self.line = text, 0, 1
        self.commands: list[Command] = []
        self.functions: set[str] = set()
        self._here_ends: list[str] = []
        self._in_backquotes = False

    def scan(self, closing: str = "") -> None:
        """Read commands up to the end of the text, or to `closing` and over it."""
        words: list[str] = []
        inputs: list[str] = []
        start = self.line
        while self.at < len(self.text):
            character = self.text[self.at]
            if closing and character == closing:
                self.at += 1
                break
            if self.text.startswith("\\\n", self.at):
                self.at += 2
                self.line += 1
            elif character in " \t":
                self.at += 1
            elif character == "#":
                self.at = self._end_of_line()
            elif self._substitutes():
                words.append(self._word())
            elif match := _REDIRECTION.match(self.text, self.at):
                self._redirect(match[0], words, inputs)
            elif self.text.startswith("()", self.at) and words:
                self.functions.add(words.pop())
                self.at += 2
            elif character in ";&|()\n":
                self._finish(start, words, inputs)
                self.at += 1
                if character == "\n":
                    self.line += 1
                    self._skip_here_documents()
            else:
                start = start if words else self.line
                words.append(self._word())
        else:
            if closing:
                raise ValueError(f"no {closing!r} closes what starts in line {start}")
        self._finish(start, words, inputs)

    def _finish(self, line: int, words: list[str], inputs: list[str]) -> None:
        kept = list(words)
        while kept and (kept[0] in _RESERVED or _ASSIGNMENT.match(kept[0])):
            del kept[0]
        if kept and kept[0] not in _WITHOUT_COMMAND:
            self.commands.append(Command(line, tuple(kept), tuple(inputs)))
        words.clear()
        inputs.clear()

    def _word(self) -> str:
        parts: list[str] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == "'":
                end = self.text.find("'", self.at + 1)
                if end < 0:
                    raise ValueError(f"no quote closes the one in line {self.line}")
                parts.append(self._take(end)[1:])
                self.at += 1
            elif character == '"':
                parts.append(self._double_quoted())
            elif character == "\\":
                if self.text.startswith("\\\n", self.at):
                    break
                parts.append(self.text[self.at + 1 : self.at + 2])
                self.at += 2
            elif self._substitutes():
                parts.append(self._substitution())
            elif character in " \t\n;&|()<>`":
                break
            else:
                parts.append(character)
                self.at += 1
        return "".join(parts)

    def _double_quoted(self) -> str:
        parts: list[str] = []
        first = self.line
        self.at += 1
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == '"':
                self.at += 1
                return "".join(parts)
            if character == "\\" and self.text[self.at + 1 : self.at + 2] in {'"', "\\", "$", "`"}:
                parts.append(self.text[self.at + 1])
                self.at += 2
            elif self._substitutes():
                parts.append(self._substitution())
            else:
                self.line += character == "\n"
                parts.append(character)
                self.at += 1
        raise ValueError(f"no quote closes the one in line {first}")

    def _substitutes(self) -> bool:
        opening = ("$(", "${", "<(", ">(") if self._in_backquotes else ("$(", "${", "<(", ">(", "`")
        return self.text.startswith(opening, self.at)

    def _substitution(self) -> str:
        opening = self.text[self.at : self.at + 2]
        if opening == "${":
            end = self.text.find("}", self.at)
            if end < 0:
                raise ValueError(f"no brace closes the one in line {self.line}")
            return self._take(end + 1)
        if opening[0] == "`":
            self.at += 1
            self._in_backquotes = True
            self.scan("`")
            self._in_backquotes = False
        else:
            self.at += 2
            self.scan(")")
        return SUBSTITUTED

    def _redirect(self, operator: str, words: list[str], inputs: list[str]) -> None:
        # A number directly before it is a file descriptor.
        if words and words[-1].isdigit() and self.text[self.at - 1].isdigit():
            words.pop()
        self.at += len(operator)
        while self.text[self.at : self.at + 1] in {" ", "\t"}:
            self.at += 1
        target = self._word()
        if operator in {"<<", "<<-"}:
            self._here_ends.append(target)
        elif operator == "<":
            inputs.append(target)

    def _skip_here_documents(self) -> None:
        for ending in self._here_ends:
            while self.at < len(self.text):
                end = self._end_of_line()
                line = self.text[self.at : end]
                self.at, self.line = min(end + 1, len(self.text)), self.line + 1
                if line.strip() == ending:
                    break
        self._here_ends.clear()

    def _end_of_line(self) -> int:
        end = self.text.find("\n", self.at)
        return len(self.text) if end < 0 else end

    def _take(self, end: int) -> str:
        taken = self.text[self.at : end]
        self.line += taken.count("\n")
        self.at = end
        return taken
