"""Contrastive weight steering with nothing trained but a bias at each MLP's output (arXiv 2511.05408, section 3)."""

from typing import Annotated, Any, Literal

import pydantic

from weightsteer.errors import RecipeError
from weightsteer.methods import Fit, weights
from weightsteer.methods.weights import check, own_pairs
from weightsteer.recipe.training import Rate

__all__ = ["ABOUT", "SEEDED", "WRITES", "Settings", "check", "check_release", "fit"]

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
    from weightsteer.weights.bias import quiet_peft, with_biases
    from weightsteer.weights.finetune import fit_contrast

    pairs = own_pairs(settings, fit.recipe, fit.pairs)
    with quiet_peft():
        return fit_contrast(settings, fit.recipe, pairs, fit.folder(settings), fit.seed, with_biases)


def check_release(settings: Settings, network: Any) -> None:
    """Raise a RecipeError where a checkpoint of this architecture cannot hold what this method trains."""
    from weightsteer.weights.bias import mlp_outputs

    names = {name for name, _ in network.named_parameters()}
    for layer in mlp_outputs(network):
        if f"{layer}.bias" not in names:
            raise RecipeError(
                f"methods {settings.label}: its strength is to be merged, but {layer} has no bias in this "
                "architecture, so no checkpoint of it can hold one. Choose another method, or leave choose out"
            )
