"""ActivationVector: a direction per decoder block, its arithmetic, and steering with it."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from weightsteer.activations.steering import Mode, ablate_hooks, add_hooks, strengths_of
from weightsteer.errors import AdapterError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.language_model import LanguageModel
from weightsteer.stage import digest

FILE = "activation_vector.safetensors"
Operation = Literal["add", "ablate"]
# A vector used at another site than it was made for steers wrongly without a word, so the file names it.
SITES: dict[Operation, str] = {
    "add": "block output, 0-based",
    "ablate": "every block input, attention and MLP output; read at a block output, 0-based",
}


@dataclass(frozen=True, eq=False)
class ActivationVector:
    """Mean positive minus mean negative output of some decoder blocks (0-based), added k times while steering.

    With operation `ablate` the one direction, whichever block it was read at, is taken out of the whole residual
    stream instead: x −= k·r̂r̂ᵀx.
    """

    directions: Mapping[int, Float[Tensor, " d_model"]]
    base: str | None = None
    mode: Mode = "generated"
    info: Mapping[str, Any] = field(default_factory=dict)
    operation: Operation = "add"

    @cached_property
    def digest(self) -> str:
        """sha256 of directions, mode and operation."""
        what = [self.mode, {block: v.tolist() for block, v in sorted(self.directions.items())}]
        return digest(what if self.operation == "add" else [self.operation, *what])

    def at(self, *blocks: int) -> "ActivationVector":
        """The directions of these blocks alone."""
        missing = [b for b in blocks if b not in self.directions]
        if missing:
            raise AdapterError(f"activation vector: no block {missing[0]}. Expected one of {sorted(self.directions)}")
        return replace(self, directions={b: self.directions[b] for b in blocks})

    def increments(self) -> "ActivationVector":
        """What each block but the last adds to the direction of the block before, so that their effects do not pile up.

        Steered together, blocks 0 to b add up to the direction of block b. Source: arXiv 2511.05408, section 3 and its
        code: hidden states 1 to L−1 are steered, the first by its whole direction; block b makes hidden state b + 1.
        """
        blocks = list(self.directions)
        if blocks != list(range(len(blocks))) or len(blocks) < 2:
            raise AdapterError(f"activation vector: has blocks {blocks}. Expected every block of the model from 0 on")
        changes = {b: self.directions[b] - self.directions[b - 1] for b in blocks[1:-1]}
        return replace(self, directions={0: self.directions[0], **changes})

    def ablating(self) -> "ActivationVector":
        """The same direction, taken out of every token instead of added (arXiv 2406.11717, section 2.4)."""
        _one_direction(self)
        return replace(self, operation="ablate", mode="all")

    def __add__(self, other: "ActivationVector") -> "ActivationVector":
        base = _same_base(self, other)
        if self.mode != other.mode:
            raise AdapterError(
                f"vectors of two modes, {self.mode} and {other.mode}. Expected one: they act on other tokens"
            )
        if "ablate" in (self.operation, other.operation):
            raise AdapterError("a vector that ablates: has no sums. Expected two that add; apply one within the other")
        total = dict(self.directions)
        for block, direction in other.directions.items():
            total[block] = total[block] + direction if block in total else direction
        return replace(self, directions=total, base=base)

    def __mul__(self, factor: float) -> "ActivationVector":
        return replace(self, directions={b: factor * v for b, v in self.directions.items()})

    __rmul__ = __mul__

    def __neg__(self) -> "ActivationVector":
        return self * -1

    def __sub__(self, other: "ActivationVector") -> "ActivationVector":
        return self + -other

    def norm(self) -> float:
        """Euclidean norm over all blocks together."""
        return math.sqrt(sum(v.double().square().sum().item() for v in self.directions.values()))

    def cosine(self, other: "ActivationVector") -> float:
        """Cosine over all blocks together; a block that one side lacks is zero there."""
        _same_base(self, other)
        shared = self.directions.keys() & other.directions.keys()
        norms = self.norm(), other.norm()
        if 0 in norms:
            raise AdapterError(
                "activation vector: is zero, so it has no direction. Expected one that changes something"
            )
        inner = sum((self.directions[b].double() @ other.directions[b].double()).item() for b in shared)
        return max(-1.0, min(1.0, inner / (norms[0] * norms[1])))

    def save(self, folder: str | Path) -> None:
        """Write one safetensors file whose header says what the vector is."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {
            "operation": self.operation,
            "site": SITES[self.operation],
            "sign": "positive minus negative",
            "mode": self.mode,
            "base": self.base or "",
            "info": json.dumps(dict(self.info)),
        }
        tensors = {f"block.{b}": v.float().contiguous() for b, v in self.directions.items()}
        save_file(tensors, folder / FILE, metadata)
        (folder / FILE).chmod(0o666 & ~_umask())

    @classmethod
    def load(cls, folder: str | Path) -> "ActivationVector":
        """Read what `save` wrote."""
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / FILE
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
                directions = {int(name.removeprefix("block.")): file.get_tensor(name) for name in list(file.keys())}
            operation, site, mode = said["operation"], said["site"], said["mode"]
            base, info = said["base"] or None, json.loads(said["info"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise AdapterError(
                f"{path}: not an activation vector ({error}). Expected a file that ActivationVector.save wrote"
            ) from None
        if mode not in get_args(Mode) or SITES.get(operation) != site:
            raise AdapterError(
                f"{path}: operation {operation!r} at {site!r} in mode {mode!r}. Expected one of {SITES} and a mode of "
                f"{', '.join(get_args(Mode))}. Read it with the version that wrote it"
            )
        return cls(directions, base, mode, info, operation)

    def applied(
        self, lm: LanguageModel, k: float, any_base: bool = False
    ) -> contextlib.AbstractContextManager[LanguageModel]:
        """Steer `lm` inside the block: h += k·direction at the output of each block; k = 0 adds no hook at all."""
        return self._applied(lm, k, any_base)

    def applied_by_row(
        self, lm: LanguageModel, ks: Sequence[float], any_base: bool = False
    ) -> contextlib.AbstractContextManager[LanguageModel]:
        """Steer row i of every batch with ks[i] inside the block.

        For passes that keep the rows in order; `generate` and `score_options` sort them by length. See `generate_many`.
        """
        return self._applied(lm, ks, any_base)

    @contextlib.contextmanager
    def _applied(self, lm: LanguageModel, ks: float | Sequence[float], any_base: bool) -> Iterator[LanguageModel]:
        k = strengths_of(ks)
        if self.base not in (None, lm.ref.fingerprint) and not any_base:
            raise AdapterError(
                f"activation vector of base {self.base}, model {lm.ref.source} is {lm.ref.fingerprint}. Expected the "
                "base it was made on; pass any_base=True for a fine-tune of it"
            )
        self._check_fits(lm)
        with contextlib.ExitStack() as undo:
            if k.any():
                if self.operation == "ablate":
                    hooks = ablate_hooks(lm, _one_direction(self), k, self.mode)
                else:
                    hooks = add_hooks(lm, self.directions, k, self.mode)
                for hook in hooks:
                    undo.callback(hook.remove)
            yield lm

    def _check_fits(self, lm: LanguageModel) -> None:
        blocks, width = len(decoder_blocks(lm.network)), lm.network.config.get_text_config().hidden_size
        for b, direction in self.directions.items():
            if not 0 <= b < blocks or direction.numel() != width:
                raise AdapterError(
                    f"activation vector: block {b} of width {direction.numel()} does not exist in {lm.ref.source}, "
                    f"which has {blocks} blocks of width {width}"
                )


def _one_direction(vector: ActivationVector) -> Float[Tensor, " d_model"]:
    """The direction of a vector that has one."""
    if len(vector.directions) != 1 or not vector.norm() > 0:
        raise AdapterError(
            f"activation vector: has blocks {sorted(vector.directions)}, norm {vector.norm():g}. Expected one "
            "direction that is not zero: it is taken out of all blocks. Choose it with at(block)"
        )
    return next(iter(vector.directions.values())).float()


def _same_base(a: ActivationVector, b: ActivationVector) -> str | None:
    if a.base and b.base and a.base != b.base:
        raise AdapterError(f"vectors of two bases, {a.base} and {b.base}. Expected vectors made on one model")
    return a.base or b.base


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask
