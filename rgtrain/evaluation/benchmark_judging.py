"""Read the letter of an option, a number or an expression from the text of an answer to an outside benchmark.

The readers follow the filters of lm-evaluation-harness for GSM8K and MMLU-Pro; docs/evaluation.md lists differences.
Answers are untrusted text: every function takes time that is linear in its length.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

# A number with more digits, or with a larger power of ten, is refused: parsing digits is not linear in their number.
_MAX_DIGITS = 60

# LaTeX commands that only format their argument.
_FORMATTING = frozenset(
    (
        *(
            "text",
            "textbf",
            "textit",
            "textrm",
            "textsf",
            "texttt",
            "emph",
            "underline",
            "mbox",
            "hbox",
            "operatorname",
        ),
        *("mathrm", "mathbf", "mathit", "mathsf", "mathtt", "mathbb", "boxed", "fbox", "bf", "rm", "it", "em"),
        *("left", "right", "big", "Big", "bigl", "bigr", "displaystyle", "textstyle", "quad", "qquad"),
    )
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*+\{")
_COMMAND = re.compile(r"\\([A-Za-z]++|.)", re.DOTALL)


def chosen_letter(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that an answer names, or None if it names none or several.

    An answer names an option by its letter alone, by a letter in front of text ("C: 7", "(C) 7"), or by a statement
    such as "the answer is C" or "option C". The last LaTeX box comes first, and then the last statement about
    the answer. The words "A" and "I" are no letters. The text of an option names none, because the question asks for
    the letter.

    Args:
        answer: The text of the answer.
        options: The texts of the options, which have the letters from A on.

    Returns:
        An upper-case letter.

    >>> chosen_letter("**C**", ["4", "6", "7"]), chosen_letter("A or B", ["4", "6", "7"])
    ('C', None)
    """
    text = unicodedata.normalize("NFKC", answer)
    box = _last_box(text)
    found = None if box is None else _named_letter(_without_markup(box), options)
    return found or _named_letter(_without_markup(text), options)


def stated_number(answer: str) -> Fraction | None:
    """Return the number that an answer states, or None if it states none or several.

    The statement is the content of the last LaTeX box, or else the text after the last "####", "=", "is" or "answer".
    The number at its start counts, or else its last number. Units, currencies and digits of all scripts are understood.
    Ranges, lists, alternatives and unfinished calculations state no number.

    Args:
        answer: The text of the answer.

    Returns:
        The number, exactly as written.

    >>> stated_number("18 + 2 = 20 dollars"), stated_number("1.800,50"), stated_number("18-20")
    (Fraction(20, 1), Fraction(3601, 2), None)
    """
    return _number_of(_plain_text(answer))


def plain_quantity(answer: str) -> Fraction | None:
    r"""Return the number that an answer consists of, beside words and units, or None if it has anything else.

    Args:
        answer: The text of the answer, or of a reference solution.

    Returns:
        The number, exactly as written.

    >>> plain_quantity(r"18\text{ cm}"), plain_quantity("18x"), plain_quantity("18, 20")
    (Fraction(18, 1), None, None)
    """
    tokens = list(_TOKEN.finditer(_plain_text(answer)))
    numbers = [token for token in tokens if token.lastgroup == "number"]
    marks = {token.group() for token in tokens if token.lastgroup in ("mark", "exponent")}
    if len(numbers) != 1 or not marks <= _PUNCTUATION:
        return None
    # A single letter is a variable.
    if any(len(word) == 1 or word in _MATHEMATICAL for word in _words(tokens)):
        return None
    return _value(numbers[0])


def stated_expression(answer: str) -> str:
    r"""Return the expression that an answer states: the content of its last LaTeX box, or the text after "answer is".

    Args:
        answer: The text of the answer.

    Returns:
        LaTeX or plain text, without emphasis and a full stop.

    >>> stated_expression(r"The answer is **$\frac{1}{2}$**.")
    '$\\frac{1}{2}$'
    """
    box = _last_box(answer)
    if box is not None:
        return box
    start = max((match.end() for match in _ANSWER_IS.finditer(answer)), default=0)
    return (answer[start:].strip() or answer).strip("* ").rstrip(".").strip("* ")


