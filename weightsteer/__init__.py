"""Steer language models by arithmetic on their weights: θ + k(τ⁺ − τ⁻) (arXiv 2511.05408)."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from weightsteer import weights
    from weightsteer.activations.vector import ActivationVector
    from weightsteer.data.contrast import ContrastDataset, ContrastPair, load_pairs
    from weightsteer.diagnosis import diagnose
    from weightsteer.evaluation import EvalResult, evaluate
    from weightsteer.hub.push import push
    from weightsteer.merging.verify import verify
    from weightsteer.models.language_model import LanguageModel, load_model
    from weightsteer.monitor.callback import SteeringMonitor
    from weightsteer.monitor.thresholds import Thresholds
    from weightsteer.pipeline import run
    from weightsteer.recipe import Recipe, load_recipe, load_study
    from weightsteer.release import merge
    from weightsteer.studies import run_study
    from weightsteer.weights.combine import combine
    from weightsteer.weights.vector import WeightVector

# Public name -> where it lives. Loaded on first use: the command line starts without torch.
_HOMES = {
    "ActivationVector": "weightsteer.activations.vector",
    "ContrastDataset": "weightsteer.data.contrast",
    "ContrastPair": "weightsteer.data.contrast",
    "EvalResult": "weightsteer.evaluation",
    "LanguageModel": "weightsteer.models.language_model",
    "Recipe": "weightsteer.recipe",
    "SteeringMonitor": "weightsteer.monitor.callback",
    "Thresholds": "weightsteer.monitor.thresholds",
    "WeightVector": "weightsteer.weights.vector",
    "combine": "weightsteer.weights.combine",
    "diagnose": "weightsteer.diagnosis",
    "evaluate": "weightsteer.evaluation",
    "load_model": "weightsteer.models.language_model",
    "load_pairs": "weightsteer.data.contrast",
    "load_recipe": "weightsteer.recipe",
    "load_study": "weightsteer.recipe",
    "merge": "weightsteer.release",
    "push": "weightsteer.hub.push",
    "run": "weightsteer.pipeline",
    "run_study": "weightsteer.studies",
    "verify": "weightsteer.merging.verify",
}
__all__ = [
    "ActivationVector",
    "ContrastDataset",
    "ContrastPair",
    "EvalResult",
    "LanguageModel",
    "Recipe",
    "SteeringMonitor",
    "Thresholds",
    "WeightVector",
    "__version__",
    "combine",
    "diagnose",
    "evaluate",
    "load_model",
    "load_pairs",
    "load_recipe",
    "load_study",
    "merge",
    "push",
    "run",
    "run_study",
    "verify",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name == "weights":
        return importlib.import_module("weightsteer.weights")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'weightsteer' has no attribute '{name}'")
