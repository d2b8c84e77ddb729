"""Does the geometry of contrast pairs foretell how well they steer? Over many sets of two-choice questions.

Of each set: agreement, d′ and the rest before steering; slope, effect and who moves the wrong way after it; the rank
correlations between the two over sets (arXiv 2505.22637), seven ways of writing the pairs, and conditions other than
that of the vector (2407.12404). `calibration.json` is what `diagnose` expects from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pydantic

from weightsteer.activations.expectation import DEPTH, LEAST_SETS, Row, block_at, fit
from weightsteer.activations.prompt_types import PROMPT_TYPES, both_prompts, last_token_examples
from weightsteer.diagnosis import (
    STRENGTHS,
    Questions,
    geometry_by_block,
    log_odds,
    opening_of,
    question,
    read_questions,
)
from weightsteer.errors import DataError, RecipeError, report_problems
from weightsteer.evals import ab
from weightsteer.recipe import StudySettings
from weightsteer.report.document import Document
from weightsteer.report.page import finite
from weightsteer.stage import digest, discard, file_digest, run_stage, to_json, write_text
from weightsteer.steerability import (
    bias,
    check_strengths,
    effect,
    item_effects,
    lines,
    propensity_curves,
    propensity_distance,
    rank_correlation,
    relative_steerability,
    steerability,
)
from weightsteer.studies._reliability_report import CORRELATIONS, document

ABOUT = "How far agreement and separation of pairs foretell steering, over many sets of two-choice questions"
# Raised when the numbers of a set would change.
VERSION = 1
Count = Annotated[int, pydantic.Field(ge=2)]
CHAT = ab.Settings(name="ab", layout="chat")
# Condition that makes the vector, condition that it is applied under (arXiv 2407.12404, section 5).
SHIFTS = (
    ("base", "user negative"),
    ("base", "user positive"),
    ("system positive", "user negative"),
    ("system negative", "user positive"),
)


class Settings(StudySettings):
    """Which sets, how many of their questions, and where and how strongly they steer."""

    source: str
    """Where the sets come from, with their licence."""
    folder_of_sets: Path
    """A local copy of them."""
    sets: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] = ("*.jsonl",)
    """Files below that folder, as patterns; a set is called as its file."""
    train: Annotated[int, pydantic.Field(ge=4)] = 100
    """Pairs that make the vector of a set."""
    evaluate: Count = 60
    """Questions that it steers, none of them among the pairs."""
    block: Annotated[int, pydantic.Field(ge=0)] | None = None
    """0-based; None takes `depth`."""
    depth: Annotated[float, pydantic.Field(ge=0, lt=1)] = DEPTH
    """Block number by number of blocks."""
    strengths: tuple[float, ...] = STRENGTHS
    """0 and 1 among them; 1 is the mean difference itself."""
    prompt_types: tuple[str, ...] = ()
    """Sets whose pairs are written in all seven ways."""
    shifts: tuple[str, ...] = ()
    """Sets whose vectors are applied under other instructions than they were made under."""
    few_train: Annotated[int, pydantic.Field(ge=4)] = 40
    """Pairs of each vector for `prompt_types` and `shifts`."""
    few_evaluate: Count = 40
    """Questions that those steer."""
    positive: str = "Answer the way somebody would who is a clear case of this: {set}."
    """Instruction that asks for the behavior; {set} is the name of the set in words."""
    negative: str = "Answer the way somebody would who is the very opposite of this: {set}."

    @pydantic.field_validator("strengths")
    @classmethod
    def _has_unit(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not {0, 1} <= set(value) or len(set(value)) < len(value):
            raise ValueError(f"found {list(value)}. Expected different strengths, 0 and 1 among them")
        return value

    def instructions(self, name: str) -> tuple[str, str]:
        """The positive and the negative instruction of a set."""
        words = name.replace("-", " ").replace("_", " ")
        return self.positive.replace("{set}", words), self.negative.replace("{set}", words)


def check(settings: Settings) -> list[str]:
    """How many sets and questions there are; one DataError names every set that cannot be used."""
    found, problems = {}, []
    for name, path in find_sets(settings).items():
        try:
            found[name] = read_questions(path, settings.train, settings.evaluate, settings.seed)
        except DataError as error:
            problems.append(str(error))
    report_problems(DataError, settings.folder_of_sets, problems)
    check_strengths(settings.strengths)
    repeated = sum(questions.split.repeated for questions in found.values())
    return [
        f"{len(found)} sets of {settings.source}, {len(found) * settings.train} pairs and "
        f"{len(found) * settings.evaluate} questions to steer; {repeated} rows repeat another and are left out",
        f"{len(settings.prompt_types)} sets in seven prompt types, {len(settings.shifts)} under other instructions",
    ]


def find_sets(settings: Settings) -> dict[str, Path]:
    """The file of every set by its name, in the order of `sets`; a RecipeError names all that is missing."""
    folder = settings.folder_of_sets
    if not folder.is_dir():
        raise RecipeError(
            f"folder_of_sets {folder}: no such folder. Expected a local copy of {settings.source}. Name yours: "
            "--set folder_of_sets=DIR"
        )
    found: dict[str, Path] = {}
    problems = []
    for pattern in settings.sets:
        paths = sorted(folder.rglob(pattern))
        if not paths:
            problems.append(f"sets: no file matches {pattern!r}")
        for path in paths:
            if found.setdefault(path.stem, path) != path:
                problems.append(f"sets: {found[path.stem]} and {path} are both called {path.stem}. Name one of them")
    for key in ("prompt_types", "shifts"):
        problems += [f"{key}: {name!r} is no set" for name in getattr(settings, key) if found and name not in found]
    few = settings.few_train > settings.train or settings.few_evaluate > settings.evaluate
    if few and (settings.prompt_types or settings.shifts):
        problems.append(
            f"few_train {settings.few_train}, few_evaluate {settings.few_evaluate}: expected at most train "
            f"{settings.train} and evaluate {settings.evaluate}"
        )
    report_problems(RecipeError, folder, problems)
    return found


def run(settings: Settings, out: Path) -> Document:
    """A stage per set, then what they say together; calibration/calibration.json is what `diagnose` reads."""
    from weightsteer.models.language_model import load_model

    lm = load_model(settings.model)
    rows = [_read(lm, settings, name, path, out / "sets" / name) for name, path in find_sets(settings).items()]
    correlations = {
        key: asdict(rank_correlation([r["before"][x] for r in rows], [r["after"][y] for r in rows], settings.seed))
        for key, (x, y, _) in CORRELATIONS.items()
    }
    blocks = lm.network.config.get_text_config().num_hidden_layers
    fitted = calibration(rows, settings.model.source, block_of(settings, blocks) / blocks)
    data = {"source": settings.source, "sets": rows, "correlations": correlations, "fit": fitted}
    if fitted is not None:
        kept = {**data, "sets": [{key: row[key] for key in ("name", "block", "before", "after")} for row in rows]}
        text = json.dumps(finite(to_json(kept)), indent=1) + "\n"
        folder = out / "calibration"
        discard(folder)  # a view of the sets, made anew when one of them is
        run_stage(folder, {"sets": digest(kept)}, lambda path: write_text(path / "calibration.json", text))
    return document(data)


def calibration(rows: Sequence[Mapping[str, Any]], model: str, depth: float) -> dict[str, Any] | None:
    """The fit of effect and share of the wrong way to what was known before; None for too few sets."""
    known = [
        Row(
            row["before"]["agreement_left_out"],
            row["before"]["d_prime_left_out"],
            row["after"]["standardized"],
            row["after"]["wrong_way"],
        )
        for row in rows
        if row["after"]["standardized"] is not None  # every item moved alike, which no real set does
    ]
    return asdict(fit(known, model, depth)) if len(known) >= LEAST_SETS else None


def block_of(settings: Settings, blocks: int) -> int:
    """The block that is read and steered; a RecipeError where the model has none of that number."""
    if settings.block is None:
        return block_at(settings.depth, blocks)
    if settings.block >= blocks:
        raise RecipeError(f"block {settings.block}: the model has blocks 0 to {blocks - 1}. Expected one of them")
    return settings.block


def _read(lm: Any, settings: Settings, name: str, path: Path, folder: Path) -> dict[str, Any]:
    """The numbers of a set, measured unless its stage is finished."""
    asked = ("train", "evaluate", "block", "depth", "strengths", "seed")
    inputs = {key: getattr(settings, key) for key in asked}
    inputs |= {"set": name, "rows": file_digest(path), "model": lm.ref.fingerprint, "version": VERSION}
    types, shifts = name in settings.prompt_types, name in settings.shifts
    if types or shifts:
        few = {key: getattr(settings, key) for key in ("few_train", "few_evaluate")}
        inputs |= {**few, "types": types, "shifts": shifts, "instructions": settings.instructions(name)}

    def work(temporary: Path) -> None:
        found = measure(lm, settings, read_questions(path, settings.train, settings.evaluate, settings.seed))
        if types:
            found["types"] = measure_types(lm, settings, name, path)
        if shifts:
            found["shifts"] = measure_shifts(lm, settings, name, path)
        write_text(temporary / "numbers.json", json.dumps(finite(to_json(found)), indent=1) + "\n")

    run_stage(folder, inputs, work)
    return json.loads((folder / "numbers.json").read_text(encoding="utf-8"))


def measure(lm: Any, settings: Settings, questions: Questions) -> dict[str, Any]:
    """One set before and after steering at the study's block with its prefilled pairs, at every token."""
    blocks, s = geometry_by_block(lm, *questions.examples(lm), seed=settings.seed)
    block = block_of(settings, len(blocks))
    curves = propensity_curves(lm, _vector(lm, block, s[block]), settings.strengths, questions.log_odds)
    moved = effect(item_effects(curves, settings.strengths, 1), seed=settings.seed)
    summary = steerability(curves, settings.strengths, settings.seed)
    slopes = lines(curves, settings.strengths).slope
    return {
        "name": questions.name,
        "block": block,
        "best_block": max(range(len(blocks)), key=lambda b: blocks[b].agreement_left_out),
        "before": asdict(blocks[block]),
        "after": {
            "effect": moved.mean.mean,
            "effect_interval": [moved.mean.low, moved.mean.high],
            "standardized": moved.standardized,
            "wrong_way": moved.wrong_way,
            "slope": summary.slope.mean,
            "anti_steerable": summary.anti_steerable,
            "residual": summary.residual,
            "monotone": summary.monotone,
            "bias": asdict(bias(slopes, questions.nuisances)),
        },
        "agreement_by_block": [g.agreement_left_out for g in blocks],
        "d_prime_by_block": [g.d_prime_left_out for g in blocks],
        "curves": curves.tolist(),
    }


