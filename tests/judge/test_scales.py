"""How answers are asked for and read, by hand-computed cases."""

import pytest

from weightsteer.judge.scales import LEAST_MASS, Candidate, Scale, Verdict, answers, ask, read_candidates, read_text


def candidates(**probabilities: float) -> list[Candidate]:
    return [Candidate(token.removeprefix("_"), p) for token, p in probabilities.items()]


def test_the_form_of_the_answer_is_asked_for_last():
    assert ask("How friendly?\n", "1-5") == "How friendly?\n\nReply with one whole number from 1 to 5 and nothing else."
    assert len(answers("0-100")) == 101
    assert answers("yes-no") == {"YES": 1, "Yes": 1, "yes": 1, "NO": 0, "No": 0, "no": 0}


@pytest.mark.parametrize(
    ("text", "scale", "score"),
    [
        ("85", "0-100", 85),
        (" **85.** ", "0-100", 85),
        ("72.5", "0-100", 72.5),
        ("85/100", "0-100", 85),
        ("Score: 0", "0-100", 0),
        ("85\n\nThe answer agrees.", "0-100", 85),
        ("4", "1-5", 4),
        ("4/5", "1-5", 4),
        ("Yes", "yes-no", 1),
        ("NO.", "yes-no", 0),
        ("INCORRECT", "correct-incorrect", 0),
        ("Correct. It is Paris.", "correct-incorrect", 1),
        ("101", "0-100", None),
        ("-5", "0-100", None),
        ("70-80", "0-100", None),
        ("85\n90", "0-100", None),
        ("between 1 and 5", "1-5", None),
        ("0", "1-5", None),
        ("4/10", "1-5", None),
        ("I rate this 85", "0-100", None),
        ("REFUSAL", "0-100", None),
        ("Not correct", "correct-incorrect", None),
        ("Yes and no", "yes-no", None),
        ("", "yes-no", None),
    ],
)
def test_text_is_read_strictly(text: str, scale: Scale, score: float | None):
    verdict = read_text(text, scale)
    assert verdict.score == score
    assert verdict.said == text
    assert (verdict.unscored is None) == (score is not None)


def test_an_unread_answer_is_quoted():
    assert read_text("I would\nsay 7", "0-100").unscored == "wrote 'I would say 7', which is no answer on 0-100"
    assert "wrote nothing" in str(read_text("", "1-5").unscored)


def test_expected_score_over_whole_numbers():
    verdict = read_candidates("80", candidates(_80=0.5, _90=0.3, Well=0.1, _007=0.05, _101=0.05), "0-100")
    assert verdict.score == pytest.approx((80 * 0.5 + 90 * 0.3) / 0.8)


def test_too_little_on_numbers_is_unscored():
    verdict = read_candidates("Well, 80", candidates(Well=0.8, _80=LEAST_MASS - 0.01), "0-100")
    assert verdict == Verdict(
        None, "Well, 80", "only 24% of the probability is on the scale's answers; it wrote 'Well, 80'"
    )
    assert read_candidates("80", candidates(_80=LEAST_MASS), "0-100").score == 80


def test_digit_by_digit_the_text_is_read():
    # First digits: 8 may be 8 or 80, so 0.6 * 8 + 0.4 * 9 would be wrong by far.
    assert read_candidates("85", candidates(_8=0.6, _9=0.4), "0-100").score == 85
    assert read_candidates("8", candidates(_8=0.6, _9=0.4), "0-100").score == 8
    assert read_candidates("4", candidates(_4=0.6, _5=0.4), "1-5").score == pytest.approx(4.4)


def test_probability_of_a_word_from_its_first_token():
    assert read_candidates("YES", candidates(YES=0.6, Yes=0.1, No=0.2, now=0.1), "yes-no").score == pytest.approx(7 / 9)
    tokens = candidates(COR=0.2, IN=0.6, C=0.1, The=0.1)
    assert read_candidates("INCORRECT", tokens, "correct-incorrect").score == pytest.approx(0.25)


def test_a_word_that_only_begins_alike_is_no_verdict():
    verdict = read_candidates("In my opinion it is", candidates(In=0.9, Cor=0.1), "correct-incorrect")
    assert verdict.score is None
    assert "'In my opinion it is'" in str(verdict.unscored)
