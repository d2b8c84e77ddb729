"""What steering does inside: four vectors of one behavior, what each acts through, and how much of it is needed.

The questions of arXiv 2604.08524 (attention frozen, values read as tokens, circuits, dimensions left out), put to a
difference in means, to vectors trained on the next token and on preferences, and for the first time to a change of the
weights. Vectors are made from the training pairs; all that is measured is measured on held-out questions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic

from weightsteer.data.contrast import ContrastDataset, load_pairs
from weightsteer.errors import DataError, RecipeError
from weightsteer.recipe import PairsPart, Recipe, StudySettings, TrainingPart
from weightsteer.recipe.training import Part, Rate
from weightsteer.report.document import Document

ABOUT = "what steering acts through: parts frozen, values as tokens, circuits, and what can be left out of a vector"

Count = Annotated[int, pydantic.Field(gt=0)]
Several = Annotated[int, pydantic.Field(ge=2)]
Share = Annotated[float, pydantic.Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, ...], pydantic.Field(min_length=1)]
Strength = Annotated[float, pydantic.Field(gt=0)]


class VectorTrainingPart(Part):
    """How the two trained activation vectors are trained. Defaults: arXiv 2604.08524 and its code."""

    learning_rate: Rate = 1e-2
    epochs: Count = 10
    batch_size: Count = 6
    factors: tuple[Count, Count] = (2, 20)
    """Each example is steered by a random whole factor between these."""


class Settings(StudySettings):
    """Which behavior, how the vectors are made and how strongly they act, and how much is measured."""

    behavior: str = "refusal"
    """As in a recipe: a shipped behavior, or a path."""
    pairs: PairsPart = PairsPart(validation=0, held_out=1 / 3, limit=60)
    block: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Where activation vectors are read and added, 0-based, not the last; None takes `depth`."""
    depth: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5
    """Block number by number of blocks."""
    k: Strength = 2
    """Of the activation vectors: how many times the length of the difference in means is added, whichever it is."""
    k_weights: Strength = 2
    """Of the weight vector."""
    vector_training: VectorTrainingPart = VectorTrainingPart()
    fine_tune: TrainingPart = TrainingPart()
    """Of both sides of the weight vector."""
    answer_tokens: Several = 24
    """So many tokens of an answer train a vector, and are written for the circuits."""
    prompts: Several = 4
    """Held-out questions whose answers, with and without steering, the circuits are found on."""
    exact_prompts: Count = 2
    """Those of them on which every head and MLP is also patched, one by one, for a check."""
    steps: Count = 10
    """Of integrated gradients."""
    circuit_shares: Shares = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    """Shares of the edges whose circuits are run alone."""
    circuit_share: Share = 0.1
    """Share of the edges whose circuits are compared between vectors."""
    thresholds: Annotated[tuple[Annotated[float, pydantic.Field(gt=0)], ...], pydantic.Field(min_length=1)] = (
        0.1, 0.3, 0.5, 1, 1.5, 2, 2.5,
    )  # fmt: skip
    """r: a dimension is kept whose share of the effect is at least r times its share of the vector."""
    threshold: Annotated[float, pydantic.Field(gt=0, le=1)] = 1
    """The r at which kept dimensions are compared between vectors; up to 1 some are always kept."""
    weight_shares: Shares = (0.5, 0.2, 0.1, 0.05, 0.02)
    """Shares of the weight vector that are kept."""
    ranges: Count = 3
    """Into how many ranges of blocks the weight vector is split."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        problems = []
        if self.pairs.elicit is not None:
            problems.append("pairs.elicit: is set. Expected pairs that exist; elicit them with a recipe of methods")
        if len(self.fine_tune.learning_rates) > 1:
            problems.append(f"fine_tune.learning_rate: {list(self.fine_tune.learning_rates)}. Expected one")
        if self.exact_prompts > self.prompts:
            problems.append(f"exact_prompts: {self.exact_prompts}. Expected at most prompts, {self.prompts}")
        if self.threshold not in self.thresholds:
            problems.append(f"threshold: {self.threshold:g}. Expected one of thresholds, {list(self.thresholds)}")
        if self.vector_training.factors[0] > self.vector_training.factors[1]:
            problems.append(f"vector_training.factors: {list(self.vector_training.factors)}. Expected low, then high")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def recipe(self) -> Recipe:
        """The recipe that has these pairs, for all that is made from one."""
        return Recipe(
            name=self.name, seed=self.seed, model=self.model, behavior=self.behavior, pairs=self.pairs, methods=(),
            k=(0,), evals=(), folder=self.folder,
        )  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What a run starts from."""

    settings: Settings
    recipe: Recipe
    pairs: ContrastDataset
    """Split into those that vectors are made from and those that are measured on."""


def check(settings: Settings) -> list[str]:
    """How many pairs there are; a DataError where they are too few."""
    given = read(settings)
    train, held_out = (len(given.pairs.part(split)) for split in ("train", "held_out"))
    return [
        f"{settings.behavior}: {train} pairs for the vectors, {held_out} questions to measure on, "
        f"{settings.prompts} of them for circuits"
    ]


def run(settings: Settings, out: Path) -> Document:
    """Every stage below `out`, then the document."""
    from weightsteer.studies._mechanism_bench import Bench
    from weightsteer.studies._mechanism_document import make_document
    from weightsteer.studies._mechanism_measured import measure

    bench = Bench(read(settings), out)
    return make_document(settings, measure(bench))


def read(settings: Settings) -> Given:
    """The pairs of the behavior."""
    recipe = settings.recipe
    pairs = load_pairs(recipe)
    held_out = len(pairs.part("held_out"))
    if held_out < max(2, settings.prompts):
        raise DataError(
            f"{settings.behavior}: {held_out} of {len(pairs)} pairs are held out. Expected {max(2, settings.prompts)} "
            "or more, 2 for an interval and as many as `prompts`. Raise pairs.held_out or pairs.limit, or add pairs"
        )
    return Given(settings, recipe, pairs)


def block_of(settings: Settings, blocks: int) -> int:
    """Where activation vectors act; a RecipeError where no block of the model comes after it."""
    from weightsteer.activations.expectation import block_at

    block = block_at(settings.depth, blocks) if settings.block is None else settings.block
    if block >= blocks - 1:
        found = f"block {block}" if settings.block is not None else f"depth {settings.depth:g}, which is block {block}"
        raise RecipeError(
            f"{found}: the model has blocks 0 to {blocks - 1}. Expected one before the last, so that something comes "
            "after it. Set block or depth"
        )
    return block
