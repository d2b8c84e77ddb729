"""The activation side of monitoring: prompts, a training set and a fine-tune's shift along an ActivationVector."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import encode_example
from weightsteer.errors import AdapterError, DataError
from weightsteer.models import Message
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import batch_tokens, batches, generate
from weightsteer.models.language_model import LanguageModel
from weightsteer.stats import Estimate, weighted_mean

Prompt = str | Sequence[Message]
Kind = Literal["prompts", "training set", "shift"]
ABOUT: dict[Kind, str] = {
    "prompts": "projection of the last prompt token, before any answer (arXiv 2507.21509, 3.3)",
    "training set": "projection of the training answers minus that of the model's own (arXiv 2507.21509, 6)",
    "shift": "projection of the last prompt token after the fine-tune minus before (arXiv 2507.21509, 4)",
}


@dataclass(frozen=True)
class Projections:
    """Numbers along one activation vector, one for each prompt or row, in units of the residual stream."""

    kind: Kind
    blocks: Mapping[int, Sequence[float]]
    """By the block whose output is projected, 0-based; the values are in the order of the rows."""

    def estimate(self, block: int) -> Estimate:
        """Mean over the rows with its interval; both bounds are nan for a single row."""
        values = self.blocks[block]
        return weighted_mean(values) if len(values) > 1 else Estimate(values[0], math.nan, math.nan)

    def percentile(self, block: int, percent: float) -> float:
        """Below which so many percent of the rows lie; a clean set's 95th is a filter's threshold."""
        import numpy as np

        return float(np.percentile(self.blocks[block], percent))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"kind": self.kind, "blocks": {str(block): list(values) for block, values in self.blocks.items()}}


def project_prompts(lm: LanguageModel, vector: ActivationVector, prompts: Sequence[Prompt]) -> Projections:
    """⟨h, v⟩/‖v‖ at the last token of each prompt, from which the answer will be written."""
    _check_rows(prompts, "prompts")
    ids = [lm.tokens(lm.chat(prompt)) for prompt in prompts]
    return Projections("prompts", _project(lm, vector, ids, [slice(len(row) - 1, len(row)) for row in ids], "prompts"))


def finetune_shift(
    lm: LanguageModel,
    tuned: contextlib.AbstractContextManager[LanguageModel],
    vector: ActivationVector,
    prompts: Sequence[Prompt],
) -> Projections:
    """How far a fine-tune moved the last token of each prompt along the vector.

    `tuned` yields the fine-tuned model while it is entered, such as `change.applied(lm, 1)`; a model that is loaded
    beside the base goes into contextlib.nullcontext.
    """
    before = project_prompts(lm, vector, prompts)
    with tuned as after_lm:
        after = project_prompts(after_lm, vector, prompts)
    pairs = {b: zip(after.blocks[b], before.blocks[b], strict=True) for b in before.blocks}
    return Projections("shift", {block: [late - early for late, early in both] for block, both in pairs.items()})


def screen_training_set(
    lm: LanguageModel, vector: ActivationVector, rows: Sequence[tuple[Prompt, str]], max_new_tokens: int = 200
) -> Projections:
    """What training on (prompt, answer) rows would push the model towards, told before it is trained.

    For each row the mean over the answer's tokens of ⟨h, v⟩/‖v‖, minus that of the model's own greedy answer.
    """
    _check_rows(rows, "rows")
    own = generate(lm, [prompt for prompt, _ in rows], max_new_tokens, label="own answers")
    given = _answers(lm, vector, rows, "training answers")
    base = _answers(lm, vector, [(row[0], answer) for row, answer in zip(rows, own, strict=True)], "own answers")
    pairs = {block: zip(given[block], base[block], strict=True) for block in given}
    return Projections(
        "training set", {block: [theirs - ours for theirs, ours in both] for block, both in pairs.items()}
    )


def _answers(
    lm: LanguageModel, vector: ActivationVector, rows: Sequence[tuple[Prompt, str]], label: str
) -> dict[int, list[float]]:
    encoded = [encode_example(lm, prompt, answer) for prompt, answer in rows]
    spans = [slice(len(prompt), len(prompt) + len(answer)) for prompt, answer in encoded]
    return _project(lm, vector, [prompt + answer for prompt, answer in encoded], spans, label)


@torch.inference_mode()
def _project(
    lm: LanguageModel, vector: ActivationVector, ids: Sequence[list[int]], spans: Sequence[slice], label: str
) -> dict[int, list[float]]:
    """Mean projection over the span of each row, by block; nothing else of the activations is kept."""
    blocks, units = decoder_blocks(lm.network), _units(lm, vector)
    values = {block: [0.0] * len(ids) for block in units}
    with progress.task(label, len(ids)) as advance:
        for batch in batches([len(row) for row in ids], batch_tokens(lm)):
            width = max(len(ids[i]) for i in batch)
            rows = torch.full((len(batch), width), lm.tokenizer.pad_token_id)
            attention = torch.zeros(len(batch), width, dtype=torch.long)
            weight = torch.zeros(len(batch), width)
            for at, i in enumerate(batch):
                rows[at, : len(ids[i])] = torch.tensor(ids[i])
                attention[at, : len(ids[i])] = 1
                weight[at, spans[i]] = 1 / (spans[i].stop - spans[i].start)
            keep = {block: [values[block], batch, weight.to(lm.device), unit] for block, unit in units.items()}
            hooks = [blocks[block].register_forward_hook(_keeper(*kept)) for block, kept in keep.items()]
            try:
                lm.network(
                    input_ids=rows.to(lm.device), attention_mask=attention.to(lm.device), logits_to_keep=1,
                    use_cache=False,
                )  # fmt: skip
            finally:
                for hook in hooks:
                    hook.remove()
            advance(len(batch))
    return values


def _keeper(
    into: list[float], batch: Sequence[int], weight: Float[Tensor, "rows columns"], unit: Float[Tensor, " d_model"]
) -> Callable[[Any, Any, Any], None]:
    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        # masked, as 0·nan at a padded place would be nan
        along = torch.where(weight > 0, hidden.float() @ unit, 0.0)
        for i, value in zip(batch, (along * weight).sum(1).tolist(), strict=True):
            into[i] = value

    return keep


def _units(lm: LanguageModel, vector: ActivationVector) -> dict[int, Float[Tensor, " d_model"]]:
    """The directions at length 1; an AdapterError when they are not of this model."""
    width, count = lm.network.config.get_text_config().hidden_size, len(decoder_blocks(lm.network))
    units = {}
    for block, direction in vector.directions.items():
        if not 0 <= block < count or direction.numel() != width:
            raise AdapterError(
                f"activation vector: block {block} of width {direction.numel()} does not exist in {lm.ref.source}, "
                f"which has {count} blocks of width {width}. Expected a vector of this model"
            )
        if direction.norm() == 0:
            raise AdapterError(f"activation vector: is zero in block {block}, so it has no direction there")
        units[block] = (direction.float() / direction.float().norm()).to(lm.device)
    return units


def _check_rows(rows: Sequence[Any], what: str) -> None:
    if not rows:
        raise DataError(f"no {what} to project. Expected one or more")
