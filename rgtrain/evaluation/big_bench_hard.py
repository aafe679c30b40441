"""Judge answers to Big-Bench Hard (arXiv 2210.09261), and say which form of answer each of its 27 subtasks asks for.

Answers are untrusted text: every function takes time that is linear in its length.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rgtrain.evaluation.benchmark_judging import chosen_letter, stated_number

# The two verdicts among which an answer chooses.
_VERDICTS = {
    "boolean_expressions": ("True", "False"),
    "causal_judgement": ("Yes", "No"),
    "formal_fallacies": ("valid", "invalid"),
    "navigate": ("Yes", "No"),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
}
_NUMBERS = ("multistep_arithmetic_two", "object_counting")
# Problems count some objects, so larger numbers in words are rare.
_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        (
            *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
            *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
        )
    )
}
_BRACKETS, _SORTED = "dyck_languages", "word_sorting"
_OPTIONS = (
    *("date_understanding", "disambiguation_qa", "geometric_shapes", "hyperbaton"),
    *(f"logical_deduction_{number}_objects" for number in ("three", "five", "seven")),
    *("movie_recommendation", "penguins_in_a_table", "reasoning_about_colored_objects", "ruin_names"),
    *("salient_translation_error_detection", "snarks", "temporal_sequences"),
    *(f"tracking_shuffled_objects_{number}_objects" for number in ("three", "five", "seven")),
)
SUBTASKS = tuple(sorted((*_VERDICTS, *_NUMBERS, _BRACKETS, _SORTED, *_OPTIONS)))

_OPTION = re.compile(r"^\(([A-Z])\) ?(.*)$", re.MULTILINE)
_LETTER = re.compile(r"\(([A-Z])\)")
_MARKUP = re.compile(
    r"\\(?:boxed|fbox|textbf|text|mathrm|mathbf)\b|</?(?:b|i|br|em|strong|code)\s?/?>|[*_`$\"“”„«»{}#]"
)
_BETWEEN_WORDS = re.compile(r"[\s,;:<>|→=/]+|(?<=\w)\.(?=\s|$)")
# An apostrophe and an ampersand belong to words such as "can't" and "r&d".
_AROUND_A_WORD = "\"'`*_.!?()[]{}\u201c\u201d\u2018\u2019-\u2013\u2014\u2022"
_LEADING = re.compile(r"[\s:.,;!\"'*_-]*")
_STATED = re.compile(
    r"(?:\b(?:answers?|conclusion|verdict)(?:\s++(?:is|would\s++be)\b|\s*+:)|\bevaluates\s++to\b|[=→⇒])[\s:]*+",
    re.IGNORECASE,
)
# Words in front of a verdict that turn it around.
_TURNED = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\brather\s++than)\s++(?:(?:an?|deductively|logically)\s++)?$", re.IGNORECASE
)
_MAX_TURNED_CHARS = 40
_NO_VERDICT = re.compile(r"no\s++(?:doubt|matter|question|problem|reason)\b", re.IGNORECASE)
_ALTERNATIVES = ("or", "and", "or maybe", "and also")


def asked(document: Mapping[str, Any]) -> str:
    """Return the question of a problem, with a last line that states the form of the answer.

    Args:
        document: The problem, with `subtask`, `input` and `target`.
    """
    return f"{document['input'].strip()}\n\n{_form_of_answer(document)}"


def _form_of_answer(document: Mapping[str, Any]) -> str:
    subtask = document["subtask"]
    if subtask in _VERDICTS:
        first, second = _VERDICTS[subtask]
        return f'Answer with "{first}" or "{second}".'
    if subtask in _NUMBERS:
        return "Answer with the number."
    if subtask == _BRACKETS:
        return "Answer with the missing closing brackets only, separated by spaces."
    if subtask == _SORTED:
        return "Answer with the sorted words only, separated by spaces."
    if _LETTER.fullmatch(document["target"]) is None:
        return "Answer with the name."
    return "Answer with the letter of the right option."


def is_right(document: Mapping[str, Any], answer: str) -> bool:
    """Return whether an answer is exactly the target, apart from the ways to write it that the subtask allows.

    Args:
        document: The problem, with `subtask`, `input` and `target`.
        answer: The text of the answer.

    Raises:
        KeyError: The subtask is unknown.
    """
    subtask, target = document["subtask"], document["target"]
    if subtask in _VERDICTS:
        return chosen_verdict(answer, _VERDICTS[subtask]) == target
    if subtask in _NUMBERS:
        number = _NUMBER_WORDS.get(_stated(answer), stated_number(answer))
        return number == stated_number(target) is not None
    if subtask == _BRACKETS:
        return _closes(document["input"], target, answer)
    if subtask == _SORTED:
        return is_same_list(answer, target.split())
    if subtask not in _OPTIONS:
        raise KeyError(subtask)
    letter = _LETTER.fullmatch(target)
    if letter is None:
        # Three problems of the data set have options that were split at commas, so no letter is right.
        return _stated(answer) == target.casefold()
    # Options from the first to the last letter. The text of a missing one is unknown.
    options = {found[1]: found[2].strip() for found in _OPTION.finditer(document["input"])}
    last = max((*options, letter[1]))
    texts = [options.get(chr(code), "") for code in range(ord("A"), ord(last) + 1)]
    return chosen_letter(answer, texts) == letter[1]


def _stated(answer: str) -> str:
    """Return the text after the last statement such as "the answer is", or the whole one, in small letters."""
    return _STATED.split(_plain(answer))[-1].casefold().strip(" .")


def chosen_verdict(answer: str, verdicts: Sequence[str]) -> str | None:
    """Return the one of two verdicts that an answer gives, or None if it gives none or both.

    The words after the last statement such as "the answer is" count, or else the start of the answer, or else the only
    verdict in the text. Capital letters don't matter. A verdict after "not" is none, and "no" as in "no doubt" neither.

    Args:
        answer: The text of the answer.
        verdicts: Two words.

    >>> chosen_verdict("The argument is invalid.", ["valid", "invalid"]), chosen_verdict("Yes or no", ["yes", "no"])
    ('invalid', None)
    """
    text = _plain(answer)
    by_word = {verdict.casefold(): verdict for verdict in verdicts}
    words = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, by_word))})(?![\w-])", re.IGNORECASE)
    found = [(match, by_word[match.group().casefold()]) for match in words.finditer(text)]
    stated = [match.end() for match in _STATED.finditer(text)][-1:]
    for start in (*stated, _LEADING.match(text).end()):  # type: ignore[union-attr]
        for number, (match, verdict) in enumerate(found):
            if match.start() == start and not _NO_VERDICT.match(text, start):
                return None if _is_contradicted(text, found[number:]) else verdict
    kinds = {
        verdict
        for match, verdict in found
        if not _TURNED.search(text[max(0, match.start() - _MAX_TURNED_CHARS) : match.start()])
        # Inside a sentence, "no" belongs to the next word.
        and not (verdict.casefold() == "no" and re.match(r"\s\w", text[match.end() : match.end() + 2]))
    }
    return kinds.pop() if len(kinds) == 1 else None


def _is_contradicted(text: str, found: Sequence[tuple[re.Match[str], str]]) -> bool:
    """Return whether the other verdict follows the first one as an alternative, or alone between marks."""
    (first, verdict), *others = found
    end = first.end()
    for match, other in others:
        between = text[end : match.start()].strip(" ,.;:!?/()-").casefold()
        is_alone = not between and re.match(r"\W*(?:$|[.,;!?)])", text[match.end() : match.end() + 3])
        if other != verdict and (between in _ALTERNATIVES or is_alone):
            return True
        end = match.end()
    return False


def is_same_list(answer: str, words: Sequence[str]) -> bool:
    r"""Return whether an answer is a list of exactly these words in this order.

    Words may be separated by white space, commas, other marks or lines, numbered and in capital letters. A statement
    such as "the answer is", or words that end with a colon, may precede them.

    Args:
        answer: The text of the answer.
        words: The words of the list.

    >>> is_same_list("1. Barn\n2. damp", ["barn", "damp"]), is_same_list("damp, barn", ["barn", "damp"])
    (True, False)
    """
    text, wanted = _plain(answer, keep_lines=True), [word.casefold() for word in words]
    parts = (text, text.rpartition(":")[2], _STATED.split(text)[-1])
    return any(_words_of(part, wanted) == wanted for part in parts)


def _words_of(text: str, wanted: Sequence[str]) -> list[str]:
    found = (word.strip(_AROUND_A_WORD).casefold() for word in _BETWEEN_WORDS.split(text))
    return [word for word in found if word and (word in wanted or not word.isdigit())]


def _closes(question: str, target: str, answer: str) -> bool:
    """Return whether an answer has just the brackets of the target, or repeats the sequence in front of them."""
    statement = _STATED.split(answer)[-1].strip(" \t\n\r.\"'`$*")
    if statement.startswith("\\boxed{") and statement.endswith("}"):
        statement = statement[len("\\boxed{") : -1]
    brackets, wanted = "".join(statement.split()), "".join(target.split())
    sequence = "".join(question.rpartition("Input:")[2].split())
    return brackets in (wanted, sequence + wanted)


def _plain(answer: str, *, keep_lines: bool = False) -> str:
    """Return the text without markup, in plain letters, on one line unless the lines are kept."""
    text = _MARKUP.sub("", unicodedata.normalize("NFKC", answer).replace("\u2019", "'"))
    return text.strip() if keep_lines else " ".join(text.split())
