"""The methods of a comparison: each fits to something with the one seam, and k = 0 is the base."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from weightsteer.activations.capture import mean_answer_activations
from weightsteer.activations.steering import Mode
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import ContrastDataset, encode_example, load_pairs
from weightsteer.errors import DataError, RecipeError, StageError
from weightsteer.evals.preference import score
from weightsteer.methods import Fit, activations, finetuned, prompt, weights
from weightsteer.models.language_model import LanguageModel, load_model
from weightsteer.recipe import Recipe, load_recipe
from weightsteer.weights.vector import WeightVector


@pytest.fixture
def made(write_recipe: Callable[..., Path]) -> tuple[Recipe, ContrastDataset, LanguageModel]:
    recipe = load_recipe(write_recipe())
    return recipe, load_pairs(recipe), load_model(recipe.model)


def fitted(method: Any, recipe: Recipe, pairs: ContrastDataset, lm: LanguageModel, out: Path) -> Any:
    """What the method of the recipe gives; the two fine-tuned models lie where `weights` has put them."""
    if method is finetuned:
        fitted(weights, recipe, pairs, lm, out)
    settings = recipe.method(method.__name__.split(".")[-1])
    return method.fit(settings, Fit(recipe, pairs, lm, out, recipe.seed))


def logits(lm: Any) -> torch.Tensor:
    with torch.inference_mode():
        return lm.network(torch.tensor([lm.tokens(lm.chat("Is it good?"))])).logits


@pytest.mark.parametrize("method", [activations, finetuned, prompt, weights], ids=lambda m: m.__name__.split(".")[-1])
def test_every_method_steers_behind_the_same_seam(made: Any, tmp_path: Path, method: Any):
    recipe, pairs, lm = made
    vector = fitted(method, recipe, pairs, lm, tmp_path)
    assert len(vector.digest) == 64
    assert fitted(method, recipe, pairs, lm, tmp_path).digest == vector.digest, "a finished stage gives the same"
    plain = logits(lm)
    seen = {}
    for k in (-1, 0, 1):
        with vector.applied(lm, k) as steered:
            seen[k] = logits(steered)
    assert torch.equal(seen[0], plain)
    assert torch.equal(logits(lm), plain)
    for k in (-1, 1):
        assert seen[k].shape != plain.shape or not torch.equal(seen[k], plain)
    assert seen[1].shape != seen[-1].shape or not torch.equal(seen[1], seen[-1])


# Activation steering.


def test_the_activation_vector_is_the_difference_of_means_over_training_answers(made: Any, tmp_path: Path):
    recipe, pairs, lm = made
    vector = fitted(activations, recipe, pairs, lm, tmp_path)
    train = pairs.part("train")
    positive, negative = (
        mean_answer_activations(lm, [encode_example(lm, p, a) for p, a in train.side(side)])
        for side in ("positive", "negative")
    )
    [block] = vector.directions
    assert torch.allclose(vector.directions[block], (positive - negative)[block].float(), atol=1e-6)
    assert (vector.base, vector.mode) == (lm.ref.fingerprint, "generated")


def test_the_block_with_the_largest_spread_on_validation_pairs_is_taken(
    write_recipe: Callable[..., Path], tmp_path: Path
):
    recipe = load_recipe(write_recipe(), ["methods[1].stride=1"])
    pairs, lm = load_pairs(recipe), load_model(recipe.model)
    vector = fitted(activations, recipe, pairs, lm, tmp_path)
    sweep = json.loads((tmp_path / "activations" / "sweep.json").read_text(encoding="utf-8"))
    assert [block for block, _ in sweep["validation"]] == [0, 1]
    assert sweep["block"] == max(sweep["validation"], key=lambda pair: pair[1])[0] == next(iter(vector.directions))
    log_odds = {}
    for k in (-1, 1):
        with vector.applied(lm, k) as steered:
            items = score(steered, pairs.part("validation").pairs)
        log_odds[k] = sum(item.values["log_odds"] for item in items) / len(items)
    assert dict(map(tuple, sweep["validation"]))[sweep["block"]] == pytest.approx(log_odds[1] - log_odds[-1], abs=1e-5)


def test_a_block_that_is_given_needs_no_validation_pairs(write_recipe: Callable[..., Path], tmp_path: Path):
    path = write_recipe()
    recipe = load_recipe(path, ["methods[1]={name: activations, block: 1, mode: all}", "pairs.validation=0"])
    pairs, lm = load_pairs(recipe), load_model(recipe.model)
    activations.check(recipe.method("activations"), recipe, pairs)
    vector = fitted(activations, recipe, pairs, lm, tmp_path)
    assert (list(vector.directions), vector.mode) == ([1], "all")
    assert ActivationVector.load(tmp_path / "activations").digest == vector.digest
    unset = load_recipe(path, ["pairs.validation=0"])
    with pytest.raises(
        DataError, match=r"activations: no validation pairs to choose a block on. Raise pairs.validation, or"
    ):
        activations.check(unset.method("activations"), unset, pairs)
    with pytest.raises(
        StageError, match=r"activations: holds a finished stage with other inputs\n  settings.block: 1 there"
    ):
        fitted(
            activations, load_recipe(path, ["methods[1]={name: activations, block: 0, mode: all}"]), pairs, lm, tmp_path
        )


@pytest.mark.parametrize("mode", get_args(Mode))
def test_every_mode_of_steering_can_be_asked_for(
    write_recipe: Callable[..., Path], made: Any, tmp_path: Path, mode: str
):
    assert get_args(activations.Settings.model_fields["mode"].annotation) == get_args(Mode)
    recipe = load_recipe(write_recipe(), [f"methods[1]={{name: activations, block: 1, mode: {mode}}}"])
    _, pairs, lm = made
    assert fitted(activations, recipe, pairs, lm, tmp_path).mode == mode


# The system prompt.


def test_the_sign_chooses_the_system_prompt(made: Any, tmp_path: Path):
    recipe, pairs, lm = made
    pair = fitted(prompt, recipe, pairs, lm, tmp_path)
    for k, expected in ((-3, pair.prompts.negative), (0, None), (0.1, pair.prompts.positive)):
        with pair.applied(lm, k) as steered:
            assert steered.system == expected
            assert steered.network is lm.network
    with pair.applied(lm.with_system("own"), 0) as steered:
        assert steered.system == "own"


def test_another_pair_of_prompts_by_its_number(write_recipe: Callable[..., Path], tmp_path: Path, made: Any):
    path, (_, pairs, lm) = write_recipe(), made
    first = fitted(prompt, load_recipe(path), pairs, lm, tmp_path)
    second = fitted(prompt, load_recipe(path, ["methods[2].number=2"]), pairs, lm, tmp_path)
    assert first.digest != second.digest
    recipe = load_recipe(path, ["methods[2].number=99"])
    with pytest.raises(
        RecipeError, match=r"methods prompt.number: 99, but behavior sycophancy has \d+ pairs of system promp"
    ):
        prompt.check(recipe.method("prompt"), recipe, pairs)


# Plain fine-tuning.


def test_the_fine_tuned_models_are_the_sides_of_the_vector(made: Any, tmp_path: Path):
    recipe, pairs, lm = made
    pair = fitted(finetuned, recipe, pairs, lm, tmp_path)
    sides = {
        1: WeightVector.load(tmp_path / "weights" / "positive"),
        -1: WeightVector.load(tmp_path / "weights" / "negative"),
    }
    for k, side in sides.items():
        with side.applied(lm, 1) as tuned:
            expected = logits(tuned)
        with pair.applied(lm, k) as tuned:
            assert torch.equal(logits(tuned), expected)
    vector = fitted(weights, recipe, pairs, lm, tmp_path)
    both = sides[1] - sides[-1]
    assert (vector - both).norm() == pytest.approx(0, abs=1e-5 * vector.norm())
