"""The local judge against probabilities computed token by token."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from speaker import write_speaker
from tiny_models import byte_tokenizer

from weightsteer.judge import scales
from weightsteer.judge.local import LocalJudge, _lead, _parents
from weightsteer.judge.scales import ask
from weightsteer.recipe import ModelPart

PROMPTS = ["How friendly is this?", "And how friendly is that?"]


@pytest.fixture
def judge(model_folder: Path) -> LocalJudge:
    return LocalJudge(ModelPart(source=str(model_folder), dtype="float32"))


@torch.inference_mode()
def next_token(judge: LocalJudge, text: str) -> torch.Tensor:
    """Probabilities of the token after `text`, by one plain pass."""
    ids = torch.tensor([judge.lm.tokens(text)])
    return judge.lm.network(input_ids=ids).logits[0, -1].double().softmax(-1)


def test_numbers_are_scored_to_their_end(judge: LocalJudge, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scales, "LEAST_MASS", 0.0)  # a random model says anything
    digits = [judge.lm.tokens(str(d))[0] for d in range(10)]
    for prompt, verdict in zip(PROMPTS, judge.rate(PROMPTS, "0-100"), strict=True):
        text = judge.lm.chat(ask(prompt, "0-100"))
        first, p = next_token(judge, text), {}
        for d in range(10):
            second = next_token(judge, text + str(d))
            for e in range(10 if d else 0):
                p[10 * d + e] = (first[digits[d]] * second[digits[e]]).item()
            goes_on = sum(second[digits[e]] for e in range(10)) if d else 0
            p[d] = (first[digits[d]] * (1 - goes_on)).item()
        third = next_token(judge, text + "10")[digits[0]].item()
        p[10], p[100] = p[10] * (1 - third), p[10] * third
        assert sorted(p) == list(range(101))
        assert verdict.score == pytest.approx(sum(n * q for n, q in p.items()) / sum(p.values()), rel=1e-4)
        assert verdict.said == str(max(p, key=lambda n: p[n]))


def test_words_are_scored_in_every_spelling(judge: LocalJudge, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scales, "LEAST_MASS", 0.0)
    text, p = judge.lm.chat(ask(PROMPTS[0], "yes-no")), {}
    for word in ("YES", "Yes", "yes", "NO", "No", "no"):
        p[word] = math.prod(
            next_token(judge, text + word[:n])[judge.lm.tokens(word[n])[0]].item() for n in range(len(word))
        )
    verdict = judge.rate(PROMPTS[:1], "yes-no")[0]
    assert verdict.score == pytest.approx(sum(list(p.values())[:3]) / sum(p.values()), rel=1e-4)


def test_a_model_that_says_something_else_is_unscored(judge: LocalJudge):
    for verdict in judge.rate(PROMPTS, "1-5"):
        assert verdict.score is None
        assert verdict.said == ""
        assert "of the probability is on the scale's answers" in str(verdict.unscored)


def test_a_model_that_says_73(tmp_path: Path):
    judge = LocalJudge(ModelPart(source=str(write_speaker(tmp_path / "m", "73"))))
    verdicts = judge.rate(PROMPTS, "0-100")
    assert [verdict.score for verdict in verdicts] == pytest.approx([73, 73])
    assert [verdict.said for verdict in verdicts] == ["73", "73"]
    assert judge.rate(PROMPTS, "0-100") == verdicts
    assert judge.rate([], "0-100") == []


def test_a_longer_number_takes_away_only_where_its_tokens_begin_the_same():
    # 7, 70 as 7 0, 80 as a token of its own, 100 as 10 0.
    assert _parents([(5, 7), (5, 7, 0), (5, 80), (5, 10), (5, 10, 0)]) == [None, 0, None, None, 3]


def test_a_template_that_puts_a_space_before_answers(judge: LocalJudge):
    assert _lead(judge.lm) == ""
    judge.lm.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[I]{{ m.content }}[/I]{% else %} {{ m.content }}</s>"
        "{% endif %}{% endfor %}"
    )
    assert _lead(judge.lm) == " "


def test_the_recipes_system_prompt_is_not_the_judges(model_folder: Path):
    part = ModelPart(source=str(model_folder), system="Speak French.")
    assert LocalJudge(part).lm.system is None


def test_digest_tells_what_changes_verdicts(tmp_path: Path, model_folder: Path):
    def digest(folder: Path, **keys: object) -> str:
        return LocalJudge(ModelPart.model_validate({"source": str(folder), "dtype": "float32", **keys})).digest

    folder, template = tmp_path / "model", tmp_path / "chat.jinja"
    shutil.copytree(model_folder, folder)
    template.write_text("{{ messages[0]['content'] }}!", encoding="utf-8")
    first = digest(folder)
    assert digest(model_folder) == first
    assert digest(folder, system="Be kind.") == first
    assert digest(folder, dtype="bfloat16") != first
    assert digest(folder, chat_template=str(template)) != first
    byte_tokenizer("{{ messages[0]['content'] }}?").save_pretrained(folder)
    assert digest(folder) != first
    changed = digest(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}), encoding="utf-8")
    assert digest(folder) != changed
