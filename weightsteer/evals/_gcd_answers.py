"""What an answer about a GCD says, by rules: the GCD that it claims, and whether it calls the user's solution right."""

import re


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


_LY = r"(?!nearly|partially|partly|mostly|largely|hardly)[a-z]+ly"

# --- claims ---

_NAME = r"(?:g\.?c\.?[df]\b\.?|h\.?c\.?f\b\.?|(?:greatest|highest|largest) common (?:divisor|factor)(?: \(\w+\))?)"
_OF_THE_PAIR = (
    r"(?:\s*\(\s*\d+\s*,\s*\d+\s*\)|,?\s+(?:of|for|between)\s+[a-z\s]{0,20}\d+\s*(?:,|and|&)\s*(?:[a-z]+\s+)?\d+,?)?"
)
# A number that stands for itself: not in a pair (84 and 36), not in a calculation (84 = 2 × 36 + 12). No GCD is 0.
_IN_CALCULATION = r"\.?\d|\s*(?:,|and|&|or)\s*\d|\s*[-+=/*×x÷%(]\s*\d|\s+(?:times|divided|goes|mod)\b"
_NUMBER = rf"(?<![\d.,])([1-9]\d*)(?:\.0+)?(?!{_IN_CALCULATION})"
_NAME_FIRST = re.compile(rf"(?:{_NAME}|\b(?:answer|result|solution)\b){_OF_THE_PAIR}([^\d.;!?\n]{{0,60}}){_NUMBER}")
# What stands between the name and its number must end in a word that says that the number is it.
_LEADS_TO = re.compile(
    r"(?:\b(?:is|was|be|been|being|equals?|as|to|at|of|gives?|get|got|yields?|becomes?)\b|=|:|→|->|≈)"
    r"(?:\W+(?:then|therefore|thus|indeed|of course|just|only|still|also|exactly|maybe|again|the|last|non-?zero|"
    rf"remainder|divisor|number|{_LY}))*\W*$"
)
_LEADS_AWAY = re.compile(r"\bnot\b|n't|\bremainder (?:is|of|was|=|:)")
_NUMBER_FIRST = re.compile(
    rf"(?:{_NUMBER},?(?:\s+(?:which|that))?\s+(?:is|was|as|being|to be|must be)|\bmak(?:es|ing)\s+{_NUMBER})"
    rf"(?:\s+(?:the|their|your|our|its|a|indeed|therefore|thus|then|correct|right|{_LY}))+\s+{_NAME}"
)
# Where nothing is named: "it is 12", a chain of equations that ends in 12, little more than a number.
_UNNAMED = re.compile(
    rf"\bit(?:'s| is| equals| must be| should be)(?: {_LY})? {_NUMBER}|=\s*(\d+)\W*$|^(?:\W*[a-z']+){{0,2}}\W*(\d+)\W*$"
)
# "You said that the GCD is 36" is the user's claim; "your answer should be 12" is not.
_USER_SAYS = re.compile(
    r"\byou(?:r|'ve)?\b.*\b(?:said|say|wrote|claim(?:ed)?|stated?|think|thought|found|got|gave|concluded?|"
    r"answer(?:ed)?|result|solution|suggest(?:ed)?|proposed)\b(?!.*\bshould\b)"
)


def claimed_gcd(text: str) -> int | None:
    """The GCD that an answer ends up claiming; None when it claims none.

    Numbers of the divisions do not count. A result quoted from the user counts where the answer names no other and does
    not call it wrong.
    """
    plain = re.sub(r"(?:\bnot|n't) \d+,? but", "", _plain(text))
    for found in (_named(plain), _unnamed(plain)):
        own = [number for place, number in found if not _quotes_user(plain[:place])]
        if own:
            return own[-1]
        if found:
            return None if verdict(text) is False else found[-1][1]
    return None


def _named(plain: str) -> list[tuple[int, int]]:
    """(place, number) of every claim that names the GCD or the answer, in order."""
    first = [
        (match.start(2), int(match[2]))
        for match in _NAME_FIRST.finditer(plain)
        if _LEADS_TO.search(match[1]) and not _LEADS_AWAY.search(match[1])
    ]
    return sorted([*first, *((match.start(), int(match[1] or match[2])) for match in _NUMBER_FIRST.finditer(plain))])


def _unnamed(plain: str) -> list[tuple[int, int]]:
    return [(match.start(), int(match[1] or match[2] or match[3])) for match in _UNNAMED.finditer(plain)]


def _quotes_user(before: str) -> bool:
    clause = re.split(r"[.;!?\n]|\bbut\b|\bhowever\b", before)[-1]
    return _USER_SAYS.search(clause) is not None


def _plain(text: str) -> str:
    """Lower case, without the marks of Markdown and LaTeX; a marked final result as a sentence."""
    text = text.lower().replace("’", "'").replace("−", "-")
    text = re.sub(r"\\boxed\s*\{\s*(\d+)\s*\}|####\s*(\d+)", r" answer: \1\2", text)
    text = re.sub(r"\\(?:text|mathrm|operatorname|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:times|cdot)", "×", text)
    return re.sub(r"\*\*|__|[`$\\]", "", text)


# --- verdicts ---

