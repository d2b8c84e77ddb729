"""WeightVector: a direction in weight space, its arithmetic and its measures."""

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsteer.errors import AdapterError
from weightsteer.weights.adapter import read_adapter
from weightsteer.weights.applied import FactorCache, applied
from weightsteer.weights.base import Base
from weightsteer.weights.lowrank import Change, LowRank, add, as_dense, inner
from weightsteer.weights.vector_files import DESCRIPTION, read_vector, write_vector

KINDS = ("attention", "mlp", "embeddings and head", "norms", "other")


@dataclass(frozen=True, eq=False)
class WeightVector:
    """A change of a model's weights: positive minus negative, so that k > 0 shows more of the behavior.

    An entry changes the parameter as the module of that name uses it: where two modules share one (tied
    embeddings), each has an entry of its own or is not changed.
    """

    entries: Mapping[str, Change]
    """Parameter name in memory ("model.layers.0.self_attn.q_proj.weight") -> its change in float32."""
    base: str | None = None
    """Fingerprint of the base model; None when it is not known."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Provenance as plain JSON: `terms` (weight and source of each summand), `notes`, what the maker adds."""
    _factors: FactorCache = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(cls, folder: Path | str, base: Any = None) -> "WeightVector":
        """A saved vector, or the change that a plain PEFT adapter makes.

        `base`, a Checkpoint or model folder, becomes the vector's base; some adapters cannot be read without.
        An AdapterError when the folder is damaged, made for another base, or of a kind that is refused.
        """
        folder = Path(folder)
        model = None if base is None else Base.of(base)
        if (folder / DESCRIPTION).exists():
            vector = cls(*read_vector(folder))
        else:
            entries, info = read_adapter(folder, model)
            vector = cls(entries, None, info)
        return vector if model is None else vector.on(model)

    def save(self, folder: Path | str) -> None:
        """Write the vector as a PEFT adapter at scale 1 with vector.json beside it; see `vector_files`."""
        write_vector(Path(folder), self.entries, self.base, self.info)

    def applied(self, lm: Any, k: float | int, any_base: bool = False) -> contextlib.AbstractContextManager[Any]:
        """`lm` with k times this vector added to its weights inside the block; see `weights.applied`.

        `any_base` permits a model other than the base, such as a task-tuned descendant.
        """
        return applied(self.entries, self.base, lm, k, any_base, self._factors)

    def on(self, model: Base) -> "WeightVector":
        """This vector with its base known; an AdapterError when it was made for another."""
        return replace(self, base=_common_base([self.base, model.fingerprint], [self.name, model.path]))

    def __add__(self, other: "WeightVector") -> "WeightVector":
        base = _common_base([self.base, other.base], [self.name, other.name])
        entries = dict(self.entries)
        for name, change in other.entries.items():
            try:
                entries[name] = add(entries[name], change) if name in entries else change
            except AdapterError as error:
                raise AdapterError(f"{name}: {error}") from None
        return WeightVector(entries, base, _sum_of_infos(self, other))

    def __sub__(self, other: "WeightVector") -> "WeightVector":
        return self + -other

    def __neg__(self) -> "WeightVector":
        return -1 * self

    def __mul__(self, factor: float | int) -> "WeightVector":
        if not math.isfinite(factor):
            raise AdapterError(f"{self.name}: cannot be scaled by {factor}. Expected a finite number")
        info = dict(self.info)
        info["terms"] = [{**term, "weight": term["weight"] * factor} for term in info.get("terms", [])]
        return WeightVector({name: change * factor for name, change in self.entries.items()}, self.base, info)

    __rmul__ = __mul__

    def inner(self, other: "WeightVector") -> float:
        """Inner product over all parameters, in float64, from the factors."""
        _common_base([self.base, other.base], [self.name, other.name])
        return math.fsum(inner(c, other.entries[name]) for name, c in self.entries.items() if name in other.entries)

    def norm(self) -> float:
        """Frobenius norm over all parameters together."""
        return math.sqrt(math.fsum(self._squares.values()))

    def cosine(self, other: "WeightVector") -> float:
        """Cosine of the angle between two vectors; an AdapterError when one is zero and has no direction."""
        norms = self.norm(), other.norm()
        if 0 in norms:
            zero = self if norms[0] == 0 else other
            raise AdapterError(
                f"{zero.name}: is zero, so it has no direction. Expected a vector that changes something"
            )
        return max(-1.0, min(1.0, self.inner(other) / (norms[0] * norms[1])))

    def norm_by_block(self) -> dict[int, float]:
        """Norm of the change in each decoder block, 0-based; what lies outside of the blocks is not in it."""
        norms = self._grouped(block_of)
        return {block: norms[block] for block in sorted(b for b in norms if b is not None)}

    def norm_by_kind(self) -> dict[str, float]:
        """Norm of the change in the attention, the MLPs, embeddings and head, norms, and the rest."""
        norms = self._grouped(kind_of)
        return {kind: norms[kind] for kind in KINDS if kind in norms}

    def shares_by_kind(self) -> dict[str, float]:
        """Share of the squared norm by kind of module; zeros for a vector of zero."""
        total = self.norm() ** 2
        return {kind: norm**2 / total if total else 0.0 for kind, norm in self.norm_by_kind().items()}

    def relative_norm(self, base_norms: Mapping[str, float]) -> float:
        """‖w‖ / ‖θ‖, given the norm of each of the base's parameters."""
        missing = [name for name in self.entries if name not in base_norms]
        if missing:
            raise AdapterError(f"{self.name}: no base norm for {', '.join(missing)}. Expected one for each entry")
        return self.norm() / math.hypot(*base_norms.values())

    @property
    def rank(self) -> int:
        """The largest rank among the factored entries; 0 when there are none."""
        return max((change.rank for change in self.entries.values() if isinstance(change, LowRank)), default=0)

    def compress(self, rank: int | None = None, energy: float | None = None) -> tuple["WeightVector", float]:
        """Each factored entry at lower rank (see LowRank.compress), and the share of squared norm kept."""
        entries, lost = dict(self.entries), 0.0
        for name, change in self.entries.items():
            if isinstance(change, LowRank):
                entries[name], retained = change.compress(rank, energy)
                lost += (1 - retained) * self._squares[name]
        total = math.fsum(self._squares.values())
        return WeightVector(entries, self.base, self.info), 1 - lost / total if total else 1.0

    def sparsify(self, density: float | int) -> "WeightVector":
        """The share `density` of each entry's elements that are largest in magnitude, the others zero.

        What is left of a product of factors is no such product: at a density below 1 every entry is dense.
        """
        if not 0 < density <= 1:
            raise AdapterError(f"sparsify: density is {density}. Expected a share above 0 and at most 1")
        if density == 1:
            return self
        entries = {name: _largest(as_dense(change), density) for name, change in self.entries.items()}
        return WeightVector(entries, self.base, {**self.info, "density": density})

    @cached_property
    def digest(self) -> str:
        """sha256 over base, names and factors: equal for vectors that are equal to the bit."""
        digest = hashlib.sha256(str(self.base).encode())
        for name, change in sorted(self.entries.items()):
            digest.update(name.encode())
            for part in (change.up, change.down) if isinstance(change, LowRank) else (change,):
                digest.update(str(tuple(part.shape)).encode())
                digest.update(part.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """What it is made of, for messages: "1·path/a − 1·path/b"."""
        terms = [f"{term['weight']:+g}·{_source(term)}" for term in self.info.get("terms", [])]
        return " ".join(terms) or f"vector of {len(self.entries)} entries"

    @cached_property
    def _squares(self) -> dict[str, float]:
        return {name: max(inner(change, change), 0.0) for name, change in self.entries.items()}

    def _grouped(self, group: Callable[[str], Any]) -> dict[Any, float]:
        squares: dict[Any, list[float]] = {}
        for name, square in self._squares.items():
            squares.setdefault(group(name), []).append(square)
        return {key: math.sqrt(math.fsum(values)) for key, values in squares.items()}


def diagnostics(positive: WeightVector, negative: WeightVector) -> dict[str, float]:
    """How two fine-tunes τ⁺ and τ⁻ relate, before anyone trusts their difference.

    `cosine` of τ⁺ and −τ⁻; `norm_ratio` ‖τ⁺‖/‖τ⁻‖; `drift_ratio` ‖τ⁺ + τ⁻‖/‖τ⁺ − τ⁻‖, high when both mostly
    learned the same thing.
    """
    plus, minus = positive.norm(), negative.norm()
    cosine = -positive.cosine(negative)
    both = plus**2 + minus**2
    apart = both + 2 * cosine * plus * minus
    if apart <= 1e-12 * both:
        raise AdapterError(f"{positive.name} and {negative.name}: are equal, so their difference is no direction")
    drift = max(both - 2 * cosine * plus * minus, 0.0) / apart
    return {"cosine": cosine, "norm_ratio": plus / minus, "drift_ratio": math.sqrt(drift)}


def block_of(name: str) -> int | None:
    """0-based decoder block of a parameter; None outside of the blocks."""
    match = re.search(r"\.(?:layers|h|blocks|layer)\.(\d+)\.", f".{name}")
    return int(match[1]) if match else None


def kind_of(name: str) -> str:
    """Which of KINDS a parameter belongs to, by the naming of the transformers architectures."""
    modules = name.lower().split(".")
    module = modules[-2] if len(modules) > 1 else name
    if "norm" in module or re.fullmatch(r"ln_?\w*", module):
        return "norms"
    if any("attn" in part or "attention" in part for part in modules):
        return "attention"
    if any(re.search(r"mlp|experts|moe|feed_forward|ffn|^fc\d?$", part) for part in modules):
        return "mlp"
    if re.search(r"embed|^w[tp]e$|head|output", module):
        return "embeddings and head"
    return "other"


def _common_base(bases: Iterable[str | None], names: Iterable[object]) -> str | None:
    known = {base: str(name) for base, name in zip(bases, names, strict=True) if base is not None}
    if len(known) > 1:
        raise AdapterError(
            "; ".join(f"{name} was made for base {base}" for base, name in known.items())
            + ". Expected one base: changes of different models do not add up"
        )
    return next(iter(known), None)


def _sum_of_infos(left: WeightVector, right: WeightVector) -> dict[str, Any]:
    """What both say alike, the terms of both, and which entries only one of them has."""
    info = {key: value for key, value in left.info.items() if right.info.get(key) == value}
    info["terms"] = [*left.info.get("terms", []), *right.info.get("terms", [])]
    info["notes"] = list(dict.fromkeys([*left.info.get("notes", []), *right.info.get("notes", [])]))
    for one, other in ((left, right), (right, left)):
        alone = [name for name in one.entries if name not in other.entries]
        if alone:
            info["notes"].append(f"counted as zero in {other.name}, which lacks them: {', '.join(alone)}")
    return info


def _source(term: Mapping[str, Any]) -> str:
    return str(term.get("adapter") or term.get("checkpoint") or "?")


def _largest(change: Tensor, density: float | int) -> Tensor:
    keep = max(1, round(density * change.numel()))
    magnitude = change.abs().flatten()
    kept = torch.zeros_like(magnitude, dtype=torch.bool)
    kept[magnitude.topk(keep, sorted=False).indices] = True
    return torch.where(kept.reshape(change.shape), change, 0.0)
