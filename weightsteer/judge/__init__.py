"""Judges: a rubric filled in with a question and an answer -> a score, by a local model or a server; rules beside them.

What a rule can tell exactly is in `weightsteer.judge.rules` and needs no judge.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from weightsteer.errors import JudgeError
from weightsteer.judge.local import LocalJudge
from weightsteer.judge.scales import Scale, Verdict
from weightsteer.judge.server import ServerJudge
from weightsteer.recipe import JudgePart, ModelPart
from weightsteer.stage import digest

__all__ = ["Judge", "LocalJudge", "RulesJudge", "Scale", "ServerJudge", "Verdict", "open_judge"]


@runtime_checkable
class Judge(Protocol):
    """Whoever rates prompts."""

    @property
    def digest(self) -> str:
        """sha256 of everything beside the prompts that determines a verdict."""
        ...

    def rate(self, prompts: Sequence[str], scale: Scale, label: str = "") -> list[Verdict]:
        """A verdict for every prompt, in their order; how to answer is added to each prompt."""
        ...


class RulesJudge:
    """No model at all: what needs one is refused."""

    digest = digest({"judge": "rules"})

    def rate(self, prompts: Sequence[str], scale: Scale, label: str = "") -> list[Verdict]:
        """A JudgeError: a rubric is words, and only a model reads them."""
        raise JudgeError(
            f"judge.kind rules: {label or 'a rubric'} is to be rated on {scale}, which no rule can do. Expected a "
            "model that reads the rubric. Set judge.kind to local, or to server with judge.url and judge.model"
        )


def open_judge(part: JudgePart, model: ModelPart) -> RulesJudge | LocalJudge | ServerJudge:
    """The judge of a recipe whose own model is `model`; nothing is loaded or asked before it rates."""
    if part.kind == "rules":
        return RulesJudge()
    if part.kind == "server":
        return ServerJudge(part)
    return LocalJudge(model if part.model is None else ModelPart(source=part.model))
