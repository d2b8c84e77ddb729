"""Activation scaling (arXiv 2410.04962): one trained factor for what attention and MLP of each block write."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from weightsteer.methods import Fit
from weightsteer.recipe import MethodSettings
from weightsteer.recipe.training import Rate
from weightsteer.stage import run_stage

ABOUT = "(1 + k·α)·h, one trained α for what attention and MLP of each block write"
SEEDED = True
WRITES = ("",)


class Settings(MethodSettings):
    """How the factors are trained."""

    name: str = "activation-scaling"
    sites: Annotated[tuple[Literal["attention", "mlp"], ...], pydantic.Field(min_length=1)] = ("attention", "mlp")
    """What is scaled."""
    positions: Annotated[int, pydantic.Field(gt=0)] = 1
    """So many last tokens of the prompt have factors of their own; at most those that the chat template writes."""
    learning_rate: Rate = 1e-2
    epochs: Annotated[int, pydantic.Field(gt=0)] = 10
    batch_size: Annotated[int, pydantic.Field(gt=0)] = 6
    faithfulness: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 1.0
    """Weight of the divergence over the tokens that are not to change."""
    minimality: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 1e-3
    """Weight of Σ|α|."""


def fit(settings: Settings, fit: Fit) -> Any:
    """The factors."""
    from weightsteer.activations.scaling import ActivationScaling

    folder, lm = fit.folder(settings), fit.lm
    inputs = {
        "model": lm.ref.fingerprint,
        "dtype": str(lm.network.dtype),
        "system": lm.system,
        "pairs": fit.pairs.digest,
        "seed": fit.seed,
        "settings": settings.model_dump(mode="json", exclude={"k", "label"}),
    }
    run_stage(folder, inputs, lambda path: _fit(settings, fit, path))
    return ActivationScaling.load(folder)


def _fit(settings: Settings, fit: Fit, out: Path) -> None:
    from weightsteer.activations.scaling import ScalingTraining, trained_scaling
    from weightsteer.data.contrast import check_tokens

    check_tokens(fit.pairs, fit.lm)
    training = ScalingTraining(**settings.model_dump(exclude={"name", "label", "k"}), seed=fit.seed)
    trained_scaling(fit.lm, fit.pairs.part("train"), training, f"training {settings.label}").save(out)
