"""Contrastive weight steering with nothing trained but a bias at each MLP's output (arXiv 2511.05408, section 3)."""

from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import RecipeError
from weightsteer.methods import Fit, weights
from weightsteer.methods.weights import check, own_pairs
from weightsteer.recipe.training import Rate

__all__ = ["ABOUT", "SEEDED", "WRITES", "Settings", "check", "fit"]

ABOUT = "θ + k(β⁺ − β⁻), a trained vector at the output of each block's MLP and nothing else"
SEEDED = True
WRITES = ("positive", "negative", "vector")


class Settings(weights.Settings):
    """How the two sides are fine-tuned; what `weights` says of a LoRA is fixed here."""

    name: str = "bias-only"
    learning_rate: Rate | Annotated[tuple[Rate, ...], pydantic.Field(min_length=1)] = 1e-3
    """Several: each is tried on both sides, and the lowest validation loss decides. The paper: 1e-4 to 1e-3."""
    rank: Literal[1] = 1
    alpha: Literal[1] = 1
    target_modules: Literal["mlp-outputs"] = "mlp-outputs"


def fit(settings: Settings, fit: Fit) -> Any:
    """The weight vector, of biases alone."""
    from weightsteer.weights.bias import mlp_outputs, quiet_peft, with_biases
    from weightsteer.weights.finetune import fit_contrast

    chosen = fit.recipe.choose
    if chosen is not None and chosen.method == settings.label:
        names = {name for name, _ in fit.lm.network.named_parameters()}
        bare = [name for name in mlp_outputs(fit.lm.network) if f"{name}.bias" not in names]
        if bare:
            raise RecipeError(
                f"choose.method {settings.label}: its strength is to be merged, but {bare[0]} has no bias in this "
                "architecture, so no checkpoint of it can hold one. Choose another method, or leave choose out"
            )
    pairs = own_pairs(settings, fit.recipe, fit.pairs)
    with quiet_peft():
        return fit_contrast(settings, fit.recipe, pairs, fit.folder(settings), fit.seed, with_biases)
