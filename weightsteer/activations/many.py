"""One prompt answered at many strengths in one batch."""

from collections.abc import Sequence
from typing import Any

import torch

from weightsteer.activations.vector import ActivationVector
from weightsteer.models import Message
from weightsteer.models.generate import PLAIN
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.side_by_side import sees_everything


@torch.inference_mode()
def generate_many(
    lm: LanguageModel,
    prompt: str | Sequence[Message],
    vector: ActivationVector,
    ks: Sequence[float],
    max_new_tokens: int,
    any_base: bool = False,
) -> list[str]:
    """Greedy answers to one prompt at each strength of `ks`, in one batch."""
    ids = lm.tokens(lm.chat(prompt))
    rows = torch.tensor([ids] * len(ks), device=lm.device)
    beginning = _beginning(lm, ids, len(ks)) if vector.mode == "generated" else {}
    decoding = {**PLAIN, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    with vector.applied_by_row(lm, ks, any_base):
        answers = lm.network.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=max_new_tokens,
            pad_token_id=lm.tokenizer.pad_token_id,
            **decoding,
            **beginning,
        )
    return [lm.tokenizer.decode(answer[len(ids) :], skip_special_tokens=True).strip() for answer in answers]


def _beginning(lm: LanguageModel, ids: list[int], rows: int) -> dict[str, Any]:
    """Keys and values of the prompt before its last token, which no strength changes: computed once for all rows."""
    if len(ids) < 2 or not sees_everything(lm.network):
        return {}
    cache = lm.network(input_ids=torch.tensor([ids[:-1]], device=lm.device), logits_to_keep=1, use_cache=True)
    cache.past_key_values.batch_repeat_interleave(rows)
    return {"past_key_values": cache.past_key_values}
