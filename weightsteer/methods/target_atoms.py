"""Steering target atoms (arXiv 2505.20322): a vector of chosen features of a sparse autoencoder that the user names."""

from pathlib import Path
from typing import Annotated, Any

import pydantic

from weightsteer.errors import AdapterError
from weightsteer.methods import Fit
from weightsteer.recipe import MethodSettings, Recipe
from weightsteer.stage import file_digest, run_stage

ABOUT = "h + k·(features of a sparse autoencoder that tell the answers apart), at one block"
WRITES = ("",)


class Settings(MethodSettings):
    """Which autoencoder, and how many of its features."""

    name: str = "target-atoms"
    autoencoder: Path
    """A folder in the layout of SAELens, cfg.json and sae_weights.safetensors, trained on the model's residual
    stream."""
    block: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Decoder block, from 0, whose output is read and changed; None takes the one that cfg.json names."""
    share: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.35
    """The top share, both by amplitude and by frequency, is kept."""


def check(settings: Settings, recipe: Recipe, pairs: Any) -> None:
    """Raise an AdapterError when the autoencoder cannot be read or says nothing of its block."""
    from weightsteer.activations.atoms import SparseAutoencoder

    autoencoder = SparseAutoencoder.load(settings.autoencoder)
    if settings.block is None and autoencoder.block is None:
        raise AdapterError(
            f"{settings.label}: cfg.json of {settings.autoencoder} names no residual stream. Expected a hook_name such "
            "as blocks.20.hook_resid_post. Set block"
        )


def fit(settings: Settings, fit: Fit) -> Any:
    """The activation vector, at its block."""
    from weightsteer.activations.atoms import CONFIG, WEIGHTS, SparseAutoencoder, check_fits
    from weightsteer.activations.vector import ActivationVector

    folder, lm = fit.folder(settings), fit.lm
    autoencoder = SparseAutoencoder.load(settings.autoencoder)
    check_fits(lm, autoencoder, autoencoder.block if settings.block is None else settings.block)
    inputs = {
        "model": lm.ref.fingerprint,
        "dtype": str(lm.network.dtype),
        "system": lm.system,
        "pairs": fit.pairs.digest,
        "autoencoder": {name: file_digest(settings.autoencoder / name) for name in (CONFIG, WEIGHTS)},
        "settings": settings.model_dump(mode="json", exclude={"k", "label", "autoencoder"}),
    }
    run_stage(folder, inputs, lambda path: _fit(settings, fit, autoencoder, path))
    return ActivationVector.load(folder)


def _fit(settings: Settings, fit: Fit, autoencoder: Any, out: Path) -> None:
    from weightsteer.activations.atoms import target_atoms
    from weightsteer.data.contrast import check_tokens

    check_tokens(fit.pairs, fit.lm)
    pairs = fit.pairs.part("train")
    target_atoms(fit.lm, pairs, autoencoder, settings.block, settings.share, settings.label).save(out)
