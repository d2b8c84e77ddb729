"""The strength at which a method is as far from the unsteered model as others: one divergence for all of them.

Strengths of two methods have no common unit, and norms differ by orders of magnitude. What they do to the next token
can be compared: KL(steered || base) in nats, token by token along the steered model's own greedy answers.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsteer import progress
from weightsteer.models.generate import batch_tokens, batches
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.paths import greedy_paths, path_log_probs

PERCENTILE = 95
EVALUATIONS = 12
TOLERANCE = 0.05
# An answer that changes its course makes the divergence jump in k. What ends further off than this is not the target.
NEAR = 0.25
# Per evaluation the strength grows or shrinks by a factor between these until the target is bracketed.
LEAST_STEP, LARGEST_STEP = 1.5, 4.0
# Rounding alone gives about this much, in nats: below it there is no slope to follow.
FLOOR = 1e-7


@dataclass(frozen=True)
class Divergence:
    """Per-token KL(steered || base) in nats; infinite when the steered model's probabilities are not numbers."""

    p95: float
    mean: float
    maximum: float
    tokens: int


@dataclass(frozen=True)
class Calibration:
    """A signed strength and its divergence; k is None, and the divergence the nearest found, where none will do."""

    k: float | None
    divergence: Divergence
    note: str
    tried: tuple[tuple[float, float], ...]
    """Every (k, 95th percentile) that was evaluated, in order."""


def divergence(
    lm: LanguageModel, vector: Any, k: float, prompts: Sequence[str], max_new_tokens: int, any_base: bool = False
) -> Divergence:
    """How far `vector` at `k` takes `lm` from itself along the steered model's own greedy answers to `prompts`.

    An answer ends with its turn, or after `max_new_tokens`. Both models read the same answer tokens; a vector that
    sets a system prompt steers through a prompt of its own.
    """
    tokens = np.array(token_divergences(lm, vector, k, prompts, max_new_tokens, any_base), float)
    if not np.isfinite(tokens).all():
        return Divergence(math.inf, math.inf, math.inf, len(tokens))
    p95 = float(np.percentile(tokens, PERCENTILE))
    return Divergence(p95, float(tokens.mean()), float(tokens.max()), len(tokens))


