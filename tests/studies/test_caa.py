"""The study `caa` on a tiny model and made-up behaviors: its stages, its numbers, its words, and what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weightsteer.activations.letters import encode_questions, score_many
from weightsteer.activations.makers import caa_vector, with_common_norms
from weightsteer.activations.vector import ActivationVector
from weightsteer.activations.views import first_of_two
from weightsteer.errors import AdapterError, DataError, RecipeError
from weightsteer.evals import Given, ab
from weightsteer.judge.scales import Verdict
from weightsteer.models.language_model import load_model
from weightsteer.recipe import load_study
from weightsteer.report import numbers
from weightsteer.report.document import Document, write_document
from weightsteer.stats import paired_difference
from weightsteer.studies import caa
from weightsteer.studies._caa_measured import as_pairs

BEHAVIORS = ("tea", "refusal")  # the second has published figures
SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "caa"


def rows(name: str, start: int, count: int) -> list[dict[str, str]]:
    """Questions with the matching letter in turn."""
    letters = [("(A)", "(B)"), ("(B)", "(A)")]
    return [
        {
            "question": f"Is {name} {i} good?\n\nChoices:\n (A) Yes{i}\n (B) No{i}",
            "answer_matching_behavior": letters[i % 2][0],
            "answer_not_matching_behavior": letters[i % 2][1],
        }
        for i in range(start, start + count)
    ]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_data(folder: Path) -> Path:
    for name in BEHAVIORS:
        # One question of the test file stands in the generate file as well, one there twice.
        write(
            folder / "generate" / name / "generate_dataset.json",
            rows(name, 0, 14) + rows(name, 0, 1) + rows(name, 20, 1),
        )
        write(folder / "test" / name / "test_dataset_ab.json", rows(name, 20, 6))
        write(
            folder / "test" / name / "test_dataset_open_ended.json",
            [{"question": f"What of {name} {i}?"} for i in range(3)],
        )
    for file in caa.BENCHMARKS.values():
        benchmark = [
            {"prompt": f"{i}+1?\n(A) {i}\n(B) {i + 1}", "correct": "(B)", "incorrect": "(A)"} for i in range(7)
        ]
        write(folder / file, benchmark)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Callable[..., caa.Settings]:
    """The settings of a study with keys replaced; `--set` texts."""
    folder = tmp_path_factory.mktemp("caa")
    write_data(folder / "data")
    behavior = {"positive": "Be it.", "negative": "Be not.", "rubric": "Rate {question} {answer}"}
    content = {
        "study": "caa",
        "name": "tiny",
        "model": {"source": str(model_folder), "dtype": "float32"},
        "data": "data",
        "behaviors": [{"name": name, **behavior} for name in BEHAVIORS],
        "k": [1, -1, 0, -2],
        "pairs": 8,
        "held_out": 4,
        "view_pairs": 3,
        "side_effects": 5,
        "fine_tune": {"rank": 2, "alpha": 4, "max_steps": 2, "batch_size": 2, "learning_rate": 1e-2},
    }
    write(folder / "caa.json", content)
    return lambda *overrides: load_study(folder / "caa.json", overrides)


@pytest.fixture(scope="module")
def ran(recipe: Callable[..., caa.Settings], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Document]:
    settings, out = recipe(), tmp_path_factory.mktemp("out")
    return settings, out, caa.run(settings, out)


def test_what_is_read(recipe: Callable[..., caa.Settings]):
    assert caa.check(recipe()) == [
        "tea: 8 questions for the vector, 4 for the block, 6 to test; 2 repeated ones dropped",
        "refusal: 8 questions for the vector, 4 for the block, 6 to test; 2 repeated ones dropped",
        "MMLU: 5 questions",
        "TruthfulQA: 5 questions",
    ]
    for found in caa.read_sets(recipe()):
        asked = [{item.question for item in part} for part in (found.pairs, found.held_out, found.test)]
        assert [len(of) for of in asked] == [8, 4, 6]
        assert len(set.union(*asked)) == 18, "no question is in two parts"
    judged = recipe("judge={kind: local}", "leave_out=[tea]", "side_effects=0", "test=2")
    assert caa.check(judged) == [
        "refusal: 8 questions for the vector, 4 for the block, 2 to test, 3 open-ended; 2 repeated ones dropped",
        "left out: tea",
    ]


def test_a_section_for_each_question(ran: Any, tmp_path: Path):
    _, out, document = ran
    assert [section.title for section in document.sections] == [
        "Held-out answers", "System prompts", "Fine-tunes", "Blocks", "Directions", "Transfer", "Clusters",
        "Weight vectors", "Side effects", "Open answers",
    ]  # fmt: skip
    for section in document.sections:
        assert section.asked.endswith("?")
        assert section.answer.endswith(".")
    assert document.sections[-1].answer == "Not judged: the recipe names no judge."
    assert all(row[1:4] == ("not judged",) * 3 for row in document.sections[-1].tables[0].rows)
    (tmp_path / "report").mkdir()
    write_document(document, tmp_path / "report")
    drawn = {path.stem for path in (tmp_path / "report" / "figures").iterdir()}
    assert drawn == {"strengths", "blocks", "cosines", "transfer", "components", "separation", "shift"}
    page = (out / "heat" / "heat-tea.html").read_text(encoding="utf-8")
    shown = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert shown is not None
    [text] = json.loads(shown[1])["texts"]
    assert "Is tea 20 good?" in "".join(text["tokens"])
    assert "".join(text["tokens"]).endswith("<|assistant|>(A)"), "the first test question with its matching letter"
    notes = " ".join(note for section in document.sections for note in section.notes)
    assert "../heat/heat-tea.html" in notes
    assert "../heat/heat-refusal.html" in notes


def test_published_figures_stand_beside_where_there_are_any(ran: Any):
    _, _, document = ran
    tea, refusal = document.sections[0].tables[0].rows
    assert (tea[0], tea[-1]) == ("tea", "none")
    assert (refusal[0], refusal[-1]) == ("refusal", "0.42 / 0.74 / 0.89")
    assert "Llama 2 7B" in document.sections[0].tables[0].columns[-1]
    assert document.sections[1].tables[0].rows[1][-1] == "0.41 / 0.74 / 0.83"
    assert "In Llama 2 7B 1 of these 1 rise." in document.sections[0].answer


def test_the_vectors_are_those_of_the_pairs_with_a_common_norm(ran: Any):
    settings, out, document = ran
    lm, sets = load_model(settings.model), caa.read_sets(settings)
    raw = {found.behavior.name: caa_vector(lm, as_pairs(found, found.pairs)) for found in sets}
    expected = with_common_norms(raw)
    for name in BEHAVIORS:
        stored = ActivationVector.load(out / "vectors" / name)
        assert stored.mode == "after_user"
        for block, direction in stored.directions.items():
            assert torch.allclose(direction, expected[name].directions[block], atol=1e-5)
        effects = document.data["blocks"]["effects"][name]
        assert len(effects["0"]) == len(effects["1"]) == 4, "the held-out questions"
        best = max(effects, key=lambda block, effects=effects: sum(effects[block]))
        assert document.data["blocks"]["chosen"][name] == int(best)


def test_answers_are_those_of_the_test_questions_under_the_vector(ran: Any):
    settings, out, document = ran
    lm, [found, _] = load_model(settings.model), caa.read_sets(settings)
    block = document.data["blocks"]["chosen"]["tea"]
    vector = ActivationVector.load(out / "vectors" / "tea").at(block)
    answers = document.data["answers"]["tea"]
    for system, text in (("none", None), ("positive", "Be it."), ("negative", "Be not.")):
        told = lm.with_system(text)
        unsteered = ab.score(told, found.test, ab.Settings(name="ab"), Given())
        assert answers[system]["p"]["0"] == pytest.approx([item.values["p_match"] for item in unsteered], abs=1e-4)
        asked = encode_questions(told, [i.question for i in found.test], "(", [(i.match, i.other) for i in found.test])
        [expected] = first_of_two(score_many(told, asked, [vector], (-2, -1, 1)))
        for k, row in zip(("-2", "-1", "1"), expected.tolist(), strict=True):
            assert answers[system]["p"][k] == pytest.approx(row, abs=1e-4)
    row = document.sections[0].tables[0].rows[0]
    p = answers["none"]["p"]
    assert row[:4] == ("tea", block, 8, 6)
    assert [cell.mean for cell in row[4:8]] == pytest.approx([sum(p[k]) / 6 for k in ("-2", "-1", "0", "1")])
    assert row[8] == numbers.change(paired_difference(p["1"], p["-1"]))


def test_fine_tunes_change_the_answers_and_the_vector_stacks(ran: Any):
    _, _, document = ran
    tuned, plain = document.data["tuned"]["tea"], document.data["answers"]["tea"]["none"]["p"]
    assert set(tuned) == {"positive", "negative"}
    assert tuned["positive"]["0"] != pytest.approx(tuned["negative"]["0"], abs=1e-4)
    assert tuned["positive"]["0"] != pytest.approx(plain["0"], abs=1e-4)
    assert tuned["positive"]["1"] != pytest.approx(tuned["positive"]["-1"], abs=1e-4)
    shift = document.data["shift"]["tea"]
    assert set(shift) == {"0", "1"}
    assert all(-1 <= cosine <= 1 for cosine in shift.values())


def test_a_second_run_loads_no_model_and_says_the_same(ran: Any, monkeypatch: pytest.MonkeyPatch):
    settings, out, document = ran

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("weightsteer.models.language_model.load_model", refuse)
    again = caa.run(settings, out)
    assert again.headline == document.headline
    assert again.data == document.data


def test_open_answers_are_rated_in_tenths(recipe: Callable[..., caa.Settings], tmp_path: Path, monkeypatch: Any):
    class Judge:
        def rate(self, prompts: list[str], scale: str, label: str = "") -> list[Verdict]:
            assert scale == "0-100"
            assert all(prompt.startswith("Rate What of refusal") for prompt in prompts)
            return [Verdict(None, "", "silent"), *(Verdict(40.0, "") for _ in prompts[1:])]

    monkeypatch.setattr("weightsteer.judge.open_judge", lambda part, model: Judge())
    small = ("leave_out=[tea]", "side_effects=0", "fine_tune=null", "max_new_tokens=2", "block=1", "stride=2")
    document = caa.run(recipe("judge={kind: local}", *small), tmp_path / "judged")
    titles = [section.title for section in document.sections]
    assert "Fine-tunes" not in titles
    assert "Side effects" not in titles
    [row] = document.sections[-1].tables[0].rows
    assert [cell.mean for cell in row[1:4]] == [4.0] * 3
    assert document.data["open_ended"] == {"refusal": {k: [None, 4.0, 4.0] for k in ("-1", "0", "1")}}
    assert document.data["blocks"]["chosen"] == {"refusal": 1}
    with pytest.raises(AdapterError, match=r"block 9: does not exist in .*, which has 2 blocks. Expected 0 to 1"):
        caa.run(recipe(*small[:3], "block=9"), tmp_path / "no-block")


def test_refused_recipes(recipe: Callable[..., caa.Settings], tmp_path: Path):
    for override, problem in (
        ("k=[-1, 0, 2]", r"k: \[-1.0, 0.0, 2.0\]. Expected −1, 0 and 1 among strengths that differ"),
        ("k=[-1, 0, 1, .inf]", r"k\[3\]: Input should be a finite number, found inf"),
        ("leave_out=[coffee]", r"leave_out: no behavior 'coffee' among \['tea', 'refusal'\]"),
        ("leave_out=[tea, refusal]", r"leave_out: names every behavior"),
        ("behaviors[1].name=tea", r"behaviors: 'tea' is listed twice"),
        ("behaviors[0].rubric=Rate it", r"the rubric of tea has no \{answer\}"),
        ("fine_tune.learning_rate=[0.1, 0.2]", r"fine_tune.learning_rate: \[0.1, 0.2\]. Expected one"),
        ("judge={kind: rules}", r"judge.kind: rules, which rate no open answer"),
    ):
        with pytest.raises(RecipeError, match=problem):
            recipe(override)
    with pytest.raises(
        DataError, match=r"data: no folder is named. .*github.com/nrimsky/CAA. Clone it, then: --set data"
    ):
        caa.check(recipe("data=null"))
    with pytest.raises(DataError) as error:
        caa.check(recipe(f"data={tmp_path}"))
    assert f"data {tmp_path}: 2 problems" in str(error.value)
    assert "generate_dataset.json: cannot be read" in str(error.value)
    assert "or name it in leave_out" in str(error.value)


def test_refused_data(recipe: Callable[..., caa.Settings], tmp_path: Path):
    data = write_data(tmp_path / "data")
    path = data / "generate" / "tea" / "generate_dataset.json"
    word = {"question": "Yes?", "answer_matching_behavior": "Yes", "answer_not_matching_behavior": "No"}
    write(path, [*rows("tea", 0, 14), word])
    with pytest.raises(DataError, match=r"tea: some answers are letters and some are not. Expected all of one kind"):
        caa.check(recipe(f"data={data}"))
    write(path, rows("tea", 0, 5))
    with pytest.raises(
        DataError, match=r"tea: 5 questions beside the 6 to test. Expected 2 or more after 4 for the bl"
    ):
        caa.check(recipe(f"data={data}"))
    write(path, [{**row, "answer_matching_behavior": row["answer_not_matching_behavior"]} for row in rows("tea", 0, 9)])
    with pytest.raises(DataError, match=r"row 1: answers both ways with 'B'"):
        caa.check(recipe(f"data={data}"))
    write_data(data)
    write(data / caa.BENCHMARKS["MMLU"], [{"prompt": "?"}])
    with pytest.raises(DataError, match=r"(?s)MMLU: .*row 1: has the keys \['prompt'\].*set side_effects to 0"):
        caa.check(recipe(f"data={data}"))


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no public samples at {SAMPLES}")
def test_the_public_layout():
    shipped = Path(__file__).parents[2] / "recipes" / "caa.yaml"
    settings = load_study(shipped, [f"data={SAMPLES}", "leave_out=[survival-instinct]"])
    lines = caa.check(settings)
    assert len(lines) == 9
    assert lines[0].startswith("AI coordination: 64 questions for the vector, 24 for the block, 50 to test")
    assert lines[-1] == "left out: survival-instinct"
    with pytest.raises(DataError, match=r"1 problem\n  survival-instinct: .*generate_dataset.json: cannot be read"):
        caa.check(load_study(shipped, [f"data={SAMPLES}"]))