def _last_box(text: str) -> str | None:
    r"""Return the content of the last closed `\boxed{...}`, or None. Of nested boxes, the inner one is the last."""
    start = max((match.end() for match in _BOX.finditer(text)), default=None)
    if start is None:
        return None
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if not depth:
            return text[start : start + brace.start()]
    return None


# The letter of an option.

# The words between "answer" and the letter.
_FILLERS = (
    r"(?:[\s:=>~,\-\u2013\u2014]|\b(?:is|are|was|be|would|should|must|the|option|choice|letter|answer|correct|right|best|final|"
    r"therefore|thus|so|indeed|definitely|probably|likely|most|clearly|number|given|by|as|to|this|question|ist|est|es|é|it|"
    r"i\s(?:think|believe|guess))\b)*+"
)
_LETTER = r"(?P<open>[(\[]\s?)?(?P<letter>[A-Za-z])(?![A-Za-z0-9])"
_ANSWER_STATEMENT = re.compile(
    r"(?:\b(?:ans|answers?|antwort|r[ée]ponse|respuesta|resposta|risposta|ответ)\b|(?:答案|答え|正解)[是为為は]?)"
    rf"{_FILLERS}(?:{_LETTER})?+",
    re.IGNORECASE,
)
_OPTION_STATEMENT = re.compile(
    rf"\b(?:options?|choices?|letter|choose|chose|select|selected|pick|picked)\b{_FILLERS}(?:{_LETTER})?+",
    re.IGNORECASE,
)
_LABEL = re.compile(rf"\s*+{_LETTER}")
_LEADING_WORDS = re.compile(
    r"(?:[\s,:'\u2019]|\b(?:so|thus|hence|therefore|finally|final|it|its|is|s|d|must|be|would|clearly|i|think|believe|"
    r"guess|say|go|with|that|this)\b)*+",
    re.IGNORECASE,
)
_LETTER_ALONE = re.compile(r"[\s(\[<\-\u2022\u2192]*+(?P<letter>[A-Za-z])[\s)\]>.,:;!?。、]*+")
# The text after a letter that is no word: the end, a separator, or after a capital letter the beginning of a reason.
_SEPARATOR = r"[^\S\n]*+(?:,?\s*+$|[)\]:;!?\n。、]|\.(?![A-Za-z])|(?<=\s)[-\u2013\u2014]{1,2}\s)"
_AFTER_SMALL = re.compile(_SEPARATOR)
_AFTER_CAPITAL = re.compile(rf"{_SEPARATOR}|,?\s*+(?:is|because|since|which|not|rather|instead)\b")
# Another letter that follows at once, as in "A or B".
_ANOTHER = re.compile(
    r"[^\S\n]*+[)\].,;:]*+[^\S\n]*+(?:"
    r"(?:\b(?:and|or|nor|vs)\b|[&/+|])[\s/]*+(?:or\b)?\s*+(?:option|choice|answer)?[\s(\[]*+[A-Za-z]\b"
    r"|[(\[][A-Za-z][)\]]|(?:(?<=[,;:])|(?<=[,;]\s))(?:option\s|choice\s)?[(\[]?[A-Z]\b|[A-Z][).:])"
)
# The label of another option on the same line or at the start of a later one.
_OTHER_LABEL = re.compile(r"(?:\n[ \t]{0,8}[(\[]?(?=[A-Z](?:[)\].:\n]|$))|(?<=[\s,;])(?=[A-Z]\)))(?P<letter>[A-Z])")
_REFUSAL = re.compile(r"[\s)\]]*+(?:is|was|can|could)\s*+(?:n['\u2019]t\b|not\b|incorrect\b|wrong\b|false\b)")
_LABEL_END = re.compile(r"[\s)\].:,]*+\(?")


