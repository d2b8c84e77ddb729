"""How the report of the study `mechanism` names vectors and says shares."""

from collections.abc import Mapping, Sequence

from weightsteer.report import numbers
from weightsteer.stats import Estimate
from weightsteer.studies.mechanism import Settings

# Name of a vector -> what it is called.
LABELS = {
    "means": "mean difference",
    "next-token": "next token",
    "preference": "preferences",
    "weights": "weights",
}
PUBLISHED_MODELS = "Gemma 2 2B and Llama 3.2 3B"
SOURCE = "arXiv 2604.08524"


def told(share: Estimate | None) -> str:
    """A share in percent with its interval."""
    if share is None:
        return numbers.NOT_SCORED
    return f"{round(100 * share.mean)} % [{round(100 * share.low)}, {round(100 * share.high)}]".replace("-", "−")


def lost(share: Estimate | None) -> Estimate | None:
    """What is lost where this share is left."""
    return None if share is None else Estimate(1 - share.mean, 1 - share.high, 1 - share.low)


def nothing(labels: Sequence[str]) -> str:
    """Says of which vectors there is nothing to explain; empty where there are none."""
    if not labels:
        return ""
    return (
        f"The effect of {numbers.listed(labels)} cannot be told from zero on these questions, so of "
        f"{'it' if len(labels) == 1 else 'them'} there is nothing to explain."
    )


def labels(names: Sequence[str]) -> str:
    return numbers.listed([LABELS[name] for name in names])


def sentences(*parts: str) -> str:
    """What is not empty, in a row."""
    return " ".join(part for part in parts if part)


def effect_note(settings: Settings) -> str:
    """What is measured, in words."""
    return (
        f"Effect: log-likelihood per token (nats) of the answer that shows {settings.behavior} less that of the other, "
        "on held-out questions, steered less unsteered. Intervals: 95 %, over questions."
    )


def strengths_note(settings: Settings, lengths: Mapping[str, float]) -> str:
    """How strongly each vector acts, and why."""
    found = numbers.listed([f"{LABELS[name]} {numbers.number(length)}" for name, length in lengths.items()])
    return (
        f"Strengths are set by hand, not fitted: all three activation vectors have the length of the mean "
        f"difference, times {settings.k:g}, at every token; the weight vector is added {settings.k_weights:g} times. "
        f"Effects are compared as shares of each vector's own. Lengths as they were found: {found}."
    )
