"""Which dimensions of an activation vector matter: their attribution, sparse vectors, and how far methods agree."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.mechanism.patching import Batch, Forced, compare
from weightsteer.activations.steering import add_hooks, strengths_of
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError
from weightsteer.models.language_model import LanguageModel

# r of the paper's code.
THRESHOLDS = (0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 2.5)
STEPS = 10

# A number that the steered model gives, as a tensor that can be differentiated.
Metric = Callable[[LanguageModel], Float[Tensor, ""]]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each dimension of k·s adds to a metric."""

    effects: Float[Tensor, " d_model"]
    """float64; they sum to `change` but for the error of the integration."""
    change: float
    """Metric under k·s minus metric without it."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """A vector of which some dimensions are left, as long as the whole one."""

    mask: Bool[Tensor, " d_model"]
    """True where a dimension is kept."""
    vector: ActivationVector

    @property
    def kept(self) -> int:
        """How many dimensions are kept."""
        return int(self.mask.sum())

    @property
    def share(self) -> float:
        """Share of the dimensions that are kept."""
        return self.kept / len(self.mask)


@dataclass(frozen=True)
class Overlap:
    """How far two sets of dimensions agree, and how far two random sets of their sizes would."""

    shared: int
    iou: float
    """Intersection over union."""
    expected_iou: float
    """Its mean over random sets."""
    p_value: float
    """Probability that random sets share as many dimensions or more (hypergeometric)."""


def attribute(
    lm: LanguageModel,
    vector: ActivationVector,
    k: float,
    metrics: Sequence[Metric],
    steps: int = STEPS,
    *,
    any_base: bool = False,
    label: str = "attribution",
) -> Attribution:
    """Integrated gradients of the sum of `metrics` along t·k·s, t from 0 to 1, by the trapezoidal rule.

    e_i = k·s_i ∫ ∂m/∂s_i dt, with s the vector's one direction, added at the tokens that its mode steers. A metric
    stands for one batch: it is called steps + 1 times with the steered model, and its graph is freed after each.
    Source: arXiv 2604.08524 and its code (10 steps). An AdapterError where the vector has several blocks or another
    base, and where a metric is not finite or does not depend on it.
    """
    block, direction = only_direction(vector)
    with vector.applied(lm, 0, any_base):  # raises where it does not belong to the model
        whole = (strengths_of(k).item() * direction.float()).detach()
    gradient, change = torch.zeros_like(whole, dtype=torch.float64), 0.0
    with progress.task(label, len(metrics)) as advance:
        for metric in metrics:
            for number in range(steps + 1):
                value, slope = _slope(lm, vector, block, whole * (number / steps), metric)
                at_end = number in (0, steps)
                gradient += slope.double() / (2 * steps if at_end else steps)
                change += (value if number else -value) if at_end else 0.0
            advance()
    return Attribution(gradient * whole.double(), change)


def forced_metrics(lm: LanguageModel, vector: ActivationVector, k: float, examples: Sequence[Forced]) -> list[Metric]:
    """Logit of the steered run's token minus that of the unsteered run's, wherever the two part; one metric a batch.

    Both runs are forced along the same texts, and the positions are summed; see `patching.compare`, which also says
    what raises.
    """
    return [partial(_logit_difference, batch) for batch in compare(lm, vector, k, examples).batches]


def sparsify(vector: ActivationVector, effects: Float[Tensor, " d_model"], r: float) -> Sparse:
    """The dimensions whose share of the effect is at least r times their share of the vector: |ê_i| >= r·|ŝ_i|.

    Hats mean length 1; what is left is rescaled to the length of the whole. r = 0 keeps every dimension. Source:
    arXiv 2604.08524 and its code.
    """
    _, direction = only_direction(vector)
    if not r >= 0 or r == float("inf"):
        raise AdapterError(f"r = {r}: Expected a finite threshold of 0 or more, such as 1")
    effects = _checked(effects, direction)
    unit = direction.double().abs() / direction.double().norm()
    return keep(vector, effects.abs() / effects.norm() >= r * unit)


def baselines(
    vector: ActivationVector, effects: Float[Tensor, " d_model"], count: int, seed: int = 0
) -> dict[str, Sparse]:
    """The vector with `count` dimensions left, by three simpler rules.

    `random`: any; `magnitude`: the smallest |s_i| are dropped; `effect`: the smallest |e_i| are dropped.
    """
    _, direction = only_direction(vector)
    effects = _checked(effects, direction)
    if not 0 < count <= len(direction):
        raise AdapterError(f"count = {count}: Expected 1 to {len(direction)} dimensions to keep")
    chance = torch.rand(len(direction), generator=torch.Generator().manual_seed(seed))
    scores = {"random": chance, "magnitude": direction.double().abs(), "effect": effects.abs()}
    return {rule: keep(vector, _largest(score, count)) for rule, score in scores.items()}


def keep(vector: ActivationVector, mask: Bool[Tensor, " d_model"]) -> Sparse:
    """The vector with the dimensions of `mask` alone, rescaled to its own length."""
    block, direction = only_direction(vector)
    left = torch.where(mask, direction.double(), 0.0)
    if left.norm() == 0:
        raise AdapterError(
            f"sparse vector: none of the {int(mask.sum())} dimensions kept differs from zero. Expected at least one. "
            "Lower r, or keep more"
        )
    # A mask of all must give the very same numbers, which rescaling by a quotient near 1 would not.
    scaled = direction if bool(mask.all()) else (left * (direction.double().norm() / left.norm())).to(direction.dtype)
    info = {**vector.info, "kept_dimensions": int(mask.sum())}
    return Sparse(mask, replace(vector, directions={block: scaled}, info=info))


def overlap(one: Bool[Tensor, " d_model"], other: Bool[Tensor, " d_model"]) -> Overlap:
    """Intersection over union of two kept sets, against random sets of the same sizes."""
    from scipy.stats import hypergeom

    width, sizes, shared = len(one), (int(one.sum()), int(other.sum())), int((one & other).sum())
    if len(other) != width or 0 in sizes:
        raise AdapterError(
            f"overlap of {sizes[0]} of {width} and {sizes[1]} of {len(other)} dimensions: Expected two sets of one "
            "width, neither empty"
        )
    chance = hypergeom(width, *sizes)
    possible = range(max(0, sum(sizes) - width), min(sizes) + 1)
    expected = sum(float(chance.pmf(n)) * n / (sum(sizes) - n) for n in possible)
    return Overlap(shared, shared / (sum(sizes) - shared), expected, float(chance.sf(shared - 1)))


def overlaps(masks: Mapping[str, Bool[Tensor, " d_model"]]) -> dict[tuple[str, str], Overlap]:
    """The overlap of every two of several kept sets, by their names."""
    names = list(masks)
    return {(a, b): overlap(masks[a], masks[b]) for i, a in enumerate(names) for b in names[i + 1 :]}


def only_direction(vector: ActivationVector) -> tuple[int, Float[Tensor, " d_model"]]:
    """Block and direction of a vector that is added at one block and is not zero."""
    if vector.operation != "add" or len(vector.directions) != 1 or not vector.norm() > 0:
        raise AdapterError(
            f"activation vector: operation {vector.operation}, blocks {sorted(vector.directions)}, norm "
            f"{vector.norm():g}. Expected one direction that is added and is not zero. Choose it with at(block)"
        )
    return next(iter(vector.directions.items()))


def _slope(
    lm: LanguageModel, vector: ActivationVector, block: int, added: Float[Tensor, " d_model"], metric: Metric
) -> tuple[float, Float[Tensor, " d_model"]]:
    """A metric while `added` is added at the block, and its gradient with respect to it."""
    with torch.inference_mode(False), torch.enable_grad(), contextlib.ExitStack() as undo:
        added = added.clone().requires_grad_()
        for hook in add_hooks(lm, {block: added}, strengths_of(1.0), vector.mode):
            undo.callback(hook.remove)
        value = metric(lm)
        if not value.requires_grad or not value.isfinite():
            found = f"is {value.item()}" if value.requires_grad else "does not depend on the vector"
            raise AdapterError(
                f"metric: {found}. Expected a finite number that the steered tokens change, computed with gradients"
            )
        return value.item(), torch.autograd.grad(value, added)[0]


def _logit_difference(batch: Batch, lm: LanguageModel) -> Float[Tensor, ""]:
    return batch.measure(batch.logits(lm), "logit").sum()


def _checked(effects: Float[Tensor, "..."], direction: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """The effects, in float64; an AdapterError unless they are finite, of the vector's width, and not all zero."""
    if effects.shape != direction.shape or not effects.isfinite().all() or not effects.any():
        state = "not finite" if not effects.isfinite().all() else "all zero" if not effects.any() else "finite"
        raise AdapterError(
            f"effects: shape {list(effects.shape)}, {state}. Expected {len(direction)} finite numbers that are not all "
            "zero, as `attribute` gives them for this vector"
        )
    return effects.double()


def _largest(scores: Float[Tensor, " d_model"], count: int) -> Bool[Tensor, " d_model"]:
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.topk(count).indices] = True
    return mask
