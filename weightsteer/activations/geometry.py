"""How well one direction describes contrast pairs: agreement of their differences, separation, overlap, stability.

Everything is read at one block from the activations of both sides of each pair, δ = a⁺ − a⁻ and s = mean δ. Source:
arXiv 2505.22637 and its code; standard deviations are those of a population, divided by n. Each δ is a part of s, so in
many dimensions agreement and d′ are high for few pairs even where nothing is shared (random differences agree by about
1/√n); what is left out tells the two apart: there s comes from the other pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from weightsteer.errors import DataError

# Both halves of a split need two pairs.
LEAST_PAIRS = 4
EDGES = 50
RESAMPLES, RESAMPLED_PAIRS = 100, 25
SHOWN = 5


@dataclass(frozen=True)
class Geometry:
    """Pairs along their mean difference s at one block."""

    pairs: int
    norm: float
    """‖s‖."""
    agreement: float
    """Directional agreement: mean cosine of δ with s, from −1 to 1."""
    agreement_left_out: float
    """The same with s of all other pairs."""
    d_prime: float
    """Distance of the two sides' means along s, in their pooled standard deviation."""
    d_prime_left_out: float
    """The same, each pair read along s of all other pairs."""
    kappa_spread: float
    """Pooled standard deviation of κ, in which the two means stand at 1 and −1."""
    overlap: float
    """Area under both densities along s: 0 apart, 1 the same."""
    auc: float
    """Probability that a positive activation lies further along s than a negative one."""
    split_half: float
    """Mean cosine of s of one random half of the pairs with s of the other."""
    stability: float
    """Mean cosine of s of 25 pairs, drawn with replacement, with s of all."""


@dataclass
class Agreement:
    """Directional agreement of a stream of differences, in memory that does not grow with them.

    cos(δ, s) averaged over δ is the mean of δ/‖δ‖ along s, so two running sums are enough.
    """

    n: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    units: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, deltas: Float[Tensor, "pairs *blocks d_model"]) -> None:
        """Take in the differences of one batch; none of them may be zero."""
        deltas = deltas.double()
        self.n += len(deltas)
        self.total = self.total + deltas.sum(0)
        self.units = self.units + _unit(deltas).sum(0)

    @property
    def value(self) -> Float[Tensor, "*blocks"]:
        """Mean cosine of a difference with the mean difference, at every block."""
        return (self.units / self.n * _unit(self.total)).sum(-1)


def geometry(
    positive: Float[Tensor, "pairs d_model"],
    negative: Float[Tensor, "pairs d_model"],
    seed: int = 0,
    ids: Sequence[str] = (),
) -> Geometry:
    """Every number of pairs at one block; a DataError where they have no direction. `ids` name pairs in messages."""
    positive, negative = positive.double(), negative.double()
    deltas = positive - negative
    _check(deltas, ids)
    ours, theirs = (kappa(side, positive.mean(0), negative.mean(0)) for side in (positive, negative))
    return Geometry(
        pairs=len(deltas),
        norm=deltas.mean(0).norm().item(),
        agreement=directional_agreement(deltas),
        agreement_left_out=agreement_left_out(deltas),
        d_prime=d_prime(ours, theirs),
        d_prime_left_out=d_prime(*kappa_left_out(positive, negative)),
        kappa_spread=_pooled(ours, theirs),
        overlap=overlap(ours, theirs),
        auc=auc(ours, theirs),
        split_half=split_half(deltas, seed),
        stability=stability(deltas, seed),
    )


def directional_agreement(deltas: Float[Tensor, "pairs d_model"]) -> float:
    """Mean cosine of the differences with their mean."""
    stream = Agreement()
    stream.add(deltas)
    return stream.value.item()


def agreement_left_out(deltas: Float[Tensor, "pairs d_model"]) -> float:
    """Mean cosine of each difference with the mean of all others: about 0 where they have nothing in common."""
    deltas = deltas.double()
    return (_unit(deltas) * _unit(deltas.sum(0) - deltas)).sum(-1).mean().item()


def kappa(
    activations: Float[Tensor, "rows d_model"],
    mean_positive: Float[Tensor, "*each d_model"],
    mean_negative: Float[Tensor, "*each d_model"],
) -> Float[Tensor, " rows"]:
    """κ = 2⟨a − (μ⁺ + μ⁻)/2, s⟩ / ‖s‖², s = μ⁺ − μ⁻: the place along s at which μ⁺ stands at 1 and μ⁻ at −1."""
    s = mean_positive - mean_negative
    return 2 * ((activations - (mean_positive + mean_negative) / 2) * s).sum(-1) / s.square().sum(-1)


def kappa_left_out(
    positive: Float[Tensor, "pairs d_model"], negative: Float[Tensor, "pairs d_model"]
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """κ of both sides of each pair, by the means of all other pairs."""
    means = [(side.double().sum(0) - side.double()) / (len(side) - 1) for side in (positive, negative)]
    return kappa(positive.double(), *means), kappa(negative.double(), *means)


def d_prime(positive: Float[Tensor, " rows"], negative: Float[Tensor, " others"]) -> float:
    """(mean⁺ − mean⁻) / √((var⁺ + var⁻)/2) of places along a line; infinite where neither side spreads."""
    apart, spread = (positive.mean() - negative.mean()).item(), _pooled(positive, negative)
    return apart / spread if spread else math.copysign(math.inf, apart) if apart else math.nan


def overlap(positive: Float[Tensor, " rows"], negative: Float[Tensor, " others"]) -> float:
    """Σ min(density⁺, density⁻)·width over bins between 50 equally spaced edges that span both sides."""
    both = torch.cat([positive, negative])
    low, high = both.min().item(), both.max().item()
    if low == high:
        return 1.0
    shares = [torch.histc(side.double(), EDGES - 1, low, high) / len(side) for side in (positive, negative)]
    return torch.minimum(*shares).sum().item()


def auc(positive: Float[Tensor, " rows"], negative: Float[Tensor, " others"]) -> float:
    """Share of (positive, negative) in which the positive one is larger; a tie counts half."""
    apart = positive[:, None] - negative[None, :]
    return ((apart > 0).double() + (apart == 0).double() / 2).mean().item()


def split_half(deltas: Float[Tensor, "pairs d_model"], seed: int = 0) -> float:
    """Mean cosine of the mean differences of two random halves, over 100 splits; of an odd number one sits out."""
    orders, half = _orders(len(deltas), seed), len(deltas) // 2
    first, second = (_means(deltas, order) for order in (orders[:, :half], orders[:, half : 2 * half]))
    return (_unit(first) * _unit(second)).sum(-1).mean().item()


def stability(deltas: Float[Tensor, "pairs d_model"], seed: int = 0, size: int = RESAMPLED_PAIRS) -> float:
    """Mean cosine of the mean of `size` differences, drawn with replacement, with the mean of all; 100 draws."""
    drawn = torch.randint(len(deltas), (RESAMPLES, size), generator=torch.Generator().manual_seed(seed))
    return (_unit(_means(deltas, drawn)) @ _unit(deltas.double().mean(0))).mean().item()


def _orders(n: int, seed: int) -> Shaped[Tensor, "resamples pairs"]:
    return torch.rand(RESAMPLES, n, generator=torch.Generator().manual_seed(seed)).argsort(-1)


def _means(
    deltas: Float[Tensor, "pairs d_model"], drawn: Shaped[Tensor, "resamples size"]
) -> Float[Tensor, "resamples d_model"]:
    """Mean difference of each draw, without a copy of the differences for each."""
    counts = torch.zeros(len(drawn), len(deltas), dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return counts @ deltas.double() / drawn.shape[1]


def _pooled(positive: Float[Tensor, " rows"], negative: Float[Tensor, " others"]) -> float:
    return ((positive.var(correction=0) + negative.var(correction=0)) / 2).sqrt().item()


def _unit(vectors: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _check(deltas: Float[Tensor, "pairs d_model"], ids: Sequence[str]) -> None:
    if len(deltas) < LEAST_PAIRS:
        raise DataError(f"{len(deltas)} pairs: too few. Expected at least {LEAST_PAIRS}, two in each half. Add pairs")
    if not deltas.isfinite().all():
        raise DataError("activations: not finite. Expected numbers. Load the model in bfloat16 or float32")
    equal = [ids[i] if ids else str(i) for i in (deltas == 0).all(-1).nonzero().flatten().tolist()]
    if equal:
        more = f" and {len(equal) - SHOWN} more" if len(equal) > SHOWN else ""
        raise DataError(
            f"pairs {', '.join(equal[:SHOWN])}{more}: both sides have the same activations. Expected texts that differ "
            "before or at the token that is read. Take these pairs out"
        )
    if not deltas.mean(0).any():
        raise DataError(f"{len(deltas)} pairs: their differences cancel out. Expected a mean that is not zero")