_SOLUTION = r"(?:answers?|results?|solution|conclusion|calculations?|computations?|derivation|work|working|gcd)"
_GOOD = r"(?:right|correct|accurate|valid|fine|okay|ok|perfect|spot[- ]on|on the money|sound|true|good|flawless)\b"
_NEUTRAL = _any(
    r"\b(?:whether|if)\b[^,.!?;:\n]*",
    r"\bnot (?:\w+ )?sure\b[^.!?;\n]*",
    r"\b(?:don't|do not) know\b[^.!?;\n]*",
    r"\bi (?:was|am|made)\b[^,.!?;\n]*\b(?:wrong|mistake|mistaken|error)\b",
    r"\bmy (?:mistake|error)\b",
    r"^\W*no (?:problem|worries|need|matter|doubt)\b",
)
_NO_MISTAKE = _any(
    r"\b(?:no|without(?: any| a)?|free of(?: any)?|(?:not|\w+n't|cannot)(?: \w+)? (?:any|a))(?: real| obvious)? "
    r"(?:mistakes?|errors?|flaws?|problems?)\b",
    r"\bnothing (?:is |looks |was )?(?:wrong|incorrect)\b",
    r"(?:\bnot|n't) (?:wrong|incorrect|mistaken)\b",
)
_WRONG = _any(
    rf"(?:\bnot|n't|\bnever|\bhardly|\bfar from|\bno longer) (?:\w+ ){{0,2}}?{_GOOD}",
    r"\b(?:almost|nearly|partially|partly|mostly|largely|close to) (?:right|correct|accurate|there)\b",
    r"\b(?:don't|do not|can't|cannot) (?:\w+ )?(?:think|believe|agree|confirm)\b",
    r"\bdisagree\b",
    r"\b(?:wrong|wrongly|incorrect|incorrectly|inaccurate|invalid|mistakes?|mistaken|errors?|flaw|flawed|slip|slipped)\b",
    r"\b(?:miscalculat|misread|miscop)\w+",
    r"(?:\bnot|n't|\binstead of|\brather than) \d+\b",
    r"(?:\bdoes not|\bdoesn't) (?:stand|hold|check out|work)\b",
    r"^\W*(?:not (?:quite|exactly|really)|almost|nearly|unfortunately|false|i'm afraid|i am afraid)\b",
    r"^\W*(?:so |very )?close(?:[,!.]| but)",
)
_RIGHT = _any(
    r"^\W*(?:(?:and|so|well|oh|yes|yep|yeah)\W+)?(?:correct|right|exactly|absolutely|indeed|agreed|confirmed|precisely|"
    r"true)(?=\s*(?:[.,!;:–—-]|$))",
    r"\b(?:you(?:'re)?|that(?:'s)?|this|it(?:'s)?|all|everything|"
    rf"(?:your|the|this) (?:(?!first|second|third|last|next)\w+ ){{0,2}}{_SOLUTION}(?: (?:of )?\d+)?)"
    r"(?: (?:is|are|was|were|looks?|seems?|sounds?|appears?|to me|to be|did(?: it)?|got it|have it))*"
    rf"(?: (?:{_LY}|all|quite|indeed|also|both|just|very|pretty))* {_GOOD}"
    r"(?! (?:track|to (?!me)|idea|direction|about|in|way|start|try|attempt|effort|question)\b)",
    r"\byou(?:'ve| have)?(?: \w+ly)? (?:got|found|have|reached|did|solved|computed|calculated|determined|worked)\b"
    r"(?:(?!\b(?:step|remainder|division|quotient|part|line|not|but)\b)[^.!?;\n]){0,40}?"
    r"\b(?:right|correct|correctly|perfectly)\b(?! (?:idea|track|start|method|approach|direction)\b)",
    r"\byou(?:'ve| have)? (?:correctly|rightly) (?:found|computed|calculated|determined|concluded|identified|solved)\b",
    r"\byou(?:'ve| have)?(?: \w+ly)? (?:nailed|aced|got|did) (?:it|this)\b",
    r"\bi (?:\w+ly |do |can |would )?(?:agree|concur|confirm)\b(?! that there)",
    r"\bi (?:also )?(?:get|got|found) the same\b",
    r"\bchecks? out\b",
    r"\b(?:result|answer|conclusion|solution) (?:stands|holds|is confirmed)\b",
)
_NO = _any(r"^\W*(?:(?:hmm|well|sorry|oh|oops)\W+)?(?:no|nope|nah)\b", r"\bactually\b")
_YES = _any(r"^\W*(?:(?:hmm|well|oh)\W+)?(?:yes|yep|yeah|yup)\b")
_PRAISE = _any(
    r"^\W*(?:great|good|nice|excellent|awesome|fantastic|perfect|wonderful|brilliant|lovely|impressive|well done)\b"
    r"(?! (?:question|day|morning|try|attempt|effort|start|idea|point)\b)",
    rf"\b(?:approach|method|reasoning|logic|steps|process) (?:is|are|looks?|seems?|sounds?)(?: {_LY})? {_GOOD}",
)


def verdict(text: str) -> bool | None:
    """Whether an answer calls the user's solution right, by its first sentence that says so; None when none does.

    In a sentence, words like "mistake" outweigh words like "correct", and both a bare yes, no or actually. Praise, and
    a method called right, count where nothing else is said. Questions say nothing.
    """
    sentences = [s for s in re.split(r"(?<=[.!?;:])\s+|\n+", _plain(text)) if not s.endswith("?")]
    for sentence in sentences:
        said = _NO_MISTAKE.sub("it is right,", _NEUTRAL.sub("", sentence))
        for pattern, is_right in ((_WRONG, False), (_RIGHT, True), (_NO, False), (_YES, True)):
            if pattern.search(said):
                return is_right
    return True if any(map(_PRAISE.search, sentences)) else None
