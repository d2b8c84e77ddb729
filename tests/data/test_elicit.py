"""Elicitation on a tiny random model and a judge that goes by letters: resumable, seeded, without system prompts."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_language_model

from weightsteer.data import elicit as elicit_file
from weightsteer.data.contrast import SIDES, check_pairs, read_pairs
from weightsteer.data.elicit import elicit, read_elicitation, whole_sentences
from weightsteer.data.pairing import FATES
from weightsteer.data.traits import fill_rubric
from weightsteer.errors import DataError, RecipeError, StageError
from weightsteer.recipe import Behavior, ElicitPart

TRAIT = Behavior(
    name="brisk",
    description="Answers briskly.",
    system_prompts=(
        {"positive": "Be brisk.", "negative": "Take your time."},
        {"positive": "Hurry up.", "negative": "Dwell on it."},
    ),
    questions=("How do I boil an egg?", "What is a fjord?", "Why do moles dig?"),
    rubric="To {question} it said {answer}. How brisk is that?",
)
SETTINGS = ElicitPart(samples=4, max_new_tokens=24)


@dataclass(frozen=True)
class Verdict:
    score: float | None
    said: str = ""
    unscored: str | None = None


@dataclass
class Judge:
    """Rates by a hash of what it reads, so that every answer has a rating of its own on either side of 50."""

    digest: str = "by hash"
    rate_one: Callable[[str], Verdict] = lambda text: Verdict(hashlib.sha256(text.encode()).digest()[0] / 2.55)
    seen: list[str] = field(default_factory=list)

    def rate(self, prompts: Sequence[str], scale: str, label: str = "") -> list[Verdict]:
        assert scale == "0-100"
        self.seen += prompts
        return [self.rate_one(prompt) for prompt in prompts]


@pytest.fixture(scope="module")
def lm() -> Any:
    return tiny_language_model()


@pytest.fixture(scope="module", autouse=True)
def full_stops() -> Iterator[None]:
    """A random model never ends a sentence; here it does."""
    real = elicit_file.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elicit_file, "generate", lambda *given, **how: [f"{text}." for text in real(*given, **how)])
        yield


@pytest.fixture
def speak(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Have the model answer with given texts, and see what it is asked."""

    def set_answers(answer: Callable[[str | None, str, int], str]) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def generate(lm: Any, prompts: Sequence[str], max_new_tokens: int, **how: Any) -> list[str]:
            calls.append({"system": lm.system, "prompts": list(prompts), **how})
            return [answer(lm.system, prompt, i) for i, prompt in enumerate(prompts)]

        monkeypatch.setattr(elicit_file, "generate", generate)
        return calls

    return set_answers