def _without_markup(text: str) -> str:
    """Remove Markdown, HTML tags, quotation marks and the LaTeX commands that only format."""
    text = re.sub(r"</?(?:b|i|u|p|br|em|strong|span|code)\s?/?>", " ", text)
    text = _COMMAND.sub(
        lambda command: " " if command[1] in _FORMATTING or not command[1].isalpha() else command[0], text
    )
    return re.sub(
        r"[*_`$\"\u201c-\u201e\u00ab\u00bb{}#~]|(?<!\w)['\u2018\u2019]|['\u2018\u2019](?!\w)", "", text
    ).strip()


def _named_letter(text: str, options: Sequence[str]) -> str | None:
    if alone := _LETTER_ALONE.fullmatch(text):
        return _among(alone["letter"], options)
    if _is_text_of_an_option(text, options):
        return None
    for pattern in (_ANSWER_STATEMENT, _OPTION_STATEMENT):
        stated = [match for match in pattern.finditer(text) if _is_letter(match, text, options)]
        if stated:
            letters = {_single_letter(match, text, options) for match in stated}
            # A later statement about the answer corrects an earlier one. Options may be mentioned in any order.
            return _single_letter(stated[-1], text, options) if pattern is _ANSWER_STATEMENT else _only(letters)
    for start in (0, _LEADING_WORDS.match(text).end()):  # type: ignore[union-attr]
        rest = text[start:]
        if start and (alone := _LETTER_ALONE.fullmatch(rest)):
            return _among(alone["letter"], options)
        label = _LABEL.match(rest)
        if label and _is_letter(label, rest, options):
            letter = _single_letter(label, rest, options)
            others = {_among(other["letter"], options) for other in _OTHER_LABEL.finditer(rest, label.end())}
            return letter if others <= {letter, None} else None
    last_line = _LETTER_ALONE.fullmatch(text, text.rfind("\n") + 1)
    return _among(last_line["letter"], options) if last_line else None


def _only(letters: set[str | None]) -> str | None:
    return letters.pop() if len(letters) == 1 else None


def _among(letter: str, options: Sequence[str]) -> str | None:
    number = ord(letter.upper()) - ord("A")
    return letter.upper() if number < len(options) else None


def _is_text_of_an_option(text: str, options: Sequence[str]) -> bool:
    """Return whether the answer begins with an option's text that looks like a letter with a label, as in "E. coli"."""
    return any(re.match(r"[A-Za-z][.):]\s", option) and text.startswith(option) for option in options)


def _is_letter(match: re.Match[str], text: str, options: Sequence[str]) -> bool:
    """Return whether a match names a letter, instead of the words "A" and "I" or the beginning of another word."""
    letter = match["letter"]
    if letter is None or _REFUSAL.match(text, match.end()):
        return False
    if match["open"]:
        return text[match.end() : match.end() + 2].lstrip()[:1] in (")", "]")
    if (_AFTER_CAPITAL if letter.isupper() else _AFTER_SMALL).match(text, match.end()):
        return True
    if _ANOTHER.match(text, match.end()):
        return letter.isupper()
    # The option's own text may follow without a separator.
    return letter not in "AI" and _is_followed_by_its_text(match, text, options)


def _single_letter(match: re.Match[str], text: str, options: Sequence[str]) -> str | None:
    """Return the letter of a match, or None if it is no option's or another letter follows at once."""
    if _ANOTHER.match(text, match.end()) and not _is_followed_by_its_text(match, text, options):
        return None
    return _among(match["letter"], options)


def _is_followed_by_its_text(match: re.Match[str], text: str, options: Sequence[str]) -> bool:
    number = ord(match["letter"].upper()) - ord("A")
    start = _LABEL_END.match(text, match.end()).end()  # type: ignore[union-attr]
    return number < len(options) and bool(options[number]) and text.startswith(options[number], start)


