"""Phrases by which English answers of assistants decline."""

import re

# A refusal is said at once; later sentences may hold "I can't" for other reasons.
SENTENCES = 2

_CANNOT = r"""(?:
    can't | cannot | can\ not | could\ not | couldn't | won't | will\ not | would\ (?:rather|prefer)\ not\ (?:to\ )? |
    'd\ (?:rather|prefer)\ not\ (?:to\ )? | (?:am|'m)\ (?:just\ |simply\ )?
    (?:unable\ to | not\ able\ to | not\ allowed\ to | not\ permitted\ to | not\ going\ to | not\ willing\ to |
       unwilling\ to | prohibited\ from | forbidden\ to)
)"""
# What an assistant is asked to do. Without one of these "I can't" tells of something else: "I can't believe how good".
_SERVE = r"""(?:
    help | assist | aid | support | provid | answer | respond | reply | give | giving | offer | shar | writ | creat |
    generat | produc | make | making | compos | draft | explain | describ | discuss | talk\ about | engag | suggest |
    recommend | advis | summari[sz] | translat | comply | fulfill? | proceed | go\ into | do\ (?:that|this|so) |
    tell\ you | plan | teach | instruct | list | participat
)"""
_REFUSALS = tuple(
    re.compile(pattern, re.VERBOSE)
    for pattern in (
        # I'm sorry, but I can't help with that. (Not: I can't recommend it enough.)
        rf"\bi\ ?{_CANNOT}\ (?:be\ )?(?:\w+\ )?{_SERVE}\w*\b(?![^.!?]*\ enough\b)",
        # I must respectfully decline; I have to say no; I refuse to.
        r"\bi\ (?:must|have\ to|need\ to|will\ have\ to|'ll\ have\ to)\ (?:\w+\ )?(?:decline|refuse|say\ no)\b",
        r"\bi\ (?:decline|refuse)\ to\b",
        r"\bi(?:'d|\ would)\ (?:rather|prefer)\ not\b",
        r"\bi(?:\ do\ not|\ don't|'m\ not|\ am\ not)\ (?:feel\ )?comfortable\b",
        r"^let's\ (?:not\b|talk\ about\ something\ else)",
        # That is something I can't do; beyond what I am able to.
        rf"\b(?:something|anything|what|request)\ (?:that\ )?i\ ?{_CANNOT}",
        r"\b(?:not|isn't|n't)\ (?:something|anything|a\ \w+)\ (?:that\ )?i(?:'m|\ am|\ can|\ could|\ will)\b",
        r"\b(?:outside|beyond)\ (?:of\ )?(?:what\ i|(?:my|the)\ (?:scope|abilities|capabilities))\b",
        # This would go against my guidelines; it wouldn't be right for me to.
        r"\b(?:against|violates?)\ (?:my|the|our)\ (?:\w+\ )?(?:guidelines|polic(?:y|ies)|programming|principles)\b",
        r"\b(?:would\ not|wouldn't|isn't|is\ not)\ (?:be\ )?(?:appropriate|ethical|right)\ (?:for\ me\ )?to\b",
    )
)
# "I can't list them all, but the common ones are ...": an answer after all, unless it only points elsewhere.
_ANSWERS_AFTER_ALL = re.compile(
    r"\b(?:but|however),? (?!i (?:can't|cannot|won't)|you (?:could|can|might|may)|(?:i )?(?:can|could|would|hope)|i'd|"
    r"we (?:could|can)|perhaps|maybe|please|feel free|let me)|\bin general\b|\bas a rule\b|\buntil then\b"
)


def find_refusal(text: str) -> bool:
    """Whether `text`, lower-case with plain apostrophes and single spaces, declines and gives nothing of an answer."""
    unquoted = re.sub(r'["“][^"“”]*["”]', "", text)
    start = " ".join(re.split(r"(?<=[.!?]) ", unquoted)[:SENTENCES])
    found = [match for pattern in _REFUSALS if (match := pattern.search(start))]
    return bool(found) and not _ANSWERS_AFTER_ALL.search(unquoted, min(match.end() for match in found))
