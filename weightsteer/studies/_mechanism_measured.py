"""Stages of the study `mechanism` that take steering apart: frozen parts, parts of the weights, values as tokens."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from weightsteer.activations.capture import example
from weightsteer.activations.mechanism.anatomy import Part, What, final_norm, matrix, through_norm
from weightsteer.activations.mechanism.freezing import freezing_effects, part_effects
from weightsteer.activations.mechanism.parts import in_blocks, part
from weightsteer.activations.mechanism.values import decompose, direction_into, head_values, mean_shift, read_tokens
from weightsteer.stats import weighted_mean
from weightsteer.studies import _mechanism_circuits as circuits
from weightsteer.studies import _mechanism_thinned as thinned
from weightsteer.studies._mechanism_bench import NAMES, WEIGHTS, Bench

MEANS = "means"
# What is shown of the tokens that a head raises or lowers.
SHOWN = 8


@dataclass(frozen=True)
class Measured:
    """What all stages found; intervals are over held-out questions where nothing else is said."""

    lengths: Mapping[str, float]
    """Of the activation vectors when they were found."""
    cosines: Mapping[str, float]
    """The two names with an "and" -> cosine of the two activation vectors."""
    frozen: Mapping[str, Any]
    """Vector -> `whole` (its effect) and `cases`: part -> `change`, `lost` and `share` (None: not told from zero)."""
    parts: Mapping[str, Any]
    """Of the weight vector alike, each part acting alone; `squares`, the part's share of the squared norm."""
    values: Mapping[str, Any]
    """Vector -> `itself` and `blocks`, of each its strongest head; see `read_values`."""
    patched: Mapping[str, Any]
    """Vector -> every head and MLP patched and estimated; None where nothing differs."""
    circuits: Mapping[str, Any]
    """Vector -> how much circuits of several sizes carry; None where nothing differs."""
    shared: Mapping[str, Any]
    """How far circuits of two vectors agree, and what each carries of another vector's effect."""
    sparse: Mapping[str, Any]
    """Of activation vectors: effect left by share of the dimensions kept, and how far kept dimensions agree."""
    thinned: Mapping[str, Any]
    """Of the weight vector: effect left by share kept."""


def measure(bench: Bench) -> Measured:
    """Every stage, in order."""
    pairs = itertools.combinations(bench.lengths, 2)
    cosines = {f"{one} and {other}": bench.vectors[one].cosine(bench.vectors[other]) for one, other in pairs}
    frozen = bench.stage("frozen", (), lambda folder: freeze(bench), **bench.of_vectors(*NAMES))
    parts = bench.stage("parts", ("ranges",), lambda folder: split_weights(bench), **bench.of_vectors(WEIGHTS))
    values = bench.stage("values", (), lambda folder: read_values(bench), **bench.of_vectors(MEANS, WEIGHTS))
    patched = {name: circuits.patch_nodes(bench, name) for name in (MEANS, WEIGHTS)}
    found = {name: circuits.find_circuits(bench, name) for name in NAMES}
    shared = circuits.compare_circuits(bench)
    return Measured(
        bench.lengths, cosines, frozen, parts, values, patched, found, shared, thinned.sparsify_activations(bench),
        thinned.thin_weights(bench),
    )  # fmt: skip


def freeze(bench: Bench) -> dict[str, Any]:
    """What is left of the effect of every vector with queries and keys, values, or MLPs frozen in all blocks."""
    seed = bench.given.settings.seed
    return {
        name: asdict(freezing_effects(vector, bench.lm, bench.k(name), bench.effect, seed=seed))
        for name, vector in bench.vectors.items()
    }


def split_weights(bench: Bench) -> dict[str, Any]:
    """What parts of the weight vector do alone: by what they change, and by ranges of its blocks."""
    vector, settings = bench.weights, bench.given.settings
    kinds: dict[str, What] = {"queries and keys": "qk", "values and outputs": "ov", "MLPs": "mlp"}
    parts = {name: part(vector, bench.lm, Part(what)) for name, what in kinds.items()}
    for chosen in ranges(list(vector.norm_by_block()), settings.ranges):
        named = f"block {chosen[0]}" if len(chosen) == 1 else f"blocks {chosen[0]} to {chosen[-1]}"
        parts[named] = in_blocks(vector, bench.lm, chosen)
    parts = {name: one for name, one in parts.items() if one.entries}
    found = part_effects(vector, bench.lm, bench.k(WEIGHTS), bench.effect, parts, settings.seed)
    squares = {name: (one.norm() / vector.norm()) ** 2 for name, one in parts.items()}
    return {**asdict(found), "squares": squares}


def ranges(blocks: Sequence[int], count: int) -> list[list[int]]:
    """The blocks in `count` runs (fewer where there are fewer blocks) of like length, in order."""
    count = min(count, len(blocks))
    bounds = [round(i * len(blocks) / count) for i in range(count + 1)]
    return [list(blocks[a:b]) for a, b in itertools.pairwise(bounds)]


def read_values(bench: Bench) -> dict[str, Any]:
    """What the heads after a vector make of it: gains of all, and of each block's largest its tokens and lean.

    Of the weight vector a block reads its mean shift of the stream there, at the last token of held-out questions.
    `lean`: how much more the head raises the tokens of answers that show the behavior than those of the others, in
    standard deviations over the vocabulary; mean over held-out questions.
    """
    asked = [example(prompt, [], "last_prompt") for prompt in bench.prompts()]
    shift = mean_shift(bench.weights, bench.lm, bench.k(WEIGHTS), asked)
    after = range(bench.block + 1, bench.blocks)
    changed = range(min(bench.weights.norm_by_block()) + 1, bench.blocks)
    into = {
        MEANS: {block: direction_into(bench.vectors[MEANS], block) for block in after},
        WEIGHTS: {block: shift[block - 1] for block in changed},
    }
    found = {}
    for name, directions in into.items():
        blocks = []
        for block, direction in directions.items():
            gains = (head_values(bench.lm, direction, block).norm(dim=1) / direction.norm()).tolist()
            head = max(range(len(gains)), key=gains.__getitem__)
            [strongest] = decompose(bench.lm, direction, [block], [head], SHOWN)
            written = head_values(bench.lm, direction, block)[head]
            blocks.append({**asdict(strongest), "gains": gains, "lean": lean(bench, written)})
        last = list(directions.values())[-1]
        [(top, bottom)] = read_tokens(bench.lm, last[None], SHOWN)
        found[name] = {"itself": {"top": top, "bottom": bottom, "lean": lean(bench, last)}, "blocks": blocks}
    return found


def lean(bench: Bench, direction: Any) -> dict[str, float]:
    """How far a direction, read through the output head, prefers the positive answers' tokens; see `read_values`."""
    lm = bench.lm
    head = matrix(lm.network.get_output_embeddings())
    logits = head @ through_norm(final_norm(lm.network), direction.float().to(head.device))
    logits = (logits - logits.mean()) / logits.std()

    def mean(text: str) -> float:
        return logits[lm.tokens(text)].mean().item()

    values = [mean(pair.positive) - mean(pair.negative) for pair in bench.held_out]
    return asdict(weighted_mean(values, seed=bench.given.settings.seed))