# A number.

_TIMES, _THIN = "\N{MULTIPLICATION SIGN}", "\N{NARROW NO-BREAK SPACE}"
_THIN_SPACES = frozenset("\u00a0\u2007\u2008\u2009\u200a\u202f\u205f")
_CHARACTERS = {
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),
    **{"\u2019": "'", "\N{ARABIC DECIMAL SEPARATOR}": ".", "\N{ARABIC THOUSANDS SEPARATOR}": ","},
}
_SUPERSCRIPTS = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]++")
_COMMANDS = {
    **{"times": _TIMES, "cdot": "·", "div": "÷", "pm": "±", "approx": "≈", "simeq": "≈", "circ": "°", "degree": "°"},
    **{"le": "≤", "leq": "≤", "ge": "≥", "geq": "≥"},
    **dict.fromkeys(("to", "rightarrow", "Rightarrow", "implies"), "→"),
    **{"dollar": "$", "euro": "€", "pounds": "£", "$": "$", "%": "%", "#": "#", ",": _THIN, "!": ""},
    **dict.fromkeys("()[]{}&:; \\", " "),
}
# Any other command, such as a root, makes a number more than its digits.
_NOT_PLAIN = frozenset("√∛π∞")
_FRACTION = re.compile(r"\\[dt]?frac\s*+(?:\{\s*+(-?[\d.,]++)\s*+\}\s*+\{\s*+([\d.,]++)\s*+\}|(\d)\s*+(\d))")
# A value is a mixed number (2 1/2), a number with spaces (1 800) or other separators (1,800.50), decimals (.5), or a
# fraction. A currency may touch its number. A word keeps its digits, as in CO2.
_TOKEN = re.compile(
    rf"""
    (?P<number>
        (?P<sign>(?<![\w)\]])[-+])? [$€£¥₹]? (?P<inner_sign>[-+])?
        (?P<value>
            \d++\ {{1,3}}\d++/\d++
            | (?:[1-9]\d{{0,2}}(?:\ \d{{3}}){{1,20}}+(?!\d)(?:[.,]\d++)?
                | \d++(?:[.,'_{_THIN}]\d++)*+
                | \.\d++)
            (?:\ ?/\ ?\d++)?+
        )
        (?P<power>[eE][-+]?\d++(?!\w) | \ ?[{_TIMES}x*·]\ ?10\ ?(?:\^|\*\*)[{{(\ ]?[-+]?\d++)?+
        (?P<scale>[kK](?![A-Za-z]) | [\ -]?(?:hundred|thousand|million|billion|trillion)s?\b)?+
    )
    | (?P<currency>(?:USD|EUR|GBP|CAD|AUD|INR|US|Rs\.?)(?=[\s$]?[-+]?\d))
    | (?P<exponent>\^[\s({{]*+[-+]?\w*+)
    | (?P<word>[A-Za-z][A-Za-z0-9_]*+(?:-\d++)?+ | [^\W\d_]++)
    | (?P<mark>\S | \n)
    """,
    re.VERBOSE,
)
_STATEMENT = re.compile(
    r"####|[=≈→⇒]|[-~]>|\b(?:answers?|is|are|was|were|be|equals?|makes?|gives?|totals?|becomes?)\b", re.IGNORECASE
)
_BEFORE_A_NUMBER = frozenset(
    (
        "a",
        "about",
        "approx",
        "approximately",
        "around",
        "exactly",
        "just",
        "nearly",
        "of",
        "only",
        "roughly",
        "the",
        "total",
    )
)
# Between two numbers, these words separate parts of a sentence.
_SEPARATING = frozenset(
    (
        *("after", "at", "because", "before", "by", "each", "every", "for", "from", "hence", "in", "not", "on", "per"),
        *("since", "so", "then", "thus", "with"),
    )
)
# Between two numbers, these words join them to one quantity, a range or a calculation.
_JOINING = frozenset(("and", "minus", "of", "or", "over", "plus", "through", "times", "to", "until"))
# Directly in front of a number.
_NEGATIVE, _EXCLUDING = frozenset(("minus", "negative")), frozenset(("not", "than"))
_SCALES = {"k": 3, "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_PUNCTUATION = frozenset("$€£¥₹%°.,;:*()[]{}\"'`^\n" + _THIN)
_MATHEMATICAL = frozenset(
    (
        "cos",
        "cot",
        "csc",
        "exp",
        "lim",
        "ln",
        "log",
        "minus",
        "mod",
        "negative",
        "not",
        "or",
        "pi",
        "sec",
        "sin",
        "sqrt",
        "tan",
    )
)
_ANSWER_IS = re.compile(r"\banswer(?:\s++is\b|\s*+:)[\s:]*+", re.IGNORECASE)


