"""How strongly each part of a model takes a change: by depth and by module."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from weightsteer.errors import AdapterError, report_problems

BLOCK = re.compile(r"\.(\d+)\.")  # the first number in a parameter name is that of its block
BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Scale:
    """Block l of L takes alpha + beta·l/(L-1) of a change; what lies outside blocks takes alpha.

    LiNeS (arXiv 2410.17146) is beta = 1 - alpha. The code of the weight-steering paper (arXiv 2511.05408) has
    alpha = beta = 0.5 and divides by L.
    """

    alpha: float = 1.0
    beta: float = 0.0
    divisor: Literal["L-1", "L"] = "L-1"
    modules: Mapping[str, float] = field(default_factory=dict)
    """Extra factors by part of a parameter name, whole steps between dots: {"mlp.down_proj": 0.5}. They multiply."""

    def factors(self, names: Iterable[str], config: Mapping[str, object]) -> dict[str, float]:
        """The factor of every parameter; an AdapterError when a module has none, or a block is beyond the model."""
        names = list(names)
        numbers = {"alpha": self.alpha, "beta": self.beta, **self.modules}
        problems = [f"{key}: {value} is not finite" for key, value in numbers.items() if not math.isfinite(value)]
        problems += [
            f"modules.{part}: no changed parameter has this in its name"
            for part in self.modules
            if not any(_has(name, part) for name in names)
        ]
        blocks = next((config[key] for key in BLOCK_COUNTS if isinstance(config.get(key), int)), None)
        if self.beta and blocks is None:
            problems.append(f"beta: config.json does not say how many blocks there are ({', '.join(BLOCK_COUNTS)})")
        elif self.beta:
            beyond = [n for n in names if (b := _block(n)) is not None and b >= blocks]
            problems += [f"{name}: beyond the model's {blocks} blocks" for name in beyond]
        report_problems(AdapterError, "scale", problems)
        return {name: self._depth(name, blocks) * self._module(name) for name in names}

    def _depth(self, name: str, blocks: int | None) -> float:
        block = _block(name)
        if not self.beta or block is None:
            return self.alpha
        # a single block is also the last one, which takes the whole
        return self.alpha + self.beta * (block / (blocks - (self.divisor == "L-1")) if blocks > 1 else 1.0)

    def _module(self, name: str) -> float:
        return math.prod(factor for part, factor in self.modules.items() if _has(name, part))


def _block(name: str) -> int | None:
    found = BLOCK.search(name)
    return int(found[1]) if found else None


def _has(name: str, part: str) -> bool:
    return f".{part}." in f".{name}."
