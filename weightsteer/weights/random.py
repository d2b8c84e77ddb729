"""A random direction of the size and form of a vector: the control that any change of that norm is not enough."""

import torch

from weightsteer.weights.lowrank import Change, LowRank
from weightsteer.weights.vector import WeightVector


def random_like(vector: WeightVector, seed: int) -> WeightVector:
    """Normally distributed entries of the same shapes, ranks and Frobenius norms as those of `vector`."""
    generator = torch.Generator().manual_seed(seed)
    entries = {name: _random_like(vector.entries[name], generator) for name in sorted(vector.entries)}
    return WeightVector(entries, vector.base, {"terms": [{"weight": 1.0, "adapter": f"random, seed {seed}"}]})


def _random_like(change: Change, generator: torch.Generator) -> Change:
    if isinstance(change, LowRank):
        up = torch.randn(change.up.shape, generator=generator)
        drawn: Change = LowRank(up, torch.randn(change.down.shape, generator=generator), change.layout)
    else:
        drawn = torch.randn(change.shape, generator=generator)
    return drawn * (_norm(change) / _norm(drawn))


def _norm(change: Change) -> float:
    return change.norm() if isinstance(change, LowRank) else change.double().norm().item()