def _plain_text(answer: str) -> str:
    """Return the answer, or the content of its last box, in plain characters without LaTeX commands."""
    text = _SUPERSCRIPTS.sub(lambda match: f"^{unicodedata.normalize('NFKC', match.group())}", answer)
    text = "".join(map(_plain_character, text))
    text = (_last_box(text) or text).replace("{,}", ",").replace("_{", "_").replace("^{", "^")
    text = _FRACTION.sub(lambda found: f" {found[1] or found[3]}/{found[2] or found[4]} ", text)
    text = _COMMAND.sub(lambda command: "" if command[1] in _FORMATTING else _COMMANDS.get(command[1], "√"), text)
    # A sign that touched the fraction belongs to it.
    return re.sub(r"(?<![\w)\]])([-+]) (?=\d++/)", r"\1", text)


@lru_cache(maxsize=4096)
def _plain_character(character: str) -> str:
    """Write digits of all scripts, full-width characters and fractions in ASCII, and all thin spaces as one."""
    if character.isascii() or character in _CHARACTERS:
        return _CHARACTERS.get(character, character)
    if character in _THIN_SPACES:
        return _THIN
    kind = unicodedata.decomposition(character).partition(">")[0]
    plain = unicodedata.normalize("NFKC", character)
    if kind == "<fraction":
        return f" {plain.replace(chr(0x2044), '/')}"
    if kind in ("<wide", "<circle", "<small", "<font"):
        return plain
    decimal = unicodedata.decimal(character, None)
    return character if decimal is None else str(decimal)


def _number_of(text: str) -> Fraction | None:
    last_digit = max((match.start() for match in re.finditer(r"\d", text)), default=-1)
    start = max((match.end() for match in _STATEMENT.finditer(text) if match.end() <= last_digit), default=0)
    statement = text[start:]
    # Brackets explain a number, unless they hold the only one.
    outside = re.sub(r"\([^()]*+\)", " ", statement)
    statement = outside if re.search(r"\d", outside) else statement
    tokens = list(_TOKEN.finditer(statement))
    numbers = [position for position, token in enumerate(tokens) if token.lastgroup == "number"]
    if not numbers or not _NOT_PLAIN.isdisjoint(statement) or _has_alternative(text[:start]):
        return None
    first, last = numbers[0], numbers[-1]
    if "or" in _words(tokens[first:last]):
        return None
    leading = [token for token in tokens[:first] if token.lastgroup == "word"]
    if _BEFORE_A_NUMBER.issuperset(_words(leading)):
        chosen, neighbours = first, numbers[:2]
    else:
        chosen, neighbours = last, numbers[-2:]
    if len(neighbours) == 2 and _are_joined(tokens[neighbours[0] : neighbours[1] + 1]):
        return None
    before = _words(tokens[max(chosen - 1, 0) : chosen])
    if _is_operand(tokens, chosen) or not _EXCLUDING.isdisjoint(before):
        return None
    value = _value(tokens[chosen])
    return -value if value is not None and not _NEGATIVE.isdisjoint(before) else value


