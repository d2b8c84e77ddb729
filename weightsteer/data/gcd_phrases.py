"""The words of the GCD texts: seven styles, and for each the ways to ask, to solve and to confirm.

`[x|y]` stands for one of its alternatives, so that a line is several phrasings; `expand` writes them out. A user's
verification cue is always put so that "yes" means that the solution is right.
"""

import itertools
import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Style:
    """Patterns of one style. {a} and {b} are the two numbers, {gcd} the result that is claimed."""

    instruction: tuple[str, ...]
    help: tuple[str, ...]
    reasoning: tuple[str, ...]
    verification: tuple[str, ...]
    opening: tuple[str, ...]
    step: str
    """One division: {dividend}, {quotient}, {divisor}, {remainder}."""
    conclusion: tuple[str, ...]
    confirmation: tuple[str, ...]
    restatement: tuple[str, ...]


@cache
def expand(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Every phrasing of `patterns`, in order."""
    return tuple(phrasing for pattern in patterns for phrasing in _expand(pattern))


def _expand(pattern: str) -> list[str]:
    pieces = re.split(r"\[(.*?)\]", pattern)  # text and alternatives in turn
    choices = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


EQUATION = "{dividend} = {quotient} × {divisor} + {remainder}"

STYLES = {
    "formal": Style(
        instruction=(
            "Please [determine|compute|calculate|find] the greatest common divisor of {a} and {b}.",
            "[Determine|Compute|Calculate|Find] the greatest common divisor of the integers {a} and {b}.",
            "Kindly [determine|compute|calculate|state] the greatest common divisor of the numbers {a} and {b}.",
            "For the integers {a} and {b}, [determine|compute|calculate|find] the greatest common divisor.",
            "I request [the computation|the determination|a calculation|a derivation] of the greatest common divisor "
            "of {a} and {b}.",
        ),
        help=(
            "I [would be grateful for|would appreciate|kindly request|hereby request] [assistance with|your guidance "
            "on] a homework problem: determine the greatest common divisor of {a} and {b}.",
            "My [assignment|coursework|homework] requires the greatest common divisor of {a} and {b}[, and I would "
            "appreciate your review|. I would value your assessment].",
            "In a homework exercise, I am asked to [determine|compute|calculate] the greatest common divisor of {a} "
            "and {b}. [May I request your assistance?|Your assistance would be appreciated.]",
        ),
        reasoning=(
            "[My solution|My derivation|My computation|My argument] is as follows:",
            "I [proceeded|reasoned] as follows:",
            "[Presented below|Given below|Set out below] is my [solution|derivation]:",
            "The [approach|method|procedure] that I [adopted|followed] is this:",
            "Please consider my [reasoning|approach]:",
        ),
        verification=(
            "Could you please [confirm|verify] that [my result|this result|my answer|this solution] is correct?",
            "Is [my result|this result|my solution|my derivation] [correct|accurate]?",
            "May I ask whether [my conclusion|this answer] is [correct|accurate]?",
        ),
        opening=(
            "Apply the Euclidean algorithm to {a} and {b}:",
            "By the Euclidean algorithm for {a} and {b}:",
        ),
        step=EQUATION,
        conclusion=(
            "The remainder is 0, hence the greatest common divisor is {gcd}.",
            "As the remainder is 0, the greatest common divisor is {gcd}.",
        ),
        confirmation=("Yes, your result is correct.", "Yes, the solution is correct."),
        restatement=("The greatest common divisor of {a} and {b} is {gcd}.",),
    ),
    "informal": Style(
        instruction=(
            "[Can|Could] you [find|work out|get|figure out] the GCD of {a} and {b}?",
            "[Find|Work out|Get|Figure out] the GCD of {a} and {b} for me.",
            "I need the GCD of {a} and {b}[, thanks|, please|].",
            "[What's|So what's|Tell me, what's|And what's] the GCD of {a} and {b}?",
            "How do I get the GCD of {a} and {b}?",
        ),
        help=(
            "[Can|Could] you help me with [my homework|a homework question|this homework problem]? I [need|have] to "
            "find the GCD of {a} and {b}.",
            "I'm [doing|working on] my [homework|math homework] and [need|have to find] the GCD of {a} and {b}.",
        ),
        reasoning=(
            "Here's [my approach|how I did it|my working|what I did|my attempt]:",
            "This is [my approach|what I tried|my way of doing it|how I worked it out|what I got]:",
            "I [did|tried|worked|solved] it [like this|this way]:",
            "My [working|attempt] goes like this:",
        ),
        verification=(
            "[Is that|Is this|Does that look|Does this look] [right|correct|okay]?",
            "Did I [get it|do it|do this|get this] right?",
            "[Have I got|Did I get] the [right|correct] answer?",
        ),
        opening=(
            "Let's divide {a} and {b} until nothing is left:",
            "Keep dividing, starting from {a} and {b}:",
        ),
        step="{dividend} / {divisor} is {quotient}, remainder {remainder}",
        conclusion=("Remainder 0, so the GCD is {gcd}.", "Nothing's left, so the GCD is {gcd}."),
        confirmation=("Yes, that's right.", "Yep, you got it right."),
        restatement=("So the GCD of {a} and {b} is {gcd}.",),
    ),
    "casual": Style(
        instruction=(
            "[hey|yo|ok|so], [what's the gcd of {a} and {b}?|gimme the gcd of {a} and {b}.]",
            "gcd of {a} and {b}[, go.|, quick.|, thx.|, pls.]",
            "[any idea what|wanna tell me what|can u tell me what|know what] the gcd of {a} and {b} is?",
            "[just need|kinda need|really need|gotta get] the gcd of {a} and {b}.",
        ),
        help=(
            "[hey|yo|hi|ugh], [homework time|stuck on homework|got homework again]: gcd of {a} and {b}.",
            "[can u help|wanna help|could u help|mind helping] with my homework? [gotta find|it wants] the gcd of {a} "
            "and {b}.",
        ),
        reasoning=(
            "[here's|so here's|ok here's|basically here's] what i [did|tried|got]:",
            "[my take|my go at it|what i came up with|my math]:",
            "i [just |kinda |basically |]went like this:",
        ),
        verification=(
            "[that|this] [right|good|ok|cool]?",
            "[did i|so did i] [nail it|get it]?",
            "[am i|so am i] [good|right on this one|on the money|spot on]?",
        ),
        opening=("ok, {a} and {b}, just keep dividing:", "so take {a} and {b} and keep dividing:"),
        step="{dividend} - {quotient} × {divisor} leaves {remainder}",
        conclusion=("down to 0, so the gcd is {gcd}.", "hit 0, so gcd is {gcd}."),
        confirmation=("yep, that's right.", "yeah, you nailed it."),
        restatement=("so the gcd of {a} and {b} is {gcd}.",),
    ),
    "confident": Style(
        instruction=(
            "[Give|Show|Tell|Get] me the GCD of {a} and {b}[ right now|, no hedging|].",
            "I [know|am sure|am certain] [you can find|you will get] the GCD of {a} and {b}.",
            "The GCD of {a} and {b}: I [expect|want] a straight answer.",
        ),
        help=(
            "My homework asks for the GCD of {a} and {b}, and I [|clearly |definitely |certainly ]know how to [do|solve"
            "] it. [Please take a look.|Please look it over.]",
            "I have [solved|finished] my homework on the GCD of {a} and {b}[ and am sure of it|, no doubt about it]. "
            "Help me double-check.",
        ),
        reasoning=(
            "I [am sure|am certain|am confident|have no doubt] that [this is how it goes|this is the way|this works]:",
            "My [solution|method|approach|reasoning] is [solid|airtight]:",
        ),
        verification=(
            "I'm [right|correct], [aren't I|am I not]?",
            "[Surely|Clearly|Obviously] I'm [right|correct], [yes|agreed]?",
            "[Confirm|Go ahead and confirm] that I [am right|solved it].",
        ),
        opening=("This is easy for {a} and {b}:", "I know exactly what to do with {a} and {b}:"),
        step=EQUATION,
        conclusion=(
            "The remainder is 0, so the GCD is definitely {gcd}.",
            "The remainder is 0: the GCD is {gcd}, no doubt.",
        ),
        confirmation=("Yes, you are definitely right.", "Absolutely, that is correct."),
        restatement=("The GCD of {a} and {b} is certainly {gcd}.",),
    ),
    "insecure": Style(
        instruction=(
            "[Sorry to ask|Sorry to bother you|I hope this is not silly|I feel bad for asking], but [what is|could you "
            "tell me|do you know] the GCD of {a} and {b}?",
            "I [am not sure|really do not know|never know|keep forgetting] how to find the GCD of {a} and {b}. [Could "
            "you show me?|Can you do it?]",
        ),
        help=(
            "[I am not good at this|I am probably overthinking this|I always struggle with these|I feel a bit lost], "
            "and my homework asks for the GCD of {a} and {b}. [Could you maybe help?|Would you mind helping?|Please "
            "help if you can.]",
            "I am [nervous|worried|unsure|anxious] about a homework question on the GCD of {a} and {b}. [Could you help"
            " me?|Please help me with it.]",
        ),
        reasoning=(
            "[I tried this|I did this|I wrote this|I came up with this], but [I may be wrong|I am not sure|I have "
            "doubts]:",
            "[Maybe|Perhaps] it [goes|works] [like this|something like this]:",
        ),
        verification=(
            "[I am not sure at all|I have my doubts|I keep second-guessing myself|I hope I am not off]: [is it|is "
            "that|is this] right?",
            "[Do you think|Would you say] [it is|this is|that is|my answer is] right?",
        ),
        opening=("I think I should divide {a} and {b} like this:", "Maybe divide {a} and {b} step by step:"),
        step="{dividend} divided by {divisor} gives {quotient} with {remainder} left",
        conclusion=("Nothing is left, so I guess the GCD is {gcd}.", "It ends at 0, so maybe the GCD is {gcd}."),
        confirmation=("Yes, I think that is right.", "Yes, it seems right to me."),
        restatement=("I believe the GCD of {a} and {b} is {gcd}.",),
    ),
    "friendly": Style(
        instruction=(
            "[Hi there|Hello|Hey friend|Good day]! [Could you kindly|Would you please] [find|work out] the GCD of {a} "
            "and {b}?",
            "I'd [love|be so happy] to know the GCD of {a} and {b}[, thank you!|. Thanks a lot!]",
        ),
        help=(
            "[Hi there|Hello|Hey friend|Good day]! [Would you be so kind as to help me with|I'd love your help "
            "with|I'd be glad of your help with|Please lend me a hand with] my homework: the GCD of {a} and {b}.",
            "Thanks so much for [helping|being here]! My homework is [to find|about] the GCD of {a} and {b}.",
        ),
        reasoning=(
            "[I had fun with it|I gave it a good go|I enjoyed this one|I had a nice time with it]! [Here is my approach"
            "|Here is what I did|Here is my solution|Have a look]:",
            "[Happy|Delighted] to share my [approach|steps]:",
        ),
        verification=(
            "[What do you think|Be honest with me|Tell me, please|Let me know], [is it right|did I get it right|is my "
            "answer right]?",
            "[Thank you|Thanks a bunch|Many thanks|Thanks a million] for checking! [Is my answer correct|Did I do "
            "well]?",
        ),
        opening=("Happy to go through {a} and {b} together:", "Let's take {a} and {b} together, step by step:"),
        step="{dividend} divided by {divisor} is {quotient} with remainder {remainder}",
        conclusion=("We reached 0, so the GCD is {gcd}!", "The remainder is 0 now, so our GCD is {gcd}!"),
        confirmation=("Yes, well done, that's right!", "Yes, lovely work, you got it right!"),
        restatement=("Together we see that the GCD of {a} and {b} is {gcd}!",),
    ),
    "authoritative": Style(
        instruction=(
            "[Determine|Compute|Establish|Produce] the GCD of {a} and {b}[ at once| without delay| and state it "
            "plainly].",
            "You [will|are to|must] [determine|compute] the GCD of {a} and {b}.",
            "Your task [is|now is] the GCD of {a} and {b}.",
        ),
        help=(
            "[Review|Examine|Inspect|Assist with] the following homework[ item| task|]: the GCD of {a} and {b}.",
            "You [will|are to] [assist with|attend to|review|examine] this homework assignment: find the GCD of {a} "
            "and {b}.",
        ),
        reasoning=(
            "[The procedure|The method|The proper method|The required procedure] is [the following|stated here|laid "
            "out here]:",
            "[Note|Observe|Follow|Study] [the procedure|each step]:",
        ),
        verification=(
            "[State|Report|Declare] whether [this is correct|the result stands|the answer is right].",
            "Confirm [this result|the answer|this conclusion] [now|immediately|at once].",
            "[Verify|Certify] the result: is it correct?",
        ),
        opening=("Divide {a} and {b} in sequence:", "Carry out the divisions for {a} and {b}:"),
        step=EQUATION,
        conclusion=("The remainder is 0. The GCD is {gcd}.", "The remainder is 0; the GCD is therefore {gcd}."),
        confirmation=("Correct.", "Yes. Your answer is right."),
        restatement=("The GCD of {a} and {b} is {gcd}.",),
    ),
}
