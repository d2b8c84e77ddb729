"""Trait files: a behavior with all that elicitation needs, in our layout or in that of persona vectors."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import pydantic

from weightsteer.errors import RecipeError, report_problems
from weightsteer.recipe import Behavior, Part, SystemPrompts
from weightsteer.recipe.files import read_mapping
from weightsteer.recipe.problems import problem, validate

PERSONA_KEYS = {"instruction", "eval_prompt"}


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _some(items: tuple[Any, ...]) -> tuple[Any, ...]:
    if not items:
        raise ValueError("is empty. Expected at least one")
    return items


def _distinct(questions: tuple[str, ...]) -> tuple[str, ...]:
    first: dict[str, int] = {}
    for index, question in enumerate(questions):
        if first.setdefault(normalized(question), index) != index:
            raise ValueError(f"[{index}] asks the same as [{first[normalized(question)]}]. Remove one")
    return questions


def _takes_the_answer(rubric: str) -> str:
    if "{answer}" not in rubric:
        raise ValueError("has no {answer}. Expected a text with {question} and {answer} where the judge is to see them")
    return rubric


def _opposed(positive: str, negative: str) -> None:
    if normalized(positive) == normalized(negative):
        raise ValueError("both sides are the same prompt")


Text = Annotated[str, pydantic.AfterValidator(_filled)]
Questions = Annotated[tuple[Text, ...], pydantic.AfterValidator(_some), pydantic.AfterValidator(_distinct)]
Rubric = Annotated[str, pydantic.AfterValidator(_takes_the_answer)]


class OpposedPrompts(Part):
    """Two system prompts that ask for opposite things."""

    positive: Text
    negative: Text

    @pydantic.model_validator(mode="after")
    def _differ(self) -> "OpposedPrompts":
        _opposed(self.positive, self.negative)
        return self


class Trait(Part):
    """A behavior that can be elicited: what is optional in `Behavior` is here."""

    name: str
    description: str
    pairs: Path | None = None
    system_prompts: Annotated[tuple[OpposedPrompts, ...], pydantic.AfterValidator(_some)]
    questions: Questions
    rubric: Rubric
    samples: tuple[str, ...] = ()


class _Instruction(Part):
    pos: Text
    neg: Text

    @pydantic.model_validator(mode="after")
    def _differ(self) -> "_Instruction":
        _opposed(self.pos, self.neg)
        return self


class _PersonaTrait(Part):
    """A trait file of persona vectors (arXiv 2507.21509): `trait_data_extract/TRAIT.json`."""

    instruction: Annotated[tuple[_Instruction, ...], pydantic.AfterValidator(_some)]
    questions: Questions
    eval_prompt: Rubric


def read_behavior(path: str | Path) -> Behavior:
    """The behavior of a trait file: our YAML, or the JSON of persona vectors, whose name is the file's.

    A RecipeError names everything at once that elicitation would miss.
    """
    path = Path(path)
    raw = _read_json(path) if path.suffix == ".json" else read_mapping(path)
    if PERSONA_KEYS & raw.keys():
        persona: _PersonaTrait = validate(_PersonaTrait, raw, path)
        return Behavior(
            name=path.stem,
            description=f"The trait '{path.stem}', as its rubric defines it.",
            system_prompts=tuple(SystemPrompts(positive=i.pos, negative=i.neg) for i in persona.instruction),
            questions=persona.questions,
            rubric=persona.eval_prompt,
        )
    trait: Trait = validate(Trait, raw, path)
    pairs = None if trait.pairs is None else path.resolve().parent / trait.pairs
    return Behavior.model_validate({**trait.model_dump(), "pairs": pairs})


def as_trait(behavior: Behavior) -> Trait:
    """`behavior`, when it can be elicited; a RecipeError names all that it lacks."""
    try:
        return Trait.model_validate(behavior.model_dump())
    except pydantic.ValidationError as error:
        problems = [problem(Trait, e) for e in error.errors()]
        report_problems(RecipeError, f"behavior {behavior.name}", problems)
        raise


def fill_rubric(rubric: str, question: str, answer: str) -> str:
    """What the judge reads. Braces in the texts themselves, and other braces of the rubric, stay as they are."""
    texts = {"{question}": question, "{answer}": answer}
    return re.sub(r"\{(?:question|answer)\}", lambda found: texts[found[0]], rubric)


def normalized(text: str) -> str:
    """What decides whether two texts say the same: the words without case and spacing."""
    return " ".join(text.lower().split())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file. Expected a trait file") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not readable as JSON ({error}). Expected a trait file") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: holds {type(raw).__name__}. Expected an object of keys and values")
    return raw
