"""Projections equal a direct computation; the page holds them, its text and nothing from elsewhere."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model

from weightsteer.activations.projection import TextProjection, project, write_page
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, DataError
from weightsteer.models.blocks import decoder_blocks

TEXT = "Straße: <b>50 €</b>\nthen </script> & more ☕."


def vector_of(blocks: tuple[int, ...] = (0, 1), **fields: Any) -> ActivationVector:
    rng = torch.Generator().manual_seed(0)
    return ActivationVector({b: 3 * torch.randn(32, generator=rng) for b in blocks}, **fields)


def hidden_states(lm: Any, text: str) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: seen.append(out[0])) for b in decoder_blocks(lm.network)]
    with torch.inference_mode():
        lm.network(torch.tensor([lm.tokens(text)]))
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_projections_equal_a_direct_computation(family: str):
    lm, vector = tiny_language_model(family), vector_of((1, 0), base=f"fp-{family}")
    found = project(lm, TEXT, vector, title="t")
    assert (found.title, found.blocks) == ("t", (0, 1))
    hidden = hidden_states(lm, TEXT)
    for row, block in enumerate(found.blocks):
        direction = vector.directions[block]
        assert torch.allclose(found.dot[row], hidden[block] @ direction / direction.norm(), atol=1e-4)
        expected = torch.cosine_similarity(hidden[block], direction[None], dim=-1)
        assert torch.allclose(found.cosine[row], expected, atol=1e-5)


def test_an_origin_is_subtracted_first():
    lm, vector = tiny_language_model(), vector_of((1,))
    hidden = hidden_states(lm, TEXT)
    origin = hidden.mean(1)
    found = project(lm, TEXT, vector, origin=origin)
    moved = hidden[1] - origin[1]
    assert torch.allclose(found.dot[0], moved @ vector.directions[1] / vector.directions[1].norm(), atol=1e-4)
    assert torch.allclose(found.cosine[0], torch.cosine_similarity(moved, vector.directions[1][None]), atol=1e-4)
    assert found.dot[0].mean().abs() < 1e-4


def test_the_pieces_are_the_text():
    """One token a byte: characters of several bytes stand in the first of theirs, and none is broken."""
    lm = tiny_language_model()
    found = project(lm, TEXT, vector_of((0,)))
    assert "".join(found.tokens) == TEXT
    assert len(found.tokens) == found.dot.shape[1] == len(TEXT.encode())
    assert "€" in found.tokens
    assert "☕" in found.tokens


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_is_whole_and_holds_every_value(tmp_path: Path):
    lm = tiny_language_model()
    texts = [project(lm, text, vector_of(), title=f"<{text[:3]}>") for text in (TEXT, "Short.")]
    write_page(tmp_path / "page.html", texts, "Where <it> is", note="a & b")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = data_of(page)
    assert data["blocks"] == [0, 1]
    for text, shown in zip(texts, data["texts"], strict=True):
        assert (shown["title"], tuple(shown["tokens"])) == (text.title, text.tokens)
        for measure in ("dot", "cosine"):
            assert torch.allclose(torch.tensor(shown[measure]), getattr(text, measure), rtol=1e-4)
    both = torch.cat([text.dot for text in texts], 1).abs()
    assert data["scales"]["dot"] == pytest.approx(both.quantile(0.98, dim=1).tolist())
    assert "<title>Where &lt;it&gt; is</title>" in page
    assert "a &amp; b" in page
    assert page.count("</script>") == 2, "no text of a user ends the script"
    assert not re.search(r"https?://|src=|@import|url\(", page), "nothing is loaded from elsewhere"
    assert "prefers-color-scheme: dark" in page


def test_texts_that_cannot_stand_on_one_page(tmp_path: Path):
    lm = tiny_language_model()
    apart = [project(lm, "a", vector_of((b,))) for b in (0, 1)]
    with pytest.raises(DataError, match=r"page 'x': 2 texts with blocks \[\(0,\), \(1,\)\]. Expected at least one"):
        write_page(tmp_path / "page.html", apart, "x")
    with pytest.raises(DataError, match=r"page 'x': 0 texts"):
        write_page(tmp_path / "page.html", [], "x")
    broken = TextProjection("", ("a",), (0,), torch.tensor([[float("nan")]]), torch.zeros(1, 1))
    with pytest.raises(DataError, match="projections: not all finite"):
        write_page(tmp_path / "page.html", [broken], "x")


def test_vectors_that_do_not_fit():
    lm = tiny_language_model()
    with pytest.raises(
        AdapterError, match=r"activation vector of base other, model llama is fp-llama. Expected the base"
    ):
        project(lm, "a", vector_of(base="other"))
    with pytest.raises(
        AdapterError, match=r"block 4 of width 32 does not exist in llama, which has 2 blocks of width 32"
    ):
        project(lm, "a", vector_of((0, 4)))
    with pytest.raises(DataError, match=r"text 't': holds no token. Expected a text to project"):
        project(lm, "", vector_of(), title="t")
