"""Activation vectors from pairs: CAA, persona vectors, prompt differences, RepE's component; a common norm."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer.activations.capture import (
    Example,
    Moments,
    Position,
    answer_token_examples,
    capture,
    example,
    pair_activations,
)
from weightsteer.activations.steering import Mode
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import ContrastDataset, encode_example
from weightsteer.errors import AdapterError, DataError
from weightsteer.models import Message
from weightsteer.models.language_model import LanguageModel

Prompt = str | Sequence[Message]


def caa_vector(lm: LanguageModel, pairs: ContrastDataset, label: str = "activations") -> ActivationVector:
    """Mean difference at the answer token, added after the user's turn. Source: arXiv 2312.06681, section 3."""
    positive, negative = (capture(lm, texts, label) for texts in answer_token_examples(lm, pairs.pairs))
    return difference(lm, positive, negative, "after_user", _about(pairs, "CAA", "answer token"))


def persona_vector(lm: LanguageModel, pairs: ContrastDataset, label: str = "activations") -> ActivationVector:
    """Mean difference of means over answer tokens, added while generating. Source: arXiv 2507.21509, section 2.

    `increments()` of it is the all-layers form.
    """
    positive, negative = (
        capture(lm, [example(*encode_example(lm, p, a), "answer") for p, a in pairs.side(side)], f"{label}: {side}")
        for side in ("positive", "negative")
    )
    return difference(lm, positive, negative, "generated", _about(pairs, "persona vector", "mean over answer tokens"))


def prompt_vector(
    lm: LanguageModel,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    position: Position = "last_prompt",
    label: str = "activations",
) -> ActivationVector:
    """Mean difference between two sets of prompts, such as harmful and harmless ones, read before any answer.

    Added to every token. `position` may be another token of the template after the instruction, -2 for the last but
    one. `at(block - 1).ablating()` is the refusal direction that arXiv 2406.11717 reads at the input of `block`.
    """
    ours, theirs = (
        capture(lm, [example(lm.tokens(lm.chat(prompt)), [], position) for prompt in prompts], label)
        for prompts in (positive, negative)
    )
    return difference(lm, ours, theirs, "all", {"method": "prompt difference", "position": position})


def pca_vector(
    lm: LanguageModel, pairs: ContrastDataset, position: Position = "last", seed: int = 0, label: str = "activations"
) -> ActivationVector:
    """First principal component of the pairs' differences, of length 1, pointing to the positive side on average.

    Each difference is taken in a random order and their mean subtracted, as in arXiv 2310.01405 (LAT). Added to every
    token. Differences of all pairs and blocks are held at once, in float32.
    """
    positive, negative = (
        [example(*encode_example(lm, p, a), position) for p, a in pairs.side(side)] for side in ("positive", "negative")
    )
    components = principal_directions(pair_differences(lm, positive, negative, label), seed)
    info = {**_about(pairs, "RepE PCA", position), "seed": seed, "norm": "1 at each block"}
    return _vector(lm, components, "all", info)


def pair_differences(
    lm: LanguageModel, positive: Sequence[Example], negative: Sequence[Example], label: str = "activations"
) -> Float[Tensor, "pairs blocks d_model"]:
    """Positive minus negative activations of every pair in order, at its first read; float32."""
    found: list[Tensor] = [torch.empty(0)] * len(positive)
    for batch, ours, theirs in pair_activations(lm, positive, negative, label):
        for i, row in zip(batch, (ours - theirs)[:, 0], strict=True):
            found[i] = row
    return torch.stack(found)


def principal_directions(
    differences: Float[Tensor, "pairs blocks d_model"], seed: int
) -> Float[Tensor, "blocks d_model"]:
    """First principal component at each block of differences in random order; the mean difference decides its sign."""
    if len(differences) < 2:
        raise DataError(f"{len(differences)} pairs: have no principal component. Expected at least 2")
    order = torch.randint(0, 2, (len(differences), 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    components = []
    for block in differences.double().unbind(1):
        shuffled = block * order
        component = torch.linalg.svd(shuffled - shuffled.mean(0), full_matrices=False).Vh[0]
        components.append(component * (1 if block.mean(0) @ component >= 0 else -1))
    return torch.stack(components)


def difference(
    lm: LanguageModel, positive: Moments, negative: Moments, mode: Mode, info: Mapping[str, Any], read: int = 0
) -> ActivationVector:
    """Positive minus negative mean at one of the captured reads."""
    return _vector(lm, positive.mean[read] - negative.mean[read], mode, info)


def with_common_norms(vectors: Mapping[str, ActivationVector]) -> dict[str, ActivationVector]:
    """The vectors of several behaviors, at each block of the norm that they have there on average.

    One strength then means the same for every behavior; blocks are not made alike. Source: arXiv 2312.06681, section 3.
    """
    blocks = {name: sorted(vector.directions) for name, vector in vectors.items()}
    first = next(iter(blocks), "")
    for name in blocks:
        if blocks[name] != blocks[first]:
            raise AdapterError(
                f"vectors {first} and {name}: have blocks {blocks[first]} and {blocks[name]}. Expected the same ones"
            )
    scaled: dict[str, dict[int, Tensor]] = {name: {} for name in vectors}
    for block in blocks.get(first, []):
        norms = {name: vector.directions[block].double().norm().item() for name, vector in vectors.items()}
        for name, norm in norms.items():
            if norm == 0:
                raise AdapterError(f"vector {name}: is zero at block {block}. Expected a direction to scale")
            mean = sum(norms.values()) / len(norms)
            scaled[name][block] = vectors[name].directions[block] * (mean / norm)
    return {name: replace(vector, directions=scaled[name]) for name, vector in vectors.items()}


def _vector(
    lm: LanguageModel, directions: Float[Tensor, "blocks d_model"], mode: Mode, info: Mapping[str, Any]
) -> ActivationVector:
    broken = (~directions.isfinite()).any(-1).nonzero().flatten().tolist()
    if broken:
        raise AdapterError(
            f"activations of {lm.ref.source}: not finite at blocks {broken}. Expected numbers. Load the model in "
            "bfloat16 or float32"
        )
    return ActivationVector(dict(enumerate(directions.float())), lm.ref.fingerprint, mode, info)


def _about(pairs: ContrastDataset, method: str, position: str | int) -> dict[str, Any]:
    return {"behavior": pairs.behavior, "pairs_digest": pairs.digest, "method": method, "position": position}