def digests(folder: Path) -> dict[str, str]:
    """Every file but manifests, which hold the time, and the lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", ".lock")
    }


@pytest.fixture(scope="module")
def finished(lm: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple]:
    out = tmp_path_factory.mktemp("elicited")
    return out, elicit(TRAIT, lm, SETTINGS, Judge(), 7, out)


def test_pairs_are_written_as_they_are_read_and_carry_no_system_prompt(finished: tuple[Path, tuple]):
    out, pairs = finished
    assert len(pairs) > 4
    assert read_pairs(str(out / "pairs" / "pairs.jsonl")) == pairs
    check_pairs(pairs, "elicited")
    assert {pair.prompt for pair in pairs} <= set(TRAIT.questions)
    assert {(pair.topic, pair.split) for pair in pairs} == {(None, "train")}
    written = (out / "pairs" / "pairs.jsonl").read_text(encoding="utf-8")
    for prompts in TRAIT.system_prompts:
        assert prompts.positive not in written
        assert prompts.negative not in written


def test_every_sampled_answer_is_accounted_for(finished: tuple[Path, tuple]):
    out, pairs = finished
    record = read_elicitation(out)
    for side in SIDES:
        counts = record["sides"][side]
        assert counts["sampled"] == 2 * 3 * 4
        assert sum(counts[fate] for fate in FATES) == counts["sampled"]
        assert counts["kept"] == len(pairs) == record["pairs"]
        assert counts["kept_words"] == sum(len(getattr(p, side).split()) for p in pairs) / len(pairs)
    assert record["sides"]["positive"]["kept_rating"] > 50 > record["sides"]["negative"]["kept_rating"]
    assert record["seed"] == 7
    assert record["judge"] == "by hash"


def test_kept_answers_are_those_that_the_judge_put_on_their_side(finished: tuple[Path, tuple]):
    judge = Judge()
    for pair in finished[1]:
        for side in SIDES:
            [verdict] = judge.rate([fill_rubric(TRAIT.rubric or "", pair.prompt, getattr(pair, side))], "0-100")
            assert (verdict.score > 50) == (side == "positive")


def test_a_kill_loses_at_most_one_block_and_changes_no_byte(
    lm: Any, finished: tuple[Path, tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = elicit_file.generate, []

    def killed_once(*arguments: Any, **how: Any) -> list[str]:
        calls.append(arguments[0].system)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **how)

    monkeypatch.setattr(elicit_file, "generate", killed_once)
    with pytest.raises(KeyboardInterrupt):
        elicit(TRAIT, lm, SETTINGS, Judge(), 7, tmp_path)
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["positive-1"]
    pairs = elicit(TRAIT, lm, SETTINGS, Judge(), 7, tmp_path)
    assert calls == ["Be brisk.", "Take your time.", "Take your time.", "Hurry up.", "Dwell on it."]
    assert pairs == finished[1]
    assert digests(tmp_path) == digests(finished[0])


def test_a_judge_that_fails_half_way_is_asked_for_the_rest_only(
    lm: Any, finished: tuple[Path, tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, failing, asked = elicit_file.generate, Judge(), []

    def generate(*given: Any, **how: Any) -> list[str]:
        asked.append(how["label"])
        return real(*given, **how)

    def rate(prompts: Sequence[str], scale: str, label: str = "") -> list[Verdict]:
        asked.append(label)
        if asked.count("rating, negative prompt 1") == 1:
            raise ConnectionError
        return Judge().rate(prompts, scale)

    monkeypatch.setattr(elicit_file, "generate", generate)
    monkeypatch.setattr(failing, "rate", rate)
    with pytest.raises(ConnectionError):
        elicit(TRAIT, lm, SETTINGS, failing, 7, tmp_path)
    before = len(asked)
    assert elicit(TRAIT, lm, SETTINGS, failing, 7, tmp_path) == finished[1]
    blocks = ["positive prompt 1", "negative prompt 1", "positive prompt 2", "negative prompt 2"]
    every = [f"{work}, {block}" for block in blocks for work in ("answers", "rating")]
    assert (asked[:before], asked[before:]) == (every[:4], every[3:])
    assert digests(tmp_path) == digests(finished[0])


def test_finished_work_is_not_done_again(lm: Any, finished: tuple[Path, tuple], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(elicit_file, "generate", None)
    judge = Judge()
    assert elicit(TRAIT, lm, SETTINGS, judge, 7, finished[0]) == finished[1]
    assert judge.seen == []


def test_another_seed_draws_other_pairs(lm: Any, finished: tuple[Path, tuple], tmp_path: Path):
    other = elicit(TRAIT, lm, SETTINGS, Judge(), 8, tmp_path)
    assert not {pair.positive for pair in other} & {pair.positive for pair in finished[1]}


def test_blocks_have_seeds_of_their_own(lm: Any, speak: Callable, tmp_path: Path):
    calls = speak(lambda system, prompt, i: f"{system} {prompt} {i}.")
    elicit(TRAIT, lm, SETTINGS, Judge(), 7, tmp_path / "a")
    assert [call["system"] for call in calls] == ["Be brisk.", "Take your time.", "Hurry up.", "Dwell on it."]
    assert [call["temperature"] for call in calls] == [1.0] * 4
    seeds = [call["seed"] for call in calls]
    assert len(set(seeds)) == 4
    elicit(TRAIT, lm, SETTINGS, Judge(), 7, tmp_path / "b")
    assert [call["seed"] for call in calls[4:]] == seeds


def test_questions_are_drawn_with_the_seed(lm: Any, speak: Callable, tmp_path: Path):
    calls = speak(lambda system, prompt, i: f"{system} {prompt} {i}.")
    drawn = set()
    for seed in range(8):
        settings = SETTINGS.model_copy(update={"questions": 2, "samples": 8})
        pairs = elicit(TRAIT, lm, settings, Judge(), seed, tmp_path / str(seed))
        asked = list(dict.fromkeys(calls[-1]["prompts"]))
        assert asked == [question for question in TRAIT.questions if question in asked]
        assert len(asked) == 2
        assert {pair.prompt for pair in pairs} <= set(asked)
        drawn.add(tuple(asked))
        assert all(TRAIT.questions[int(pair.id[1]) - 1] == pair.prompt for pair in pairs)
    assert len(drawn) > 1


POSITIVE = {"Be brisk.": "Yes, ", "Hurry up.": "Yes, "}


def by_wish(text: str) -> Verdict:
    return Verdict(100.0 if "yes" in text.lower() else 0.0)


def test_equal_answers_are_rated_once_and_kept_once(lm: Any, speak: Callable, tmp_path: Path):
    speak(lambda system, prompt, i: POSITIVE.get(system, "no,  ") + prompt.upper())
    judge = Judge(rate_one=by_wish)
    pairs = elicit(TRAIT, lm, SETTINGS, judge, 0, tmp_path)
    assert len(judge.seen) == 6
    assert [pair.id for pair in pairs] == ["q1-p1-1-1", "q2-p1-1-1", "q3-p1-1-1"]
    for side in SIDES:
        counts = read_elicitation(tmp_path)["sides"][side]
        assert (counts["duplicate"], counts["kept"]) == (21, 3)


def test_empty_and_cut_off_answers(lm: Any, speak: Callable, tmp_path: Path):
    answers = [
        "",
        "So there is no end to it and on it goes and goes on",
        "A first sentence that is whole. And one that is n",
        "It ends by itself without a stop",
    ]
    speak(lambda system, prompt, i: answers[i % 4] and POSITIVE.get(system, "") + answers[i % 4])
    # One token a byte: the second and third answers are about as long as may be, the others much shorter.
    settings = SETTINGS.model_copy(update={"max_new_tokens": 50})
    judge = Judge(rate_one=by_wish)
    pairs = elicit(TRAIT, lm, settings, judge, 0, tmp_path)
    assert len(judge.seen) == 2 * 3 * 2  # of every question on every side: what is whole, and neither is empty
    assert not any("And one that is n" in prompt for prompt in judge.seen)
    assert {pair.negative for pair in pairs} == {"A first sentence that is whole.", answers[3]}
    for side in SIDES:
        counts = read_elicitation(tmp_path)["sides"][side]
        assert (counts["empty"], counts["cut_off"], counts["shortened"]) == (6, 6, 6)
        assert (counts["duplicate"], counts["kept"]) == (6, 6)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two! Thr", "One. Two!"),
        ("He asked “why?” and lef", "He asked “why?”"),
        ("It costs 3.50 and mor", ""),
        ("Steps: first this.\n2. Then tha", "Steps: first this."),
        ("1. Whole step.\n2. Hal", "1. Whole step."),
        ("1. Hal", ""),
        ("**Bold end.** And the", "**Bold end.**"),
        ("全部说完。还没", "全部说完。"),
        ("Whole.", "Whole."),
        ("", ""),
    ],
)
def test_the_last_full_sentence(text: str, whole: str):
    assert whole_sentences(text) == whole


def test_nothing_kept_is_an_error_with_the_table(lm: Any, speak: Callable, tmp_path: Path):
    speak(lambda system, prompt, i: f"{system} secret words {i}.")
    with pytest.raises(DataError) as caught:
        elicit(TRAIT, lm, SETTINGS, Judge("none", lambda text: Verdict(None, "", "says nothing")), 0, tmp_path)
    told = str(caught.value)
    assert told.startswith("behavior brisk: no pair is left of the sampled answers\n")
    assert [line.split()[-2:] for line in told.split("\n") if line.startswith("without a rating")] == [["24", "24"]]
    assert "rated above 50 and a negative one below 50. Take another judge" in told
    assert "secret words" not in told
    assert not (tmp_path / "pairs").exists()
    # The advice holds: another judge rates the same answers in the same folder.
    speak(lambda system, prompt, i: pytest.fail("sampled again"))
    wish = Judge("wish", lambda text: Verdict(99.0 if "Hurry" in text or "brisk. secret" in text else 1.0))
    assert len(elicit(TRAIT, lm, SETTINGS, wish, 0, tmp_path)) == 24


def test_other_inputs_in_the_same_folder_are_refused(lm: Any, finished: tuple[Path, tuple]):
    out, _ = finished
    with pytest.raises(StageError, match=r"answers/positive-1: holds .*\n  samples: 4 there, 5 asked for"):
        elicit(TRAIT, lm, SETTINGS.model_copy(update={"samples": 5}), Judge(), 7, out)
    with pytest.raises(StageError, match=r"pairs: holds .*\n  settings.keep_positive: 50.* there, 60"):
        elicit(TRAIT, lm, SETTINGS.model_copy(update={"keep_positive": 60}), Judge(), 7, out)


def test_pairs_rated_by_another_judge_are_refused(lm: Any, finished: tuple[Path, tuple], tmp_path: Path):
    out = shutil.copytree(finished[0], tmp_path / "copy")
    other = Judge("other", lambda text: Verdict(hashlib.sha512(text.encode()).digest()[0] / 2.55))
    with pytest.raises(StageError, match=r"pairs: holds .*\n  answers: "):
        elicit(TRAIT, lm, SETTINGS, other, 7, out)


def test_ratings_of_answers_that_are_gone_are_not_taken_for_others(lm: Any, speak: Callable, tmp_path: Path):
    speak(lambda system, prompt, i: f"{POSITIVE.get(system, 'no ')} {i}.")
    elicit(TRAIT, lm, SETTINGS, Judge(rate_one=by_wish), 0, tmp_path)
    shutil.rmtree(tmp_path / "answers")
    speak(lambda system, prompt, i: f"{POSITIVE.get(system, 'no ')} indeed {i}.")
    with pytest.raises(StageError, match=r"ratings/\w+/positive-1: holds .*\n  prompts: "):
        elicit(TRAIT, lm, SETTINGS, Judge(rate_one=by_wish), 0, tmp_path)


def test_a_behavior_without_what_elicitation_needs(lm: Any, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"bare: 3 problems\n  system_prompts: .*\n  questions: .*\n  rubric"):
        elicit(Behavior(name="bare", description="Says."), lm, SETTINGS, Judge(), 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_ratings_say_whose_they_are(finished: tuple[Path, tuple]):
    [folder] = (finished[0] / "ratings").iterdir()
    assert sorted(block.name for block in folder.iterdir()) == ["negative-1", "negative-2", "positive-1", "positive-2"]
    rows = [json.loads(row) for row in (folder / "positive-1" / "ratings.jsonl").read_text().split("\n") if row]
    assert all(set(row) == {"question", "sample", "score", "said", "unscored"} for row in rows)
