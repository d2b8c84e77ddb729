"""Which judge a recipe gets."""

import subprocess
import sys
from pathlib import Path

import pytest

from weightsteer.errors import JudgeError
from weightsteer.judge import LocalJudge, RulesJudge, ServerJudge, open_judge
from weightsteer.recipe import JudgePart, ModelPart

OWN = ModelPart(source="own/model", revision="abc", dtype="float32", system="Be brief.")


def test_rules_refuse_a_rubric():
    judge = open_judge(JudgePart(kind="rules"), OWN)
    assert isinstance(judge, RulesJudge)
    with pytest.raises(
        JudgeError, match=r"judge.kind rules: trait: rating is to be rated on 0-100.*Set judge.kind to local"
    ):
        judge.rate(["How good?"], "0-100", "trait: rating")


def test_a_local_judge_is_the_recipes_own_model_or_another():
    own = open_judge(JudgePart(), OWN)
    assert isinstance(own, LocalJudge)
    assert own.model == OWN.model_copy(update={"system": None})
    other = open_judge(JudgePart(model="another/model"), OWN)
    assert isinstance(other, LocalJudge)
    assert other.model == ModelPart(source="another/model")


def test_a_server_keeps_replies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEIGHTSTEER_CACHE", str(tmp_path))
    judge = open_judge(JudgePart(kind="server", url="http://127.0.0.1:1/v1", model="m"), OWN)
    assert isinstance(judge, ServerJudge)
    assert judge.cache.folder == tmp_path / "judge"


def test_digests_differ_by_kind():
    server = JudgePart(kind="server", url="http://127.0.0.1:1/v1", model="m")
    assert open_judge(JudgePart(kind="rules"), OWN).digest != open_judge(server, OWN).digest


def test_opening_a_judge_loads_nothing_heavy():
    code = "import sys, weightsteer.judge; print({'torch', 'transformers', 'openai', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
