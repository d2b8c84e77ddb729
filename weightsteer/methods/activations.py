"""Activation steering on the same pairs (arXiv 2507.21509): mean difference over answer tokens, at one block or all."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import DataError
from weightsteer.methods import Fit
from weightsteer.recipe import MethodSettings, Recipe
from weightsteer.stage import run_stage, write_text

ABOUT = "h + k·(mean difference of answer activations), at one block or at all"
WRITES = ("",)


class Settings(MethodSettings):
    """Where the vector is read and added."""

    name: str = "activations"
    block: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Decoder block, from 0; None sweeps all and takes the one with the largest spread on validation pairs."""
    all_layers: bool = False
    """Steer every block but the last, each by what its direction adds to that of the block before, in place of one."""
    mode: Literal["all", "after_user", "generated", "answer"] = "generated"
    """`all`: every token; `after_user`: from the end of the user's turn on (arXiv 2312.06681); `generated`: last prompt
    token and answer (2507.21509); `answer`: answer tokens alone (2407.12404)."""
    stride: Annotated[int, pydantic.Field(gt=0)] = 3
    """The sweep tries every so many blocks."""
    validation_pairs: Annotated[int, pydantic.Field(gt=0)] = 12
    """Validation pairs that the sweep uses at most."""

    @pydantic.model_validator(mode="after")
    def _one_place(self) -> "Settings":
        if self.all_layers and self.block is not None:
            raise ValueError(f"both block {self.block} and all_layers are set; keep one")
        return self


def check(settings: Settings, recipe: Recipe, pairs: Any) -> None:
    """Raise a DataError when a block is to be chosen and there is nothing to choose it on."""
    if settings.block is None and not settings.all_layers and not pairs.part("validation").pairs:
        raise DataError(
            f"{settings.label}: no validation pairs to choose a block on. Raise pairs.validation, or set a block"
        )


def fit(settings: Settings, fit: Fit) -> Any:
    """The activation vector, at its block or at all."""
    from weightsteer.activations.vector import ActivationVector

    folder, lm = fit.folder(settings), fit.lm
    inputs = {
        "model": lm.ref.fingerprint,
        "dtype": str(lm.network.dtype),
        "system": lm.system,
        "pairs": fit.pairs.digest,
        "settings": settings.model_dump(mode="json", exclude={"k", "label"}),
    }
    run_stage(folder, inputs, lambda path: _fit(settings, fit.pairs, lm, path))
    return ActivationVector.load(folder)


def _fit(settings: Settings, pairs: Any, lm: Any, out: Path) -> None:
    from weightsteer.activations.makers import persona_vector
    from weightsteer.data.contrast import check_tokens

    check_tokens(pairs, lm)
    vector = persona_vector(lm, pairs.part("train"))
    vector = replace(vector, mode=settings.mode, info={**vector.info, "pairs_digest": pairs.digest})
    if settings.all_layers:
        vector.increments().save(out)
        return
    spreads = {}
    block = settings.block
    if block is None:
        spreads = _sweep(settings, pairs.part("validation").pairs, lm, vector)
        block = max(spreads, key=lambda b: spreads[b])
    vector.at(block).save(out)
    write_text(out / "sweep.json", json.dumps({"block": block, "validation": sorted(spreads.items())}, indent=1))


def _sweep(settings: Settings, pairs: Sequence[Any], lm: Any, vector: Any) -> dict[int, float]:
    """Block -> how far k = 1 and k = -1 pull the per-token preference apart, in nats (methods C.5)."""
    from weightsteer import progress
    from weightsteer.evals.preference import score

    pairs = pairs[: settings.validation_pairs]
    blocks = range(0, len(vector.directions), settings.stride)
    spreads = {}
    with progress.task("activations: block sweep", len(blocks)) as advance:
        for block in blocks:
            log_odds = {}
            for k in (-1, 1):
                with vector.at(block).applied(lm, k) as steered:
                    scores = score(steered, pairs)
                log_odds[k] = sum(item.values["log_odds"] or 0.0 for item in scores) / len(scores)
            spreads[block] = log_odds[1] - log_odds[-1]
            advance()
    return spreads
