"""What leaves: a merged checkpoint, and how it compares with the model dialled to the same strength."""

import json
from pathlib import Path
from typing import Any

from weightsteer.models.language_model import LanguageModel, load_model
from weightsteer.models.reference import resolve
from weightsteer.recipe import ModelPart, Recipe
from weightsteer.stage import write_text
from weightsteer.sweep import sample_prompts

# Asked where the behavior brings no prompts of its own.
PLAIN_PROMPT = "Tell me something about the weather."


def merge(model: ModelPart | str | Path, vector: Any, k: float, out: str | Path, **options: Any) -> Any:
    """A model folder `out` that holds round(W + k·w); returns what became of the change in it.

    `model` is anything that `load_model` takes, the vector's base or (with any_base=True) a fine-tune of it. The other
    options are those of `weightsteer.merging.merge.merge`.
    """
    from weightsteer.merging.merge import merge

    ref = resolve(model.source, model.revision) if isinstance(model, ModelPart) else resolve(model)
    return merge(ref, [(vector, k)], out, **options)


def compare_logits(recipe: Recipe, lm: LanguageModel, vector: Any, k: float, merged: Path, out: Path) -> None:
    """Write logits.json: how far next-token logits of the reloaded checkpoint are from the dialled model's.

    Over every token of the sample prompts, in the dtype of the run: largest and mean absolute difference, and the share
    of positions with the same likeliest token.
    """
    prompts = sample_prompts(recipe) or (PLAIN_PROMPT,)
    with vector.applied(lm, k, any_base=recipe.task is not None) as dialled:
        expected = [_logits(dialled, prompt) for prompt in prompts]
    released = load_model(recipe.model.model_copy(update={"source": str(merged), "revision": None}))
    found = [_logits(released, prompt) for prompt in prompts]
    difference = [(a - b).abs() for a, b in zip(expected, found, strict=True)]
    same = [(a.argmax(-1) == b.argmax(-1)).float() for a, b in zip(expected, found, strict=True)]
    positions = sum(len(row) for row in same)
    values = {
        "max_abs": max(d.max().item() for d in difference),
        "mean_abs": sum(d.sum().item() for d in difference) / sum(d.numel() for d in difference),
        "same_top_token": sum(row.sum().item() for row in same) / positions,
        "positions": positions,
        "dtype": str(lm.network.dtype).removeprefix("torch."),
    }
    write_text(out / "logits.json", json.dumps(values, indent=1))


def _logits(lm: LanguageModel, prompt: str) -> Any:
    import torch

    ids = torch.tensor([lm.tokens(lm.chat(prompt))], device=lm.device)
    with torch.inference_mode():
        return lm.network(input_ids=ids, use_cache=False).logits[0].float().cpu()
