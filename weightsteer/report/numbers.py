"""How a number, an interval, a strength or a duration is written: sign, rounding, and what is missing."""

import math
from collections.abc import Sequence

from weightsteer.stats import Estimate

# JSON tells 2 from 2.0, and a report may hold either.
Real = float | int

NOT_SCORED = "not scored"


def number(value: Real | None) -> str:
    """A value with as many decimals as its size deserves, or the words for none."""
    if value is None or not math.isfinite(value):
        return NOT_SCORED
    return _fixed(value, _decimals(value))


def level(estimate: Estimate | None) -> str:
    """A mean and its interval."""
    return NOT_SCORED if estimate is None else f"{_mean(estimate, '')} {interval(estimate, '')}"


def change(estimate: Estimate | None) -> str:
    """A difference and its interval, signs shown."""
    return NOT_SCORED if estimate is None else f"{_mean(estimate, '+')} {interval(estimate)}"


def difference(estimate: Estimate | None) -> str:
    """A difference without its interval, sign shown."""
    return NOT_SCORED if estimate is None else _mean(estimate, "+")


def interval(estimate: Estimate, plus: str = "+") -> str:
    """The interval alone, rounded like its mean."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return "(no interval)"
    places = _places(estimate)
    return f"[{_fixed(estimate.low, places, plus)}, {_fixed(estimate.high, places, plus)}]"


def strength(k: Real | None) -> str:
    """A k as it is said: -1.0 is −1."""
    return "none" if k is None else f"{k:g}".replace("-", "−")


def percent(share: Real | None) -> str:
    """A share of one in percent; never rounded up to all or down to nothing."""
    if share is None or not math.isfinite(share):
        return NOT_SCORED
    if 0.9995 <= share < 1:
        return "over 99.9 %"
    if 0 < share < 0.00005:
        return "under 0.01 %"
    if 0 < share < 0.01:
        return f"{100 * share:.2f} %"
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def duration(seconds: Real | None) -> str:
    """Seconds in the units a reader wants: 372 is 6 min 12 s."""
    if seconds is None or not math.isfinite(seconds):
        return "not measured"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def sentence(text: str) -> str:
    """A text with a capital first, unless that is the strength k, and a full stop last."""
    return (text if text.startswith("k =") else text[:1].upper() + text[1:]) + (
        "" if not text or text.endswith(".") else "."
    )


def listed(names: Sequence[str]) -> str:
    """Names with commas and an "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def excludes_zero(estimate: Estimate | None) -> bool:
    """Whether the interval lies wholly on one side of zero."""
    return estimate is not None and (estimate.low > 0 or estimate.high < 0)


def _mean(estimate: Estimate, plus: str) -> str:
    return _fixed(estimate.mean, _places(estimate), plus)


def _places(estimate: Estimate) -> int:
    """Mean and bounds share the decimals that the largest of them deserves."""
    return _decimals(max(abs(v) for v in (estimate.mean, estimate.low, estimate.high) if math.isfinite(v)))


def _decimals(value: Real) -> int:
    """Three for a share or a log-odds, fewer for what is large, more for what is small."""
    if abs(value) < 1e-8 or 0.005 <= abs(value) < 10:
        return 3
    order = math.floor(math.log10(abs(value)))
    return max(0, 3 - order) if order > 0 else 1 - order


def _fixed(value: Real, places: int, plus: str = "") -> str:
    # A bound just below zero is written −0.000: its side of zero is what it is read for.
    return ("−" if value < 0 else plus if value > 0 else "") + f"{abs(value):.{places}f}"
