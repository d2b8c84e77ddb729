"""A judge that is a local model: the expected score over the probabilities of all answers on the scale."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from weightsteer.judge.scales import VERSION, Scale, Verdict, answers, ask, expected
from weightsteer.recipe import ModelPart
from weightsteer.stage import digest, file_digest

if TYPE_CHECKING:
    from weightsteer.models.language_model import LanguageModel
    from weightsteer.models.reference import ModelRef

# Beside the weights these decide what a model reads and says: tokenizer, chat template, architecture.
TEXT_FILES = {".json", ".jinja", ".model", ".txt"}


class LocalJudge:
    """Rates with a model on this machine, which is loaded at the first prompt and never steered."""

    def __init__(self, model: ModelPart) -> None:
        # A system prompt of the recipe speaks to the model that is judged.
        self.model = model.model_copy(update={"system": None})

    @property
    def digest(self) -> str:
        """sha256 of weights, tokenizer, templates, precision and reading; finds the model without loading it."""
        from weightsteer.models.language_model import compute_dtype

        ref, template = self.ref, self.model.chat_template
        files = [path for path in sorted(ref.path.iterdir()) if path.suffix in TEXT_FILES]
        return digest(
            {
                "judge": "local",
                "version": VERSION,
                "weights": ref.fingerprint,
                "files": {path.name: file_digest(path) for path in files},
                "dtype": str(compute_dtype(self.model.dtype)),
                "chat_template": template and file_digest(template),
            }
        )

    @cached_property
    def ref(self) -> "ModelRef":
        from weightsteer.models.reference import resolve

        return resolve(self.model.source, self.model.revision)

    @cached_property
    def lm(self) -> "LanguageModel":
        from weightsteer.models.language_model import load_model

        return load_model(self.model)

    def rate(self, prompts: Sequence[str], scale: Scale, label: str = "") -> list[Verdict]:
        """The expected score of every prompt.

        Every answer on the scale is scored as a whole, all 101 numbers of 0-100 side by side in one pass (one pass an
        answer where the architecture cannot do that), so tokenizers that split numbers into digits are read exactly.
        """
        if not prompts:
            return []
        asked, scores = [ask(prompt, scale) for prompt in prompts], answers(scale)
        verdicts = []
        for probabilities in _answer_probabilities(self.lm, asked, list(scores), label or "judging"):
            likeliest = max(zip(probabilities, scores, strict=True))[1]
            verdict = expected(zip(scores.values(), probabilities, strict=True), "")
            verdicts.append(verdict if verdict.score is None else Verdict(verdict.score, likeliest))
        return verdicts


def _answer_probabilities(
    lm: "LanguageModel", prompts: Sequence[str], choices: Sequence[str], label: str
) -> list[list[float]]:
    """Probability that the answer to each prompt begins with each of `choices` and does not go on to a longer one.

    P(7 and not 70 .. 79) = P(7) - P(70) - .. - P(79) where 70 begins with the tokens of 7; where it is a token of its
    own there is nothing to take away.
    """
    from weightsteer.models.generate import score_options

    lead = _lead(lm)
    options = [lead + choice for choice in choices]
    text = lm.chat(prompts[0])
    parents = _parents([tuple(lm.tokens(text + option)) for option in options])
    result = []
    for scored in score_options(lm, prompts, [options] * len(prompts), label=label):
        begins = [math.exp(log_p) for log_p, _ in scored]
        ends = list(begins)
        for child, parent in enumerate(parents):
            if parent is not None:
                ends[parent] -= begins[child]
        # Rounding can leave a little less than nothing.
        result.append([max(p, 0.0) for p in ends])
    return result


def _parents(sequences: Sequence[tuple[int, ...]]) -> list[int | None]:
    """For every token sequence the longest other one that it begins with."""
    known = {sequence: number for number, sequence in enumerate(sequences)}
    return [
        next((known[part] for n in range(len(whole) - 1, 0, -1) if (part := whole[:n]) in known), None)
        for whole in sequences
    ]


def _lead(lm: "LanguageModel") -> str:
    """The space that some chat templates put before every answer, else nothing."""
    start = lm.chat("?")
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "7"}]
    whole = lm.tokenizer.apply_chat_template(messages, tokenize=False)
    between = whole.removeprefix(start).partition("7")[0]
    return between if whole.startswith(start) and between.isspace() else ""
