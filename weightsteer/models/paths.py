"""Paths of tokens that a model takes by itself, and what a model expects at every step of a given path."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer.models.generate import PLAIN, answer_span, float32_logits
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.side_by_side import attention_inputs


@torch.inference_mode()
def greedy_paths(lm: LanguageModel, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Token ids that follow each prompt (token ids too) greedily, the end of the turn included; one batch."""
    width, pad = max(map(len, prompts)), lm.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=lm.device)
    decoding = {**PLAIN, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    output = lm.network.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, pad_token_id=pad, **decoding
    )
    ends = _ends_of_turn(lm)
    return [_until(row[width:].tolist(), ends) for row in output]


@torch.inference_mode()
def path_log_probs(
    lm: LanguageModel, prompts: Sequence[list[int]], paths: Sequence[list[int]]
) -> list[Float[Tensor, "step vocabulary"]]:
    """Log-probabilities of every token at each step of each path after its prompt, float32; one forward pass.

    Prompts end and paths begin in the same column, so that a steering of the answer alone (`answer_columns`) acts on
    the tokens that it acts on while generating.
    """
    prompt_width, path_width = max(map(len, prompts)), max(map(len, paths))
    shape = (len(prompts), prompt_width + path_width - 1)  # the last token of a path is predicted, never fed
    ids = torch.full(shape, lm.tokenizer.pad_token_id, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    part = torch.full(shape, -1, dtype=torch.long)
    for row, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
        start, end = prompt_width - len(prompt), prompt_width + len(path) - 1
        ids[row, start:end] = torch.tensor(prompt + path[:-1])
        positions[row, start:end] = torch.arange(end - start)
        part[row, start:end] = 0
    with answer_span(path_width), float32_logits(lm.network):
        logits = lm.network(
            input_ids=ids.to(lm.device),
            logits_to_keep=path_width,
            use_cache=False,
            **attention_inputs(lm.network, part, positions),
        ).logits
    return [logits[row, : len(path)].float().log_softmax(-1) for row, path in enumerate(paths)]


def _ends_of_turn(lm: LanguageModel) -> set[int]:
    """The tokens at which generation stops."""
    ends = lm.network.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list | tuple) else {ends} - {None}


def _until(path: list[int], ends: set[int]) -> list[int]:
    """The path up to its first end, which is part of it; what follows is padding."""
    last = next((step for step, token in enumerate(path) if token in ends), len(path) - 1)
    return path[: last + 1]
