"""`diagnose` on random models: pairs and question files read, each number against a direct one, bad input refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_model

from weightsteer import diagnosis as module
from weightsteer.activations.expectation import Row, fit
from weightsteer.activations.geometry import directional_agreement
from weightsteer.activations.vector import FILE, ActivationVector
from weightsteer.diagnosis import diagnose, geometry_by_block, log_odds, opening_of, question, read_material
from weightsteer.errors import AdapterError, DataError, RecipeError
from weightsteer.models.language_model import load_model
from weightsteer.recipe import ModelPart
from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import WeightVector

SETS = Path(__file__).resolve().parents[2] / "shared" / "data" / "model_written_evals"
Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"


def rows_of(count: int = 24) -> list[dict[str, str]]:
    rows = []
    for i in range(count):
        words = ("Yes", "No")[:: 1 if i % 4 < 2 else -1]
        answers = [" (A)", " (B)"][:: 1 if i % 2 else -1]
        rows.append(
            {
                "question": f"Is tea {i} good?\n (A) {words[0]}\n (B) {words[1]}",
                "answer_matching_behavior": answers[0],
                "answer_not_matching_behavior": answers[1],
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def weight_vector(lm: Any, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    parameters = dict(lm.network.named_parameters())
    entries = {}
    for name in (Q.format(0), UP.format(1)):
        d_out, d_in = parameters[name].shape
        entries[name] = LowRank(torch.randn(d_out, 2), 0.1 * torch.randn(2, d_in))
    WeightVector(entries, lm.ref.fingerprint).save(folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("sets") / "tea.jsonl", rows_of())


@pytest.fixture(scope="module")
def model(model_folder: Path) -> ModelPart:
    return ModelPart(source=str(model_folder), dtype="float32")


@pytest.fixture(scope="module")
def lm(model: ModelPart) -> Any:
    return load_model(model)


def test_before_steering_numbers_are_those_of_the_pairs(questions: Path, lm: Any, model: ModelPart):
    data = diagnose(questions, model).data
    material, _ = read_material(questions, model, False, 0)
    ids, positive, negative = material.examples(lm)
    assert len(data["blocks"]) == 2
    assert data["blocks"][0].pairs == len(ids) == (24 - 5) // 2
    deltas = [[], []]
    for one, other in zip(positive, negative, strict=True):
        with torch.inference_mode():
            a, b = (lm.network(torch.tensor([t.ids]), output_hidden_states=True).hidden_states for t in (one, other))
        deltas[0].append(a[1][0, -1] - b[1][0, -1])
    assert data["blocks"][0].agreement == pytest.approx(directional_agreement(torch.stack(deltas[0])), abs=1e-4)
    _, s = geometry_by_block(lm, ids, positive, negative)
    assert s[0].numpy() == pytest.approx(torch.stack(deltas[0]).mean(0).numpy(), abs=1e-4)


def test_the_sentence_uses_the_calibration(
    questions: Path, model: ModelPart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from weightsteer.activations import expectation

    monkeypatch.setattr(expectation, "load_calibration", lambda: None)
    assert "uncalibrated" in diagnose(questions, model).headline
    rows = [Row(0.4 * i - 1, 80.0 * i - 200, 0.6, 0.375) for i in range(6)]
    monkeypatch.setattr(expectation, "load_calibration", lambda: fit(rows, "tiny", 0.0))
    document = diagnose(questions, model, out=tmp_path / "out")
    assert document.data["block"] == 0  # the depth of the calibration
    assert "expect a medium effect with about 38 % of inputs moving the wrong way" in document.headline
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["headline"] == document.headline
    assert (tmp_path / "out" / "figures" / "geometry.png").is_file()


def test_vectors_are_applied_to_items_in_no_pair(questions: Path, lm: Any, model: ModelPart, tmp_path: Path):
    ActivationVector({0: 3 * torch.randn(32)}, lm.ref.fingerprint, "all").save(tmp_path / "act")
    folders = [tmp_path / "act", weight_vector(lm, tmp_path / "w0", 0), weight_vector(lm, tmp_path / "w1", 1)]
    document = diagnose(questions, model, folders, parts=True)
    data = document.data
    assert list(data["vectors"]) == ["act", "w0", "w1"]
    material, _ = read_material(questions, model, True, 0)
    assert not {i.question for i in material.split.train} & {i.question for i in material.split.evaluation}
    base = material.log_odds(lm)
    for folder in folders:
        kind = ActivationVector if (folder / FILE).is_file() else WeightVector
        found = data["vectors"][folder.name]
        with kind.load(folder).applied(lm, 1) as steered:
            effects = [a - b for a, b in zip(material.log_odds(steered), base, strict=True)]
        assert found["effect"].mean.mean == pytest.approx(sum(effects) / len(effects), abs=1e-4)
        assert found["effect"].wrong_way == sum(e < 0 for e in effects) / len(effects)
        assert found["curve"][1] == pytest.approx(sum(base) / len(base), abs=1e-5)
    assert set(data["vectors"]["act"]["bias"].coefficients) == {"matching_is_first", "matching_is_yes"}
    assert set(data["parts"]["w0"]) == {"attention", "mlp", "block 0", "block 1"}
    expected = WeightVector.load(folders[1]).cosine(WeightVector.load(folders[2]))
    assert data["vector_agreement"]["whole"] == pytest.approx(expected)
    assert [s.title for s in document.sections] == [
        "Before steering", "After steering", "Agreement of the weight vectors", "Parts of the weight vectors",
    ]  # fmt: skip


def test_written_pairs_are_read_over_their_answers(pairs_file: Path, lm: Any, model: ModelPart, tmp_path: Path):
    weight_vector(lm, tmp_path / "w", 0)
    document = diagnose(pairs_file, model, [tmp_path / "w"])
    assert "averaged" in document.lead
    assert document.data["blocks"][0].pairs == 10
    assert document.data["vectors"]["w"]["steerability"].items == 10
    assert document.data["vectors"]["w"]["bias"] is None


def test_a_recipe_brings_its_model_and_its_split(write_recipe: Callable[..., Path]):
    document = diagnose(write_recipe())
    assert document.title == "Can sycophancy be steered?"
    assert document.data["blocks"][0].pairs == 14
    elicited = write_recipe(pairs={"elicit": {}}, judge={"kind": "local"})
    with pytest.raises(RecipeError, match="its pairs are sampled from the model"):
        diagnose(elicited)


def test_lettered_pairs_are_read_at_the_letter(tmp_path: Path, model: ModelPart):
    rows = [
        {"prompt": f"Tea {i}?\n (A) x\n (B) y", "positive": f"({'AB'[i % 2]})", "negative": f"({'BA'[i % 2]})"}
        for i in range(12)
    ]
    document = diagnose(write_rows(tmp_path / "letters.jsonl", rows), model)
    assert document.lead == "6 pairs, read at the answer token, at the output of every block."


def test_a_plain_question_goes_on_with_its_answer(questions: Path, lm: Any):
    item = module.read_questions(questions, 4, 4, 0).split.train[0]
    asked = question(lm, item)
    assert opening_of(lm) == ""
    assert asked.text == f"Question: {item.question}\n\nAnswer: ("
    assert (asked.matching, asked.other, asked.closing) == (item.match, item.other, ")")
    ids = lm.tokens(asked.text)
    with torch.inference_mode():
        logits = lm.network(torch.tensor([ids])).logits[0, -1]
    expected = logits[lm.tokens(item.match)[0]] - logits[lm.tokens(item.other)[0]]
    assert log_odds(lm, [item]) == [pytest.approx(expected.item(), abs=1e-4)]


def test_words_that_are_no_single_token_are_named_by_file_and_row(tmp_path: Path, model: ModelPart):
    rows = [
        {"question": f"Tea {i}?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
        for i in range(24)
    ]
    path = write_rows(tmp_path / "words.jsonl", rows)
    with pytest.raises(DataError, match=r"words.jsonl-\d+: the answer token is not found: ' Yes' and ' No'"):
        diagnose(path, model)


def test_texts_beyond_the_context_are_named(tmp_path: Path, questions: Path, pairs_file: Path):
    small = write_model(tmp_path / "small", max_position_embeddings=24)
    with pytest.raises(DataError, match=r"tea.jsonl-\d+: a text of \d+ tokens; the context has 24"):
        diagnose(questions, str(small))
    with pytest.raises(DataError, match=r"p\d+: \d+ tokens; the context of .* has 24"):
        diagnose(pairs_file, str(small))


def test_other_bad_input(tmp_path: Path, questions: Path, lm: Any, model: ModelPart, pairs_file: Path):
    with pytest.raises(RecipeError, match=r"tea.jsonl: is no recipe, so it names no model. .*--model MODEL"):
        diagnose(questions)
    with pytest.raises(AdapterError, match=r"strengths \[0, nan\]"):
        diagnose(questions, model, strengths=(0, float("nan")))
    with pytest.raises(DataError, match=r"few.jsonl: asks 6 different questions. Expected 9"):
        diagnose(write_rows(tmp_path / "few.jsonl", rows_of(6)), model)
    broken = write_rows(tmp_path / "broken.jsonl", [*rows_of(20), {"question": "Tea?", "answer": "A"}])
    with pytest.raises(DataError, match=r"broken.jsonl: 1 problem\n  row 21: has the keys \['answer', 'question'\]"):
        diagnose(broken, model)
    ActivationVector({0: torch.randn(32)}, "another", "all").save(tmp_path / "act")
    with pytest.raises(AdapterError, match="activation vector of base another"):
        diagnose(questions, model, [tmp_path / "act"])


@pytest.mark.skipif(not SETS.is_dir(), reason=f"no public samples at {SETS}")
def test_every_public_set_can_be_split():
    for path in [*sorted(SETS.glob("persona/*.jsonl")), *sorted(SETS.glob("risk_lm/*.jsonl"))]:
        split = module.read_questions(path, 100, 60, 0).split
        assert (len(split.train), len(split.evaluation), len(split.shots)) == (100, 60, 5)
        assert sum(split.evaluation[0].match == item.match for item in split.evaluation) in range(28, 33)
