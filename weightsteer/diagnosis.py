"""Can a behavior be steered? Its pairs before steering, vectors after it, and in a sentence what to expect."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from weightsteer.activations.prompt_types import (
    PREFILLED,
    SHOTS,
    Question,
    Split,
    both_prompts,
    last_token_examples,
    split_items,
)
from weightsteer.data.contrast import (
    ContrastDataset,
    check_pairs,
    encode_example,
    load_pairs,
    read_pairs,
    read_rows,
    split_pairs,
)
from weightsteer.errors import DataError, RecipeError, report_problems
from weightsteer.evals import Given, ab, preference
from weightsteer.recipe import ModelPart, PairsPart, load_recipe
from weightsteer.report import diagnosis
from weightsteer.report.document import Document, write_document
from weightsteer.steerability import (
    bias,
    check_strengths,
    effect,
    item_effects,
    lines,
    propensity_curves,
    steerability,
)

STRENGTHS = (-1.0, 0.0, 1.0)
# Pairs read and items scored at most: as many as the source of the statistics takes for each.
LIMIT = 250
PLAIN = ab.Settings(name="ab", layout="plain")
RECIPES = (".yaml", ".yml")


@dataclass(frozen=True)
class Questions:
    """Questions with two answers, put as plain text; the pair is the question with either answer after it."""

    name: str
    split: Split[ab.Item]
    read_at = "the answer token"
    written = False

    def examples(self, lm: Any) -> tuple[list[str], list[Any], list[Any]]:
        """Ids, positive and negative texts of the items to train on, prefilled."""
        ids = [item.id for item in self.split.train]
        asked = [question(lm, item) for item in self.split.train]
        opening = opening_of(lm)
        return ids, *last_token_examples(lm, ids, [both_prompts(PREFILLED, q, opening=opening) for q in asked])

    def log_odds(self, lm: Any) -> list[float]:
        """m_LD of the evaluation items as the model stands."""
        return log_odds(lm, self.split.evaluation)

    @property
    def nuisances(self) -> list[Mapping[str, bool | None]]:
        return [ab.nuisances(item) for item in self.split.evaluation]


@dataclass(frozen=True)
class WrittenPairs:
    """Questions answered both ways in writing, in the chat template."""

    name: str
    train: ContrastDataset
    held_out: ContrastDataset
    written = True
    nuisances = ()

    @property
    def lettered(self) -> bool:
        """Whether every answer is a letter, so that one token tells the sides apart."""
        answers = [answer for pair in self.train.pairs for answer in (pair.positive, pair.negative)]
        return all(re.fullmatch(r"\(?[A-Z]\)?", answer.strip()) for answer in answers)

    @property
    def read_at(self) -> str:
        return "the answer token" if self.lettered else "all answer tokens, averaged"

    def examples(self, lm: Any) -> tuple[list[str], list[Any], list[Any]]:
        """Ids, positive and negative texts of the training pairs."""
        from weightsteer.activations.capture import answer_token_examples, example

        ids = [pair.id for pair in self.train.pairs]
        if self.lettered:
            sides = answer_token_examples(lm, self.train.pairs)
        else:
            sides = tuple(
                [example(*encode_example(lm, pair.prompt, getattr(pair, side)), "answer") for pair in self.train.pairs]
                for side in ("positive", "negative")
            )
        context = getattr(lm.network.config.get_text_config(), "max_position_embeddings", None)
        if context is not None:
            longest = [max(len(text.ids) for text in both) for both in zip(*sides, strict=True)]
            problems = [
                f"{id}: {length} tokens; the context of {lm.ref.source} has {context}. Shorten it"
                for id, length in zip(ids, longest, strict=True)
                if length > context
            ]
            report_problems(DataError, self.train.source, problems)
        return ids, *sides

    def log_odds(self, lm: Any) -> list[float]:
        """Log-likelihood per token of the positive less that of the negative answer, of the held-out pairs."""
        return [score.values["log_odds"] for score in preference.score(lm, self.held_out.pairs)]


def diagnose(
    source: str | Path,
    model: str | ModelPart | None = None,
    vectors: Sequence[str | Path] = (),
    out: str | Path | None = None,
    *,
    strengths: Sequence[float] = STRENGTHS,
    parts: bool = False,
    seed: int = 0,
) -> Document:
    """What the pairs of a recipe, a pair file or a file of two-choice questions let expect, block by block; and how
    each of `vectors` (folders of weight or activation vectors) moves items that are in no pair read here.

    `parts` applies weight vectors kind by kind and block by block too. With `out`, report.html, report.md, report.json
    and figures are written there. Definitions: arXiv 2505.22637, 2407.12404. Errors: a RecipeError where no model is
    named, a DataError for items that cannot be used, each named by file and row, an AdapterError for a vector of
    another model or a strength that is not finite.
    """
    from weightsteer.activations.expectation import load_calibration
    from weightsteer.models.language_model import load_model

    check_strengths(strengths)
    source = Path(source)
    material, part = read_material(source, model, bool(vectors), seed)
    steering = _load_vectors(vectors)
    calibration = load_calibration()
    lm = load_model(part)
    found, _ = geometry_by_block(lm, *material.examples(lm), seed=seed)
    before = diagnosis.Before(material.name, found, material.read_at, material.written, calibration)
    steered = {name: steered_numbers(lm, v, material, strengths, seed) for name, v in steering.items()}
    weights = _weight_vectors(steering)
    document = diagnosis.document(
        before,
        steered,
        _agreement(weights),
        _parts(lm, weights, strengths, material, seed) if parts else {},
        facts={"pairs": str(source), "model": lm.ref.source, "fingerprint": lm.ref.fingerprint, "seed": str(seed)},
    )
    if out is not None:
        write_document(document, Path(out))
    return document


def read_material(
    source: Path, model: str | ModelPart | None, held_out: bool, seed: int
) -> tuple[Questions | WrittenPairs, ModelPart]:
    """What is diagnosed, split, and with which model; reads no model. `held_out` asks for items to steer on."""
    part = ModelPart(source=model) if isinstance(model, str) else model
    if source.suffix in RECIPES:
        recipe = load_recipe(source)
        if recipe.pairs.elicit is not None:
            raise RecipeError(
                f"{source}: its pairs are sampled from the model. Expected pairs in a file. Run the recipe --until "
                "pairs, then diagnose the pairs.jsonl that it leaves"
            )
        pairs = load_pairs(recipe)
        if held_out and not len(pairs.part("held_out")):
            raise DataError(f"{source}: holds out no pairs to steer on. Raise pairs.held_out")
        return WrittenPairs(
            recipe.behavior, _limited(pairs.part("train")), pairs.part("held_out")
        ), part or recipe.model
    if part is None:
        raise RecipeError(f"{source}: is no recipe, so it names no model. Expected one. Add --model MODEL")
    first = next(iter(read_rows(str(source))), None)
    if isinstance(first, Mapping) and (isinstance(first.get("positive"), str | list) or "chosen" in first):
        pairs = read_pairs(str(source))
        check_pairs(pairs, str(source))
        split = split_pairs(pairs, PairsPart(validation=0, held_out=0.5, limit=2 * LIMIT), seed)
        dataset = ContrastDataset(source.stem, split, source.name)
        return WrittenPairs(source.stem, dataset.part("train"), dataset.part("held_out")), part
    return read_questions(source, None, None, seed), part


def read_questions(source: Path, train: int | None, evaluation: int | None, seed: int) -> Questions:
    """A file of two-choice questions, split; without sizes, in halves of at most 250."""
    items = ab.read_items(PLAIN.model_copy(update={"items": source}), Given())
    half = min(LIMIT, (len({item.question for item in items}) - SHOTS) // 2)
    sizes = [max(half, 2) if size is None else size for size in (train, evaluation)]
    return Questions(source.stem, split_items(items, *sizes, seed, source))


def question(lm: Any, item: ab.Item) -> Question:
    """A two-choice item as plain text (arXiv 2505.22637), without what begins a text."""
    text, space = ab.plain_text(lm, item).removeprefix(opening_of(lm)), "" if item.lettered else " "
    return Question(item.id, text, space + item.match, space + item.other, ")" if item.lettered else "")


def opening_of(lm: Any) -> str:
    """What the tokenizer puts before every text; empty where it puts nothing."""
    tokenizer = lm.tokenizer
    return tokenizer.bos_token if tokenizer("A")["input_ids"][0] == tokenizer.bos_token_id else ""


def log_odds(lm: Any, items: Sequence[ab.Item], settings: ab.Settings = PLAIN) -> list[float]:
    """m_LD of items as the model stands, in nats."""
    return [score.values["log_odds"] for score in ab.score(lm, items, settings, Given())]


def geometry_by_block(
    lm: Any, ids: Sequence[str], positive: Sequence[Any], negative: Sequence[Any], seed: int = 0
) -> tuple[list[Any], Any]:
    """The Geometry of pairs at every block, and the tensor of their mean differences [blocks, d_model].

    Activations of all pairs and blocks are held at once, in float32.
    """
    import torch

    from weightsteer.activations.capture import pair_activations
    from weightsteer.activations.geometry import geometry

    sides: tuple[list[Any], list[Any]] = ([None] * len(ids), [None] * len(ids))
    for batch, *both in pair_activations(lm, positive, negative, "activations of pairs"):
        for side, rows in zip(sides, both, strict=True):
            for i, row in zip(batch, rows[:, 0], strict=True):
                side[i] = row
    ours, theirs = (torch.stack(side) for side in sides)
    found = [geometry(ours[:, block], theirs[:, block], seed, ids) for block in range(ours.shape[1])]
    return found, (ours - theirs).mean(0)


def steered_numbers(
    lm: Any, vector: Any, material: Questions | WrittenPairs, strengths: Sequence[float], seed: int
) -> dict[str, Any]:
    """How one vector moves the items: line, effect of the largest strength, and what the form of the items explains."""
    curves = propensity_curves(lm, vector, strengths, material.log_odds)
    top = max(strengths)
    return {
        "strengths": list(strengths),
        "curve": curves.mean(0).tolist(),
        "steerability": steerability(curves, strengths, seed),
        "k": top,
        "effect": effect(item_effects(curves, strengths, top), top, seed),
        "bias": bias(lines(curves, strengths).slope, material.nuisances) if material.nuisances else None,
        "per_item": [{"curve": row.tolist()} for row in curves],
    }


def _limited(pairs: ContrastDataset) -> ContrastDataset:
    return replace(pairs, pairs=pairs.pairs[:LIMIT])


def _load_vectors(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Vectors by the name of their folder, by the whole path where two are called alike."""
    from weightsteer.activations.vector import FILE, ActivationVector
    from weightsteer.weights.vector import WeightVector

    names = [Path(path).name for path in paths]
    found = {}
    for path, name in zip(paths, names, strict=True):
        kind = ActivationVector if (Path(path) / FILE).is_file() else WeightVector
        found[name if names.count(name) == 1 else str(path)] = kind.load(path)
    return found


def _weight_vectors(vectors: Mapping[str, Any]) -> dict[str, Any]:
    from weightsteer.weights.vector import WeightVector

    return {name: vector for name, vector in vectors.items() if isinstance(vector, WeightVector)}


def _agreement(vectors: Mapping[str, Any]) -> dict[str, Any] | None:
    from weightsteer.weights.reliability import vector_agreement

    return asdict(vector_agreement(vectors)) if len(vectors) > 1 else None


def _parts(
    lm: Any, vectors: Mapping[str, Any], strengths: Sequence[float], material: Questions | WrittenPairs, seed: int
) -> dict[str, dict[str, Any]]:
    """Vector -> part ("attention", "block 3") -> its steerability alone."""
    from weightsteer.weights.reliability import blocks_of, kinds_of, steerability_of_parts

    named = {
        name: kinds_of(vector) | {f"block {block}": part for block, part in blocks_of(vector).items()}
        for name, vector in vectors.items()
    }
    return {name: steerability_of_parts(lm, parts, strengths, material.log_odds, seed) for name, parts in named.items()}