def _words(tokens: Iterable[re.Match[str]]) -> list[str]:
    return [token.group().lower() for token in tokens if token.lastgroup == "word"]


def _has_alternative(before: str) -> bool:
    """Return whether a number and "or" stand before the statement, as in "x = 18 or x = 20"."""
    number = re.search(r"\d", before)
    return bool(number and re.search(r"\bor\b", before[number.end() :], re.IGNORECASE))


def _are_joined(tokens: Sequence[re.Match[str]]) -> bool:
    """Return whether the first and the last token, two numbers, are one quantity, a range, a list or a calculation."""
    between = tokens[1:-1]
    marks = {token.group() for token in between if token.lastgroup == "mark"}
    is_time = len(between) == 1 and tokens[0].end() + 1 == tokens[-1].start()
    if not marks.isdisjoint("(;.!?|\n") or (":" in marks and not is_time):
        return False
    words = _words(between)
    # One word may be a unit, as in "1 hour and 30 minutes".
    return _SEPARATING.isdisjoint(words) and len([word for word in words if word not in _JOINING]) <= 1


def _is_operand(tokens: Sequence[re.Match[str]], position: int) -> bool:
    """Return whether the number at `position` has a power, is a bound, or is in a calculation with a letter."""
    before = tokens[position - 1].group() if position else ""
    after = tokens[position + 1] if position + 1 < len(tokens) else None
    if before in ("≤", "≥", "±") or (before in ("+", "÷", "·", _TIMES) and position > 1):
        return True
    if after is None:
        return False
    if after.lastgroup == "exponent":
        # LaTeX writes a degree sign as a power without a number.
        return after.group().strip("^({ ") != ""
    return after.group() in ("+", "÷", "·", "±", _TIMES) and position + 2 < len(tokens)


def _value(number: re.Match[str]) -> Fraction | None:
    """Return the value of a number's token, or None if it is too long or its separators contradict each other."""
    text, sign = number["value"], -1 if (number["sign"] == "-") != (number["inner_sign"] == "-") else 1
    # Four characters exceed the limit already.
    power = int(re.split(r"\^|\*\*|[eE]", number["power"])[-1].strip("{( ")[:4]) if number["power"] else 0
    scale = (number["scale"] or "").strip(" -").lower()
    power += _SCALES[scale.removesuffix("s")] if scale else 0
    if len(text) > _MAX_DIGITS or abs(power) > _MAX_DIGITS:
        return None
    whole, _, fraction = text.rpartition(" ") if re.fullmatch(r"\d+ +\d+/\d+", text) else ("0", "", text)
    numerator, _, denominator = fraction.partition("/")
    value = _decimal_value(numerator.strip())
    if value is None or (denominator and not int(denominator)):
        return None
    return sign * (int(whole) + value / int(denominator or 1)) * Fraction(10) ** power


def _decimal_value(text: str) -> Fraction | None:
    """Return the value of digits with decimal and thousands separators, or None if these contradict each other."""
    marks = re.sub(r"\d", "", text)
    last = marks[-1:]
    is_decimal = (
        last in (".", ",")
        and marks.count(last) == 1
        and (last == "." or len(set(marks)) == 2 or not _are_thousands(text.split(",")))
    )
    whole, decimals = text.rsplit(last, 1) if is_decimal else (text, "")
    groups = re.split(r"\D", whole)
    if len(set(re.sub(r"\d", "", whole))) > 1 or (len(groups) > 1 and not _are_thousands(groups)):
        return None
    return Fraction(int("".join(groups) + decimals), 10 ** len(decimals))


def _are_thousands(groups: Sequence[str]) -> bool:
    """Return whether digits are grouped by thousands, or as in India by a thousand and then by hundreds."""
    first, *middle, last = groups
    if not 1 <= len(first) <= 3 or first.startswith("0") or len(last) != 3:
        return False
    lengths = {len(group) for group in middle}
    return lengths <= {3} or (lengths == {2} and len(first) <= 2)
