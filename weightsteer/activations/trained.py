"""Activation vectors that are trained, the model frozen: on the next token, or on which answer is preferred."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.steering import add_hooks
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import ContrastDataset, encode_example
from weightsteer.errors import AdapterError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.side_by_side import attention_inputs

# Token ids of a prompt and of its answer.
Tokens = tuple[list[int], list[int]]


@dataclass(frozen=True)
class VectorTraining:
    """How a vector is trained; defaults of arXiv 2604.08524 and its code."""

    block: int
    """The vector is added at this block's output, at every token."""
    objective: Literal["next_token", "preference"] = "next_token"
    learning_rate: float = 1e-2
    epochs: int = 10
    batch_size: int = 6
    factors: tuple[int, int] = (2, 20)
    """Each example is steered by a random whole factor between these."""
    answer_tokens: int = 64
    """The loss reads so many tokens of an answer at most."""
    preference_scale: float = 2e-2
    """How much the unsteered model's own preference for the loser lengthens the winner's part of the loss."""
    norm: float | None = None
    """Length that the trained vector is given, such as that of a difference in means; None leaves it as it is."""
    seed: int = 0


def trained_vector(
    lm: LanguageModel, pairs: ContrastDataset, settings: VectorTraining, label: str = "training a vector"
) -> ActivationVector:
    """A vector under which, added, the positive answers become likely, and subtracted, the negative ones.

    `next_token` minimises the cross-entropy of the wanted answer; `preference` −log σ(β·log p(winner)/|winner| −
    log p(loser)/|loser|), β = max(scale·(log p₀(loser) − log p₀(winner)), 1), p₀ without the vector (RePS). Every pair
    is seen with both signs in every epoch. Source: arXiv 2604.08524 and its code.
    """
    blocks = len(decoder_blocks(lm.network))
    if not 0 <= settings.block < blocks:
        raise AdapterError(f"block {settings.block}: does not exist in {lm.ref.source}. Expected 0 to {blocks - 1}")
    sides = [[encode_example(lm, *row) for row in pairs.side(side)] for side in ("positive", "negative")]
    positive, negative = ([(prompt, answer[: settings.answer_tokens]) for prompt, answer in side] for side in sides)
    # What is wanted and what is not: with the vector added, and with it subtracted.
    signed = [(p, n, 1) for p, n in zip(positive, negative, strict=True)]
    signed += [(n, p, -1) for p, n, _ in signed]
    order = random.Random(settings.seed)
    with torch.inference_mode(False), torch.enable_grad():
        vector = torch.randn(
            lm.network.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(settings.seed)
        )
        vector = (vector * 0.01).requires_grad_()
        optimizer = torch.optim.AdamW([vector], lr=settings.learning_rate)
        steps = -(-len(signed) // settings.batch_size) * settings.epochs
        with progress.task(label, steps) as advance:
            for _ in range(settings.epochs):
                order.shuffle(signed)
                for start in range(0, len(signed), settings.batch_size):
                    batch = signed[start : start + settings.batch_size]
                    k = [sign * order.randint(*settings.factors) for _, _, sign in batch]
                    loss = _loss(lm, vector, batch, k, settings)
                    if not loss.isfinite():
                        raise AdapterError(
                            f"{label}: the loss is {loss.item()}. Expected a number. Lower the learning rate, "
                            f"{settings.learning_rate:g}, or load the model in float32"
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    advance(1, f"loss {loss.item():.3f}")
    found = vector.detach()
    if settings.norm is not None:
        found = found * (settings.norm / found.norm())
    info = {
        "behavior": pairs.behavior,
        "pairs_digest": pairs.digest,
        "method": f"trained: {settings.objective}",
        "training": asdict(settings),
    }
    return ActivationVector({settings.block: found}, lm.ref.fingerprint, "all", info)


def _loss(
    lm: LanguageModel,
    vector: Float[Tensor, " d_model"],
    batch: Sequence[tuple[Tokens, Tokens, int]],
    k: Sequence[int],
    settings: VectorTraining,
) -> Float[Tensor, ""]:
    wanted = [tokens for tokens, _, _ in batch]
    if settings.objective == "next_token":
        with _steered(lm, vector, k, settings.block):
            return -_answer_log_p(lm, wanted).sum() / sum(len(answer) for _, answer in wanted)
    rows, half = wanted + [tokens for _, tokens, _ in batch], len(batch)
    with torch.no_grad():
        unsteered = _answer_log_p(lm, rows)
    with _steered(lm, vector, [*k, *k], settings.block):
        log_p = _answer_log_p(lm, rows)
    beta = (settings.preference_scale * (unsteered[half:] - unsteered[:half])).clamp(min=1)
    per_token = log_p / torch.tensor([len(answer) for _, answer in rows], device=lm.device)
    return -torch.nn.functional.logsigmoid(beta * per_token[:half] - per_token[half:]).mean()


@contextlib.contextmanager
def _steered(lm: LanguageModel, vector: Float[Tensor, " d_model"], k: Sequence[int], block: int) -> Iterator[None]:
    hooks = list(add_hooks(lm, {block: vector}, torch.tensor(k, dtype=torch.float32)[:, None, None], "all"))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _answer_log_p(lm: LanguageModel, rows: Sequence[Tokens]) -> Float[Tensor, " rows"]:
    """Log-probability in nats of each answer after its prompt; prompts end in one column."""
    prompt_width, answer_width = max(len(prompt) for prompt, _ in rows), max(len(answer) for _, answer in rows)
    shape = (len(rows), prompt_width + answer_width - 1)  # the last token of an answer is predicted, never fed
    ids = torch.full(shape, lm.tokenizer.pad_token_id, dtype=torch.long)
    positions, part = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1, dtype=torch.long)
    targets = torch.full((len(rows), answer_width), -1)
    for row, (prompt, answer) in enumerate(rows):
        start, end = prompt_width - len(prompt), prompt_width + len(answer) - 1
        ids[row, start:end] = torch.tensor(prompt + answer[:-1])
        positions[row, start:end] = torch.arange(end - start)
        part[row, start:end] = 0
        targets[row, : len(answer)] = torch.tensor(answer)
    targets = targets.to(lm.device)
    logits = lm.network(
        input_ids=ids.to(lm.device),
        logits_to_keep=answer_width,
        use_cache=False,
        **attention_inputs(lm.network, part, positions),
    ).logits.float()
    log_p = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return log_p.masked_fill(targets < 0, 0).sum(-1)