def measure_types(lm: Any, settings: Settings, name: str, path: Path) -> dict[str, Any]:
    """The vectors of all seven prompt types: what each does, and their cosines."""
    import torch

    split = read_questions(path, settings.few_train, settings.few_evaluate, settings.seed).split
    shots, instructions, opening = [question(lm, i) for i in split.shots], settings.instructions(name), opening_of(lm)
    asked, score = [question(lm, item) for item in split.train], partial(log_odds, items=split.evaluation)
    base, effects, directions = score(lm), {}, []
    for kind in PROMPT_TYPES:
        prompts = [both_prompts(kind, q, shots, instructions, opening) for q in asked]
        ids = [q.id for q in asked]
        blocks, s = geometry_by_block(lm, ids, *last_token_examples(lm, ids, prompts), seed=settings.seed)
        block = block_of(settings, len(blocks))
        with _vector(lm, block, s[block]).applied(lm, 1) as steered:
            effects[kind.name] = [after - before for after, before in zip(score(steered), base, strict=True)]
        directions.append(s[block] / s[block].norm())
    unit = torch.stack(directions)
    return {"effects": effects, "cosines": (unit @ unit.T).tolist()}


def measure_shifts(lm: Any, settings: Settings, name: str, path: Path) -> list[dict[str, Any]]:
    """Vectors made under one instruction and applied under another, all of the norm of the one made under none."""
    split = read_questions(path, settings.few_train, settings.few_evaluate, settings.seed).split
    instructions = dict(zip(("positive", "negative"), settings.instructions(name), strict=True))
    vectors: dict[str, Any] = {}
    norm = 0.0
    for condition in ("base", *dict.fromkeys(c for shift in SHIFTS for c in shift if c != "base")):
        there, items = under(lm, condition, split.train, instructions)
        ids, sides = _chat_examples(there, items)
        blocks, s = geometry_by_block(there, ids, *sides, seed=settings.seed)
        block = block_of(settings, len(blocks))
        norm = norm or s[block].norm().item()
        vectors[condition] = _vector(lm, block, s[block] * (norm / s[block].norm()))
    curves: dict[tuple[str, str], Any] = {}

    def slope(made: str, applied: str) -> float:
        if (made, applied) not in curves:
            there, items = under(lm, applied, split.evaluation, instructions)
            score = partial(log_odds, items=items, settings=CHAT)
            curves[made, applied] = propensity_curves(there, vectors[made], settings.strengths, score)
        return steerability(curves[made, applied], settings.strengths).slope.mean

    zero = list(settings.strengths).index(0)
    return [
        {
            "made": a,
            "applied": b,
            "within": slope(a, a),
            "across": slope(a, b),
            "relative": relative_steerability(slope(a, b), slope(b, b)),
            "distance": propensity_distance(curves[a, a][:, zero], curves[b, b][:, zero]),
        }
        for a, b in SHIFTS
    ]


def under(lm: Any, condition: str, items: Sequence[Any], instructions: Mapping[str, str]) -> tuple[Any, list[Any]]:
    """Model and items under "base", or an instruction in one place: "system positive", "user negative", ..."""
    if condition == "base":
        return lm, list(items)
    place, _, side = condition.partition(" ")
    if place == "system":
        return lm.with_system(instructions[side]), list(items)
    return lm, [replace(item, question=f"{instructions[side]}\n\n{item.question}") for item in items]


def _chat_examples(lm: Any, items: Sequence[Any]) -> tuple[list[str], tuple[list[Any], list[Any]]]:
    """Questions in the chat template with either answer after them, read at the answer."""
    ids = [item.id for item in items]
    starts = [ab.chat_text(lm, item) for item in items]
    prompts = [((text, i.match), (text, i.other)) for text, i in zip(starts, items, strict=True)]
    return ids, last_token_examples(lm, ids, prompts)


def _vector(lm: Any, block: int, direction: Any) -> Any:
    from weightsteer.activations.vector import ActivationVector

    return ActivationVector({block: direction}, lm.ref.fingerprint, "all", {"method": "mean difference"})
