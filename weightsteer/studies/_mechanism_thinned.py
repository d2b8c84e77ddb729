"""The stages of the study `mechanism` on what can be left out: dimensions of activations, elements of weights."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightsteer.activations.mechanism.sparsify import (
    Sparse,
    attribute,
    baselines,
    forced_metrics,
    only_direction,
    overlaps,
    sparsify,
)
from weightsteer.stats import weighted_mean
from weightsteer.studies._mechanism_bench import ACTIVATIONS, WEIGHTS, Bench
from weightsteer.studies._mechanism_circuits import compared, forced
from weightsteer.weights.sparsify import effect_curve, only, share_of_parameters, thinned
from weightsteer.weights.vector import WeightVector

ATTRIBUTION = "attribution"
# The vector that is thinned by every rule.
THINNED = "means"
RULES = {"magnitude": "largest elements", "random": "random (DARE)", "rank": "largest singular directions"}
BLOCKS, KINDS = "largest blocks", "kinds of modules"


def sparsify_activations(bench: Bench) -> Any:
    """Effect of the difference in means by share of its dimensions kept, and the kept dimensions of all three."""
    settings = bench.given.settings

    def work(folder: Path) -> Any:
        effects = {name: attributed(bench, name) for name in ACTIVATIONS}
        known = {name: found for name, found in effects.items() if found is not None}
        masks = {name: sparsify(bench.vectors[name], found, settings.threshold).mask for name, found in known.items()}
        shared = [{"one": a, "other": b, **asdict(found)} for (a, b), found in overlaps(masks).items()]
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        result = {"dimensions": bench.vectors[THINNED].directions[bench.block].numel(), "kept": kept, "shared": shared}
        if THINNED not in known:
            return {**result, "whole": None, "curves": {}}
        versions = sparse_versions(bench, known[THINNED])
        return {**result, **curves(bench, THINNED, bench.vectors[THINNED], versions)}

    keys = ("prompts", "answer_tokens", "steps", "thresholds", "threshold")
    return bench.stage("sparse", keys, work, **bench.of_vectors(*ACTIVATIONS))


def attributed(bench: Bench, name: str) -> Any:
    """Effect of every dimension of an activation vector, float64; None where no token tells it from nothing."""
    examples = forced(bench, name)
    if compared(bench, name, examples) is None:
        return None
    vector, k = bench.vectors[name], bench.k(name)
    metrics = forced_metrics(bench.lm, vector, k, examples)
    return attribute(bench.lm, vector, k, metrics, bench.given.settings.steps, label=f"dimensions of {name}").effects


def sparse_versions(bench: Bench, effects: Any) -> dict[str, list[tuple[float, Any]]]:
    """Rule -> share of the dimensions kept, and the vector; r that would keep nothing are left out."""
    settings, vector = bench.given.settings, bench.vectors[THINNED]
    _, direction = only_direction(vector)
    present = direction != 0
    ratios = (effects.abs() / effects.norm())[present] / (direction.double().abs() / direction.double().norm())[present]
    found: dict[str, list[tuple[float, Any]]] = {}
    for r in sorted(settings.thresholds):
        if r > ratios.max():
            continue
        chosen = sparsify(vector, effects, r)
        rules: dict[str, Sparse] = {ATTRIBUTION: chosen, **baselines(vector, effects, chosen.kept, settings.seed)}
        for rule, one in rules.items():
            found.setdefault(rule, []).append((one.share, one.vector))
    return found


def thin_weights(bench: Bench) -> Any:
    """Effect of the weight vector by share kept: of elements and ranks, of whole blocks, of kinds of modules."""
    settings = bench.given.settings

    def work(folder: Path) -> Any:
        vector = bench.weights
        rules: dict[str, Any] = {label: thin_versions(bench, rule) for rule, label in RULES.items()}
        rules[BLOCKS] = block_versions(vector, settings.weight_shares)
        kinds = {kind: only(vector, kinds=[kind]) for kind in vector.norm_by_kind()}
        found = curves(
            bench,
            WEIGHTS,
            vector,
            {**rules, KINDS: [(share_of_parameters(one, vector), one) for one in kinds.values()]},
        )
        alone = dict(zip(kinds, found["curves"].pop(KINDS), strict=True))
        return {**found, "kinds": alone, "rank": vector.rank}

    return bench.stage("thinned", ("weight_shares",), work, **bench.of_vectors(WEIGHTS))


def curves(bench: Bench, name: str, vector: Any, rules: Mapping[str, Iterable[tuple[float, Any]]]) -> dict[str, Any]:
    """The effect of the whole vector, and of every rule a point for each share kept."""
    change, seed = bench.change(name), bench.given.settings.seed
    of: list[str] = []

    def versions() -> Iterator[tuple[float, Any]]:
        for rule, thinner in rules.items():
            for version in thinner:
                of.append(rule)
                yield version

    points = effect_curve(vector, versions(), change, seed=seed)
    found: dict[str, list[Any]] = {}
    for rule, point in zip(of, points, strict=True):
        found.setdefault(rule, []).append(asdict(point))
    return {"whole": asdict(weighted_mean(change(vector), seed=seed)), "curves": found}


def thin_versions(bench: Bench, rule: Any) -> Iterator[tuple[float, WeightVector]]:
    """Share kept, and what is left of the weight vector by a rule; made one by one, being large."""
    settings, vector = bench.given.settings, bench.weights
    for share in sorted(settings.weight_shares, reverse=True):
        smaller = thinned(vector, rule, share, settings.seed)
        yield (smaller.rank / vector.rank if rule == "rank" else share), smaller


def block_versions(vector: WeightVector, shares: Any) -> Iterator[tuple[float, WeightVector]]:
    """Share of the changed parameters, and the vector in so many of its blocks alone, one at least."""
    norms = vector.norm_by_block()
    largest = sorted(norms, key=lambda block: -norms[block])
    for count in sorted({max(1, round(share * len(largest))) for share in shares}, reverse=True):
        kept = only(vector, blocks=largest[:count])
        yield share_of_parameters(kept, vector), kept