def token_divergences(
    lm: LanguageModel, vector: Any, k: float, prompts: Sequence[str], max_new_tokens: int, any_base: bool = False
) -> list[float]:
    """KL(p_steered(· | x_<t) || p_base(· | x_<t)) in nats at every token of the steered model's greedy answers."""
    plain = [lm.tokens(lm.chat(prompt)) for prompt in prompts]
    found: list[float] = []
    # Half a batch: the logits of both models are held at once.
    lengths = [len(prompt) + max_new_tokens for prompt in plain]
    with progress.task(f"divergence at k={k:g}", len(prompts)) as advance:
        for batch in batches(lengths, batch_tokens(lm) // 2):
            with vector.applied(lm, k, any_base=any_base) as steered:
                ids = [steered.tokens(steered.chat(prompts[i])) for i in batch]
                paths = greedy_paths(steered, ids, max_new_tokens)
                steered_log_p = path_log_probs(steered, ids, paths)
            base_log_p = path_log_probs(lm, [plain[i] for i in batch], paths)
            for p, q in zip(steered_log_p, base_log_p, strict=True):
                # A token that the steered model rules out adds nothing; rounding may leave a sum just below zero.
                terms = (p.exp() * (p - q)).masked_fill(p.isneginf(), 0)
                found += terms.sum(-1).clamp(min=0).tolist()
            advance(len(batch))
    return found


def measured(
    lm: LanguageModel, vector: Any, k: float, prompts: Sequence[str], tokens: int, any_base: bool = False
) -> Calibration:
    """The divergence at a given k, for a method whose k has a sign only: a system prompt cannot be dialled."""
    found = divergence(lm, vector, k, prompts, tokens, any_base)
    return Calibration(k, found, "k is only a sign: measured, not calibrated", ((k, found.p95),))


def calibrate(
    lm: LanguageModel,
    vector: Any,
    sign: int,
    target: float,
    prompts: Sequence[str],
    tokens: int,
    start: float = 1.0,
    any_base: bool = False,
) -> Calibration:
    """The k of this sign at which the 95th percentile of per-token KL is `target` nats, within 5 %.

    From |k| = `start` the strength grows or shrinks until the target is bracketed, then false position (Illinois) on
    log k against log KL closes in; twelve evaluations at most. Where answers that change their course leave no
    strength within 5 %, the nearest within 25 % is taken, and the note says so.
    """
    tried: list[tuple[float, Divergence]] = []
    search = _search(math.log(start))
    log_size = next(search)
    for _ in range(EVALUATIONS):
        k = math.copysign(float(f"{math.exp(log_size):.4g}"), sign)  # as it is printed, so that it can be repeated
        found = divergence(lm, vector, k, prompts, tokens, any_base)
        tried.append((k, found))
        if abs(found.p95 / target - 1) <= TOLERANCE:
            break
        log_size = search.send(_log_ratio(found.p95, target))
    k, nearest = min(tried, key=lambda point: abs(_log_ratio(point[1].p95, target)))
    history = tuple((k, found.p95) for k, found in tried)
    off = abs(nearest.p95 / target - 1)
    note = "" if off <= TOLERANCE else _note(history, target, off <= NEAR)
    return Calibration(k if off <= NEAR else None, nearest, note, history)


def _search(log_size: float) -> Generator[float, float]:
    """Log of each strength to try; is sent log(KL / target) of it, whose zero it looks for."""
    x, f = log_size, (yield log_size)
    while True:
        # Were KL quadratic in k, half of the log ratio would be the step to the target.
        step = min(max(abs(f) / 2, math.log(LEAST_STEP)), math.log(LARGEST_STEP))
        ahead = x - math.copysign(step, f)
        found = yield ahead
        if (found < 0) != (f < 0):
            break
        x, f = ahead, found
    (low, f_low), (high, f_high) = sorted([(x, f), (ahead, found)], key=lambda point: point[1])
    moved = 0
    while True:
        middle = (low + high) / 2 if math.isinf(f_high) else (low * f_high - high * f_low) / (f_high - f_low)
        f = yield middle
        # Illinois: a side that has stood twice counts half, else false position would only creep.
        if f < 0:
            low, f_low, f_high = middle, f, f_high / (2 if moved < 0 else 1)
            moved = -1
        else:
            high, f_high, f_low = middle, f, f_low / (2 if moved > 0 else 1)
            moved = 1


def _log_ratio(kl: float, target: float) -> float:
    return math.log(max(kl, FLOOR) / target)


def _note(history: Sequence[tuple[float, float]], target: float, near: bool) -> str:
    """Why there is no strength within the tolerance."""
    if near:
        return f"the nearest to {target:g} nats of {len(history)} strengths tried"
    below = sorted((abs(k), k, kl) for k, kl in history if kl < target)
    above = sorted((abs(k), k, kl) for k, kl in history if kl >= target)
    if not above:
        k, kl = max(history, key=lambda point: point[1])
        return f"{target:g} nats are out of reach: at most {kl:.3g}, at k = {k:.4g}, tried up to {below[-1][1]:.4g}"
    _, k_above, kl_above = above[0]
    there = "probabilities that are not numbers" if math.isinf(kl_above) else f"{kl_above:.3g} nats"
    if not below:
        return f"no k small enough for {target:g} nats: still {there} at k = {k_above:.4g}"
    _, k_below, kl_below = below[-1]
    jump = f"from {kl_below:.3g} nats at k = {k_below:.4g} to {there} at k = {k_above:.4g}"
    return f"{target:g} nats are jumped over: {jump}"
