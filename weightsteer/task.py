"""The model that is steered: the base, or what a task fine-tune makes of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsteer.data.tasks import load_examples
from weightsteer.recipe import Recipe
from weightsteer.stage import digest, is_finished, run_stage


@dataclass(frozen=True)
class Tuned:
    """The model that is steered."""

    ref: Any
    lm: Any
    task: Any = None
    """The change that a fine-tune made here, as a weight vector; None where it was not made here."""
    examples: tuple[tuple[str, str], ...] = ()
    """(prompt, answer) rows of that fine-tune."""


def tune(recipe: Recipe, ref: Any, out: Path) -> Tuned:
    """The task-tuned model of a recipe with a task: the one it names, or trained on its rows into `out`/task."""
    from weightsteer.merging.merge import merge
    from weightsteer.models.language_model import load_model
    from weightsteer.models.reference import resolve
    from weightsteer.weights.finetune import load_for_training, resolved, train_adapter, training_inputs
    from weightsteer.weights.vector import WeightVector

    part, model = recipe.task, recipe.model
    assert part is not None
    if part.model is not None:
        given = model.model_copy(update={"source": part.model, "revision": None})
        return Tuned(resolve(given.source, given.revision), load_model(given))
    train, validation = load_examples(part, recipe.seed)
    settings = resolved(part.training)
    inputs = {
        "model": ref.fingerprint,
        "system": model.system,
        "rows": digest([train, validation]),
        "seed": recipe.seed,
        "settings": training_inputs(settings),
    }
    adapter, tuned = out / "task" / "adapter", out / "task" / "model"
    if not is_finished(adapter, inputs):
        lm, rate = load_for_training(model, settings), settings.learning_rates[0]
        arguments = (lm, train, validation, settings, rate, recipe.seed)
        run_stage(adapter, inputs, lambda path: train_adapter(*arguments, path, label="training task"))
    vector = WeightVector.load(adapter, base=ref.path)
    merge(ref, [(vector, 1.0)], tuned)
    given = model.model_copy(update={"source": str(tuned), "revision": None})
    return Tuned(resolve(given.source, given.revision), load_model(given), vector, tuple(train))
