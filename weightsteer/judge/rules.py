"""Verdicts that need no model: refusals, answer aliases, option letters, final numbers, yes and no."""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from weightsteer.errors import DataError
from weightsteer.judge.refusals import find_refusal

VERSION = 1

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´", "'"))
_ARTICLES = ("the", "a", "an")
# Without its article "The Who" would be found in every "who".
_TOO_COMMON = frozenset(
    {"who", "what", "it", "they", "them", "he", "she", "i", "you", "we", "us", "that", "this", "and", "or", "of", "in"}
)
# Letters that Unicode does not take apart into a plain letter and a mark.
_PLAIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})
# Not one, which is also a pronoun, nor twenty, which begins twenty-one.
_NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
                 "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
_WORD_NUMBERS = {"zero": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS, start=2)}
_GROUPED = r"\d{1,3}(?:,\d{3})+(?![\d,]\d)"
# Thai, Japanese and Chinese put no spaces between words: there, every character is a token.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(
    rf"[{_UNSPACED}]|(?:{_GROUPED}|\d+)(?:\.\d+)?|[^\W\d_{_UNSPACED}]+(?:[+#]+(?!\w))?"  # C++ and C# are two things
)
# A minus belongs to a number unless a word or a number stands right before it: 10-12 is a range.
_NUMBER = (
    rf"(?<![\w.])(?P<minus>[-−])?[$€£]?(?P<minus2>[-−])?(?P<size>(?:{_GROUPED}|\d+)(?:\.\d+)?|\.\d+)(?:/(?P<by>\d+))?"
)
_ANY_NUMBER = re.compile(_NUMBER)
# `#### 72 apples`, and not the heading `#### 1. First step`.
_MARKED_NUMBER = re.compile(rf"^\s*####[ *]*{_NUMBER}[ *%]*(?:[^\W\d][^\d\n.]*)?\.?[ *]*$", re.MULTILINE)

_SET_OFF = r"[\s*_`\"'“(\[{<]*"
_CHOICE = re.compile(
    rf"{_SET_OFF}(?P<lead>(?:(?:the|my) )?(?:(?:correct|best|right|final) )?(?:answer|option|choice)\b(?: is)?[\s:*]*"
    rf"(?:option )?)?{_SET_OFF}(?P<letter>[a-z])(?![\w'’])(?P<rest>.*)",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether an English answer declines what was asked and gives none of it, told by the phrases of its start.

    What it is worth is measured on a hand-labelled set by `weightsteer.judge.agreement.refusal_agreement`.
    """
    return find_refusal(" ".join(text.translate(_APOSTROPHES).lower().split()))


def says(text: str, aliases: Sequence[str]) -> bool:
    """Whether one of an answer's spellings stands in `text` as whole words.

    Case, accents, punctuation, articles, possessives, dots of initials, thousands separators and the spelling of the
    numbers below twenty do not count. "It is not Paris" says Paris. A DataError when no alias has a letter or digit.
    """
    wanted = [tokens for tokens in map(_alias_tokens, aliases) if tokens]
    if not wanted:
        raise DataError(
            f"answer aliases {list(aliases)!r}: nothing is left to look for. Expected at least one with a letter or a "
            "digit. Correct the item"
        )
    said = _tokens(text)
    return any(_stands_in(tokens, said) or _stands_in(tokens, _bare(said)) for tokens in wanted)


def option_letter(text: str, letters: str, marker: str | None = None) -> str | None:
    """The one of `letters` that `text` chooses, upper-case; None when it chooses none of them, or more than one.

    With a `marker` ("Final Answer:") only what follows its last occurrence counts. The letter comes first, alone or in
    brackets, or after words such as "the answer is"; "A good idea is B" chooses nothing.
    """
    if marker is not None:
        found = list(re.finditer(re.escape(marker), text, re.IGNORECASE))
        text = text[found[-1].end() :] if found else ""
    choice = _CHOICE.match(text.strip())
    if choice is None:
        return None
    lead, written, rest = choice.group("lead", "letter", "rest")
    letter, followed_by_words = written.upper(), re.match(r"[*_]*\s+\w", rest)
    # "A" and "I" are words, and so is a small letter; what follows tells whether they begin a sentence.
    doubtful = written.islower() or (letter in "AI" and re.match(r"[*_]*\s+[a-z]", rest))
    others = re.findall(r"(?:\bor\b|\band\b|[,/&])\W*([A-Z])\b", rest)
    if letter not in letters.upper() or (followed_by_words and doubtful and not lead) or set(others) & set(letters):
        return None
    return letter


def final_number(text: str) -> float | None:
    """The number an answer ends with: the one on its last `####` line (GSM8K), else the last one; None without any.

    Reads thousands separators, currency signs, a minus, decimals and plain fractions; a percentage as it is written.
    """
    matches = list(_MARKED_NUMBER.finditer(text)) or list(_ANY_NUMBER.finditer(text))
    if not matches:
        return None
    size, by = matches[-1].group("size", "by")
    value = Fraction(size.replace(",", "")) / (int(by or 1) or 1)
    return float(-value if matches[-1]["minus"] or matches[-1]["minus2"] else value)


def yes_no(text: str) -> bool | None:
    """True for yes, False for no, None where the answer states neither or both."""
    word = stated(text, ("yes", "no"))
    return None if word is None else word == "yes"


def stated(text: str, words: tuple[str, str]) -> str | None:
    """Which of two opposed words an answer begins with, or ends with after a colon; None for neither or both."""
    either = "|".join(words)
    first = re.match(rf"{_SET_OFF}({either})\b(?!\W*(?:(?:and|or|but)\W+)?(?:{either})\b)", text, re.IGNORECASE)
    last = re.search(rf":{_SET_OFF}({either})\W*$", text, re.IGNORECASE)
    found = {match.group(1).lower() for match in (first, last) if match}
    return found.pop() if len(found) == 1 else None


def _alias_tokens(alias: str) -> list[str]:
    tokens = _tokens(alias)
    bare = _bare(tokens)
    return tokens if set(bare) <= _TOO_COMMON else bare


def _bare(tokens: list[str]) -> list[str]:
    """Without articles; the last token is none: "vitamin A"."""
    return [token for token in tokens[:-1] if token not in _ARTICLES] + tokens[-1:]


def _tokens(text: str) -> list[str]:
    """Words and numbers as they are compared; initials are one word ("U.S." and "US" are "us")."""
    apart = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES).casefold().translate(_PLAIN))
    plain = unicodedata.normalize("NFC", "".join(c for c in apart if not "\u0300" <= c <= "\u036f"))
    plain = re.sub(r"(?<=\w)'s\b", "", plain).replace("'", "")
    plain = re.sub(r"\b([^\W\d_])\. ?(?=[^\W\d_]\b)", r"\1", plain)
    return [_WORD_NUMBERS.get(token, _number(token)) for token in _TOKEN.findall(plain)]


def _number(token: str) -> str:
    """1,000 and 7.0 as 1000 and 7; words as they are."""
    return re.sub(r"\.0+$", "", token.replace(",", ""))


def _stands_in(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
