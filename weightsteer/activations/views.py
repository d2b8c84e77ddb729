"""What one looks at before trusting a vector: components, directions, effects by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer.activations.capture import Example, activations, capture
from weightsteer.activations.letters import Question, score_many
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, DataError
from weightsteer.models.language_model import LanguageModel


@dataclass(frozen=True)
class Components:
    """Activations of a block in the plane of their first two principal components."""

    block: int
    points: Float[Tensor, "examples 2"]
    shares: tuple[float, float]
    """Of the block's whole variance."""
    separation: Mapping[str, float]
    """Name of a labeling -> share of the plane's variance that lies between its groups; see `separation`."""


def components_by_block(
    lm: LanguageModel,
    examples: Sequence[Example],
    labels: Mapping[str, Sequence[str]],
    limit: int = 400,
    label: str = "components",
) -> list[Components]:
    """The two components at every block of the examples' first read, and how far each labeling separates them.

    At most `limit` examples: their activations at all blocks are held at once, in float32. Each component's sign is
    that of its largest coordinate, so that equal activations give an equal picture. Source: arXiv 2312.06681, section
    4 (clusters by behavior and by letter).
    """
    wrong = {name: len(of) for name, of in labels.items() if len(of) != len(examples)}
    if wrong or not 3 <= len(examples) <= limit:
        raise DataError(
            f"{label}: {len(examples)} examples with labels {wrong or 'for each'}. Expected 3 to {limit} examples, a "
            "label of every kind for each. Use fewer, or raise the limit"
        )
    found: list[Tensor] = [torch.empty(0)] * len(examples)
    for batch, rows in activations(lm, examples, label):
        for i, row in zip(batch, rows, strict=True):
            found[i] = row[0]
    views = []
    for block, values in enumerate(torch.stack(found, 1)):
        points, shares = principal_plane(values)
        views.append(Components(block, points, shares, {name: separation(points, of) for name, of in labels.items()}))
    return views


def principal_plane(
    values: Float[Tensor, "examples d_model"],
) -> tuple[Float[Tensor, "examples 2"], tuple[float, float]]:
    """Coordinates on the first two principal components, and the share of all variance that each has."""
    centered = values.double() - values.double().mean(0)
    if not centered.isfinite().all():
        raise DataError("activations: not all finite. Expected numbers. Load the model in bfloat16 or float32")
    left, singular, right = torch.linalg.svd(centered, full_matrices=False)
    total = singular.square().sum()
    if total == 0:
        raise DataError(f"{len(values)} activations: are all the same, so they have no component. Expected several")
    signs = right[:2].gather(1, right[:2].abs().argmax(1, keepdim=True)).sign()[:, 0]
    first, second = (singular[:2].square() / total).tolist()
    return (left[:, :2] * singular[:2] * signs).float(), (first, second)


def separation(points: Float[Tensor, "examples dimensions"], labels: Sequence[str]) -> float:
    """Share of the points' variance that lies between the groups of equal label: 0 where all groups have one mean, 1
    where each group is one point (η²). Labels without meaning give (groups − 1) / (points − 1) on average."""
    points = points.double() - points.double().mean(0)
    between = 0.0
    for group in sorted(set(labels)):
        own = points[torch.tensor([label == group for label in labels])]
        between += len(own) * own.mean(0).square().sum().item()
    return between / points.square().sum().item()


def block_cosines(vector: ActivationVector) -> Float[Tensor, "blocks blocks"]:
    """Cosine of the directions of every two blocks, in the order of the blocks. Source: arXiv 2312.06681, section 4."""
    blocks = sorted(vector.directions)
    stacked = torch.stack([vector.directions[block].double() for block in blocks])
    norms = stacked.norm(dim=1, keepdim=True)
    for block, norm in zip(blocks, norms[:, 0].tolist(), strict=True):
        if norm == 0:
            raise AdapterError(f"activation vector: is zero at block {block}. Expected a direction at every block")
    units = stacked / norms
    return (units @ units.T).clamp(-1, 1)


def moved_to(vector: ActivationVector, block: int, blocks: Sequence[int]) -> list[ActivationVector]:
    """The direction of `block` alone, put at each of `blocks`: does it act from there?

    Source: arXiv 2312.06681, section 4 (transfer between layers).
    """
    direction = vector.at(block).directions[block]
    return [replace(vector, directions={target: direction}) for target in blocks]


def effect_by_block(
    lm: LanguageModel,
    questions: Sequence[Question],
    vectors: Sequence[ActivationVector],
    k: float = 1.0,
    any_base: bool = False,
    label: str = "block sweep",
) -> Float[Tensor, "vectors questions"]:
    """How far strengths k and −k pull each question's p(first option) / p(both) apart, for each vector.

    The spread by which arXiv 2312.06681, section 4, chooses a block, question by question.
    """
    scored = score_many(lm, questions, vectors, (-k, k), any_base, label)
    low, high = first_of_two(scored).unbind(1)
    return high - low


def first_of_two(log_p: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any"]:
    """Probability of the first of two options, given that it is one of them."""
    return (log_p[..., 0] - log_p[..., 1]).sigmoid()


def activation_shift(
    lm: LanguageModel, vector: Any, k: float, examples: Sequence[Example], label: str = "shift"
) -> Float[Tensor, "blocks d_model"]:
    """Mean over `examples` of what k times `vector`, such as a WeightVector, changes at every block's output; float64.

    At the first read of each example, the same tokens with and without it.
    """
    base = capture(lm, examples, f"{label}: base").mean[0]
    with vector.applied(lm, k) as steered:
        return capture(steered, examples, f"{label}: steered").mean[0] - base


def shift_cosines(vector: ActivationVector, shift: Float[Tensor, "blocks d_model"]) -> dict[int, float]:
    """Block -> cosine of the vector's direction there with the shift of that block's activations.

    Blocks in which one of them is zero are left out: a change of later blocks alone shifts nothing before them. An
    AdapterError where that leaves none.
    """
    missing = [block for block in vector.directions if block >= len(shift)]
    if missing:
        raise AdapterError(
            f"activation vector: has block {missing[0]}, the shift has {len(shift)} blocks. Expected both of one model"
        )
    cosines = {}
    for block, direction in sorted(vector.directions.items()):
        norms = direction.double().norm().item() * shift[block].norm().item()
        if norms:
            cosines[block] = (direction.double() @ shift[block].double()).item() / norms
    if not cosines:
        raise AdapterError(
            f"blocks {sorted(vector.directions)}: the vector or the shift is zero in all of them, and zero has no "
            "direction. Expected a change that reaches a block of the vector"
        )
    return cosines
