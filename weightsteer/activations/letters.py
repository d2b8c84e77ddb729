"""Answers of one token, scored under many vectors and strengths: what none of them changes is read once."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.capture import _check_context
from weightsteer.activations.steering import steered_columns
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import DataError, report_problems
from weightsteer.models.generate import _split, answer_span, batch_tokens, batches, float32_logits, opening_tokens
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.side_by_side import attention_inputs, sees_everything


@dataclass(frozen=True)
class Question:
    """The token ids after which one of `options` comes; the last `opened` of them are the answer's own."""

    ids: list[int]
    opened: int
    options: tuple[int, ...]


def encode_questions(
    lm: LanguageModel, prompts: Sequence[str], opening: str, options: Sequence[Sequence[str]]
) -> list[Question]:
    """Every prompt, a user message, with the answer begun by `opening`, such as the bracket of "(A)".

    A DataError names the answers that are more than one token.
    """
    questions, problems = [], []
    for prompt, choices in zip(prompts, options, strict=True):
        start = lm.chat(prompt)
        ids, answers = _split(lm.tokens(start + opening), [lm.tokens(start + opening + choice) for choice in choices])
        if any(len(answer) != 1 for answer in answers):
            problems.append(f"{prompt[:60]!r}: answers {list(choices)} are {[len(a) for a in answers]} tokens")
            continue
        opened = max(0, len(ids) - len(lm.tokens(start)))
        questions.append(Question(ids, opened, tuple(answer[0] for answer in answers)))
    expected = ["expected answers of one token, such as letters in brackets. Put them so, or use the eval `ab`"]
    report_problems(DataError, f"answers of {len(prompts)} questions", problems and [*problems[:5], *expected])
    return questions


@torch.inference_mode()
def score_many(
    lm: LanguageModel,
    questions: Sequence[Question],
    vectors: Sequence[ActivationVector],
    ks: Sequence[float],
    any_base: bool = False,
    label: str = "",
) -> Float[Tensor, "vectors strengths questions options"]:
    """Log-probability in nats of every option of every question, under each vector at each of `ks`.

    The prompt's tokens that no vector touches are read once; for each vector one pass over the rest has a row for every
    question and strength. Where the architecture keeps other state than keys and values, or a vector acts on every
    token, each pass reads the whole prompt.
    """
    _check_context(lm, [len(question.ids) for question in questions])
    found = torch.empty(len(vectors), len(ks), len(questions), len(questions[0].options))
    with progress.task(label or "scoring", len(questions)) as advance, float32_logits(lm.network):
        for opened in sorted({question.opened for question in questions}):
            alike = [i for i, question in enumerate(questions) if question.opened == opened]
            lengths = [len(questions[i].ids) for i in alike]
            # A cache is held for every row of every strength.
            for batch in batches(lengths, max(batch_tokens(lm) // len(ks), 1)):
                rows = [alike[i] for i in batch]
                found[:, :, rows] = _score_batch(lm, [questions[i] for i in rows], vectors, ks, any_base)
                advance(len(rows))
    return found


def _score_batch(
    lm: LanguageModel,
    questions: Sequence[Question],
    vectors: Sequence[ActivationVector],
    ks: Sequence[float],
    any_base: bool,
) -> Float[Tensor, "vectors strengths questions options"]:
    width, opened = max(len(question.ids) for question in questions), questions[0].opened
    ids = torch.full((len(questions), width), lm.tokenizer.pad_token_id, dtype=torch.long)
    positions, part = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, question in enumerate(questions):
        start = width - len(question.ids)
        ids[row, start:] = torch.tensor(question.ids)
        positions[row, start:] = torch.arange(len(question.ids))
        part[row, start:] = 0
    skip = width - _touched(lm, vectors, width, opened)
    inputs: dict[str, Any] = {"logits_to_keep": 1, "use_cache": skip > 0}
    cache = None
    if skip:
        start = {"input_ids": ids[:, :skip].to(lm.device), **inputs}
        with answer_span(0):
            start |= attention_inputs(lm.network, part[:, :skip], positions[:, :skip])
            cache = lm.network(**start).past_key_values
        cache.batch_repeat_interleave(len(ks))
    ids, positions, part = (of.repeat_interleave(len(ks), 0) for of in (ids, positions, part))
    inputs |= {"input_ids": ids[:, skip:].to(lm.device), **attention_inputs(lm.network, part, positions, skip)}
    options = torch.tensor([question.options for question in questions], device=lm.device)
    found = []
    for vector in vectors:
        # A pass writes its own keys and values behind those of the beginning.
        kept = {} if cache is None else {"past_key_values": copy.deepcopy(cache)}
        with vector.applied_by_row(lm, list(ks) * len(questions), any_base), answer_span(1 + opened):
            logits = lm.network(**inputs, **kept).logits[:, -1].float()
        log_p = logits.log_softmax(-1).gather(1, options.repeat_interleave(len(ks), 0))
        found.append(log_p.reshape(len(questions), len(ks), -1).transpose(0, 1).cpu())
    return torch.stack(found)


def _touched(lm: LanguageModel, vectors: Sequence[ActivationVector], width: int, opened: int) -> int:
    """How many trailing columns have to be read again for each vector, at least the one that predicts."""
    if not sees_everything(lm.network):
        return width
    opening = opening_tokens(lm)
    with answer_span(1 + opened):
        return max(1, *(steered_columns(vector.mode, width, opening) for vector in vectors))
