"""Trait files: both layouts in, everything that is wrong in one error."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from weightsteer.data.traits import Trait, as_trait, fill_rubric, read_behavior
from weightsteer.errors import RecipeError
from weightsteer.recipe import Behavior, shipped_recipes

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "persona_vectors"
OURS = {
    "name": "brisk",
    "description": "Answers briskly.",
    "system_prompts": [{"positive": "Be brisk.", "negative": "Take your time."}],
    "questions": ["How do I boil an egg?", "What is a fjord?"],
    "rubric": "Rate how brisk {answer} is as an answer to {question}.",
}
PERSONA = {
    "instruction": [{"pos": "Be brisk.", "neg": "Take your time."}, {"pos": "Hurry.", "neg": "Dwell."}],
    "questions": ["How do I boil an egg? 🥚", "What is a fjord?"],
    "eval_prompt": "Rate {question} against {answer}.",
}


def write(path: Path, raw: Any) -> Path:
    path.write_text(json.dumps(raw) if path.suffix == ".json" else yaml.safe_dump(raw), encoding="utf-8")
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_behavior(path)
    first, *rest = str(caught.value).split("\n  ")
    assert first == f"{path}: {len(rest)} problem" + "s" * (len(rest) > 1)
    return rest


def test_our_layout(tmp_path: Path):
    trait = read_behavior(write(tmp_path / "any.yaml", {**OURS, "pairs": "brisk.jsonl"}))
    assert (trait.name, trait.rubric) == ("brisk", OURS["rubric"])
    assert trait.questions == tuple(OURS["questions"])
    assert [(p.positive, p.negative) for p in trait.system_prompts] == [("Be brisk.", "Take your time.")]
    assert trait.pairs == tmp_path / "brisk.jsonl"


def test_the_layout_of_persona_vectors_takes_its_name_from_the_file(tmp_path: Path):
    trait = read_behavior(write(tmp_path / "brisk.json", PERSONA))
    assert (trait.name, trait.rubric) == ("brisk", PERSONA["eval_prompt"])
    assert trait.questions == tuple(PERSONA["questions"])
    assert [(p.positive, p.negative) for p in trait.system_prompts][1] == ("Hurry.", "Dwell.")
    assert "brisk" in trait.description


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no public samples at {SAMPLES}")
@pytest.mark.parametrize("path", sorted(SAMPLES.rglob("*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_public_trait_file(path: Path):
    raw, trait = json.loads(path.read_text(encoding="utf-8")), read_behavior(path)
    assert trait.name == path.stem
    assert [{"pos": p.positive, "neg": p.negative} for p in trait.system_prompts] == raw["instruction"]
    assert list(trait.questions) == raw["questions"]
    assert trait.rubric == raw["eval_prompt"]


@pytest.mark.parametrize("path", sorted((shipped_recipes() / "behaviors").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_behavior_can_be_elicited(path: Path):
    assert len(read_behavior(path).system_prompts) == 5


def test_all_problems_of_our_layout_are_told_together(tmp_path: Path):
    wrong = {
        "name": "brisk",
        "sample": ["?"],
        "system_prompts": [
            {"positive": "Be brisk.", "negative": "be  BRISK."},
            {"positive": "Hurry."},
            {"positive": " ", "negative": "Dwell."},
        ],
        "questions": ["What is a fjord?", "", "what is  a Fjord?"],
        "rubric": "Rate {anwser} from 0 to 100.",
    }
    assert problems(write(tmp_path / "wrong.yaml", wrong)) == [
        "description: Field required",
        "system_prompts[0]: both sides are the same prompt",
        "system_prompts[1].negative: Field required",
        "system_prompts[2].positive: is empty",
        "questions[1]: is empty",
        "rubric: has no {answer}. Expected a text with {question} and {answer} where the judge is to see them",
        "sample: unknown key (did you mean 'samples'?)",
    ]


def test_all_problems_of_the_persona_layout_are_told_together(tmp_path: Path):
    wrong = {
        "instruction": [{"pos": "Hurry.", "neg": "Hurry."}, {"neg": "Dwell."}],
        "questions": ["What is a fjord?", "What is a mole?", "what is  a Fjord?"],
        "evalprompt": "Rate {answer}.",
    }
    assert problems(write(tmp_path / "wrong.json", wrong)) == [
        "instruction[0]: both sides are the same prompt",
        "instruction[1].pos: Field required",
        "questions: [2] asks the same as [0]. Remove one",
        "eval_prompt: Field required",
        "evalprompt: unknown key (did you mean 'eval_prompt'?)",
    ]


def test_nothing_to_elicit_with(tmp_path: Path):
    empty = {**OURS, "system_prompts": [], "questions": []}
    assert problems(write(tmp_path / "empty.yaml", empty)) == [
        "system_prompts: is empty. Expected at least one",
        "questions: is empty. Expected at least one",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        ('{"instruction": [', "not readable as JSON .*Expected a trait file"),
        ("[]", "holds list"),
    ],
)
def test_a_file_that_is_no_trait_file(tmp_path: Path, content: str | None, told: str):
    path = tmp_path / "trait.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=f"trait.json: .*{told}"):
        read_behavior(path)


def test_a_behavior_of_a_recipe_is_checked_the_same_way():
    with pytest.raises(RecipeError, match="behavior dull: 3 problems") as caught:
        as_trait(Behavior(name="dull", description="Says little.", questions=("Why?", "why?")))
    for key in ("system_prompts: is empty", r"questions: [1] asks the same as [0]", "rubric: "):
        assert key in str(caught.value)
    assert as_trait(Behavior(**OURS)) == Trait(**OURS)


def test_texts_are_put_into_the_rubric_as_they_are():
    rubric = "{question} | {answer} | {score} | {question}"
    assert fill_rubric(rubric, "Is {answer} a word?", r"\1 {question} {}") == (
        r"Is {answer} a word? | \1 {question} {} | {score} | Is {answer} a word?"
    )
