"""Where in a text a behavior is: each token's activation projected on a vector, and a page on which one sees it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer.activations.capture import Example, activations
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, DataError
from weightsteer.models.language_model import LanguageModel
from weightsteer.stage import write_text

# The color scale ends here: the few largest values, such as the first token's, would leave the rest without color.
SCALE_PERCENTILE = 0.98


@dataclass(frozen=True)
class TextProjection:
    """A text in pieces, one for each token, and each token's projection on each block's direction."""

    title: str
    tokens: tuple[str, ...]
    blocks: tuple[int, ...]
    dot: Float[Tensor, "blocks tokens"]
    """⟨h, v⟩ / ‖v‖: how far along the direction, in the activations' own unit."""
    cosine: Float[Tensor, "blocks tokens"]


def project(
    lm: LanguageModel,
    text: str,
    vector: ActivationVector,
    *,
    title: str = "",
    origin: Float[Tensor, "blocks d_model"] | None = None,
) -> TextProjection:
    """Every token of `text` on every direction of `vector`. Source: arXiv 2312.06681, section 4.

    `text` holds its special tokens, as `lm.chat(question) + answer` does. What all activations share hides what
    differs: `origin`, one row for each block of the model such as the mean over many texts, is subtracted first.
    """
    if vector.base not in (None, lm.ref.fingerprint):
        raise AdapterError(
            f"activation vector of base {vector.base}, model {lm.ref.source} is {lm.ref.fingerprint}. Expected the "
            "base it was made on"
        )
    encoded = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    if not ids:
        raise DataError(f"text {title or text!r}: holds no token. Expected a text to project")
    [(_, found)] = activations(lm, [Example(ids, tuple(range(t, t + 1) for t in range(len(ids))))], "projection")
    hidden = found[0].double()
    if origin is not None:
        hidden = hidden - origin.double().cpu()
    blocks = tuple(sorted(vector.directions))
    missing = [b for b in blocks if b >= hidden.shape[1] or vector.directions[b].numel() != hidden.shape[2]]
    if missing:
        raise AdapterError(
            f"activation vector: block {missing[0]} of width {vector.directions[missing[0]].numel()} does not exist in "
            f"{lm.ref.source}, which has {hidden.shape[1]} blocks of width {hidden.shape[2]}"
        )
    units = torch.stack([vector.directions[b].double() / vector.directions[b].double().norm() for b in blocks])
    dot = torch.einsum("tbd,bd->bt", hidden[:, list(blocks)], units)
    cosine = dot / hidden[:, list(blocks)].norm(dim=-1).T
    return TextProjection(title, _pieces(text, encoded["offset_mapping"]), blocks, dot.float(), cosine.float())


def write_page(path: str | Path, texts: Sequence[TextProjection], title: str, note: str = "") -> None:
    """Write one self-contained HTML page with `texts` colored by their projections.

    Blocks and the two measures are chosen on the page; one color scale holds for all texts, so that they can be
    compared. The exact value of a token is shown when it is pointed at or reached with the keyboard.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not texts or len({text.blocks for text in texts}) != 1:
        raise DataError(
            f"page {title!r}: {len(texts)} texts with blocks {sorted({text.blocks for text in texts})}. Expected at "
            "least one text, all projected on the same blocks"
        )
    data = {
        "blocks": texts[0].blocks,
        "scales": {measure: _scales(texts, measure) for measure in ("dot", "cosine")},
        "texts": [
            {"title": t.title, "tokens": t.tokens, "dot": _rounded(t.dot), "cosine": _rounded(t.cosine)} for t in texts
        ],
    }
    # "</script>" inside a token would end the script that holds it.
    script = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    environment = Environment(
        loader=PackageLoader("weightsteer", "activations"), undefined=StrictUndefined, autoescape=True
    )
    page = environment.get_template("projection.html.j2").render(title=title, note=note, data=script)
    write_text(Path(path), page)


def _pieces(text: str, offsets: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """The text cut at token borders: joined, the pieces are the text.

    Of the tokens that share a character the first has it; what no token covers belongs to the next one.
    """
    pieces, done = [], 0
    for _, end in offsets:
        pieces.append(text[done : max(end, done)])
        done = max(end, done)
    pieces[-1] += text[done:]
    return tuple(pieces)


def _scales(texts: Sequence[TextProjection], measure: str) -> list[float]:
    """For each block, the size at which colors are full."""
    values = torch.cat([getattr(text, measure) for text in texts], 1).abs()
    if not values.isfinite().all():
        raise DataError("projections: not all finite. Expected a vector and texts without NaN")
    return values.quantile(SCALE_PERCENTILE, dim=1).clamp(min=1e-12).tolist()


def _rounded(values: Float[Tensor, "blocks tokens"]) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in values.tolist()]
