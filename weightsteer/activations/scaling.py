"""Steering by factors: what attention and MLP write is scaled, one trained number a site, block and token position."""

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.steering import residual_writers
from weightsteer.activations.tensor_file import read_tensors, write_tensors
from weightsteer.data.contrast import ContrastDataset, encode_example
from weightsteer.errors import AdapterError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import answer_columns, opening_tokens
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.side_by_side import attention_inputs
from weightsteer.stage import digest

FILE = "activation_scaling.safetensors"
SITE = "what attention and MLP add to the residual stream, [block, position], the last position also every answer token"
Site = Literal["attention", "mlp"]
# Norms between a writer and the residual stream, where an architecture has them: a factor before one would be undone.
POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)


@dataclass(frozen=True, eq=False)
class ActivationScaling:
    """Factors h ← (1 + k·α)·h at what attention and MLP of each block add to the residual stream.

    α is a number for each site, block, and each of the prompt's last tokens; that of the very last token also holds
    for every answer token. Source: arXiv 2410.04962; the form 1 + α is a reading of it.
    """

    alphas: Mapping[Site, Float[Tensor, "blocks positions"]]
    base: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 of the numbers."""
        return digest({site: alpha.tolist() for site, alpha in sorted(self.alphas.items())})

    def save(self, folder: str | Path) -> None:
        """Write one safetensors file whose header says what the numbers are."""
        write_tensors(Path(folder) / FILE, SITE, dict(self.alphas), self.base, self.info)

    @classmethod
    def load(cls, folder: str | Path) -> "ActivationScaling":
        """Read what `save` wrote."""
        return cls(*read_tensors(Path(folder) / FILE, SITE, "|".join(get_args(Site))))

    @contextlib.contextmanager
    def applied(self, lm: LanguageModel, k: float, any_base: bool = False) -> Iterator[LanguageModel]:
        """`lm` with its activations scaled inside the block; k = 0 adds no hook at all."""
        if not math.isfinite(k):
            raise AdapterError(f"k = {k}: not a finite number. Expected one such as -1.5")
        if self.base not in (None, lm.ref.fingerprint) and not any_base:
            raise AdapterError(
                f"activation scaling of base {self.base}, model {lm.ref.source} is {lm.ref.fingerprint}. Expected the "
                "base it was made on; pass any_base=True for a fine-tune of it"
            )
        blocks, opening = len(decoder_blocks(lm.network)), opening_tokens(lm)
        for site, alpha in self.alphas.items():
            if len(alpha) != blocks or not 0 < alpha.shape[1] <= opening:
                raise AdapterError(
                    f"activation scaling: {site} has {list(alpha.shape)} numbers. Expected [block, position] of "
                    f"{lm.ref.source}: {blocks} blocks, 1 to {opening} tokens that its template writes after the user"
                )
        with contextlib.ExitStack() as undo:
            if k:
                _hook(lm, self.alphas, _answer_places, k, undo)
            yield lm


@dataclass(frozen=True)
class ScalingTraining:
    """How the numbers are trained; arXiv 2410.04962 gives the terms of the loss, its weights are not published here."""

    sites: tuple[Site, ...] = get_args(Site)
    positions: int = 1
    """So many last tokens of the prompt have a number of their own; at most those that the template writes."""
    learning_rate: float = 1e-2
    epochs: int = 10
    batch_size: int = 6
    faithfulness: float = 1.0
    """Weight of the divergence over all other tokens."""
    minimality: float = 1e-3
    """Weight of Σ|α|."""
    seed: int = 0


def trained_scaling(
    lm: LanguageModel, pairs: ContrastDataset, settings: ScalingTraining, label: str = "training factors"
) -> ActivationScaling:
    """Numbers α under which k = 1 makes the positive answers' token likelier, and k = −1 the negative ones'.

    Read where the two answers of a pair part, y⁺ against y⁻. Effectiveness: −log σ(k·(z[y⁺] − z[y⁻])) for k = ±1;
    faithfulness: KL(p₀ ‖ p_k) over all tokens but these two; minimality: Σ|α|. Source: arXiv 2410.04962.
    """
    _check_training(lm, pairs, settings)
    rows = [_row(lm, pair.prompt, pair.positive, pair.negative) for pair in pairs.pairs]
    shape, order = (len(decoder_blocks(lm.network)), settings.positions), random.Random(settings.seed)
    with torch.inference_mode(False), torch.enable_grad():
        alphas = {site: torch.zeros(shape, requires_grad=True) for site in settings.sites}
        # Adam without decay: what shrinks the numbers is the last term of the loss.
        optimizer = torch.optim.Adam(list(alphas.values()), lr=settings.learning_rate)
        with progress.task(label, -(-len(rows) // settings.batch_size) * settings.epochs) as advance:
            for _ in range(settings.epochs):
                order.shuffle(rows)
                for start in range(0, len(rows), settings.batch_size):
                    loss = _loss(lm, alphas, rows[start : start + settings.batch_size], settings)
                    if not loss.isfinite():
                        raise AdapterError(
                            f"{label}: the loss is {loss.item()}. Expected a number. Lower the learning rate, "
                            f"{settings.learning_rate:g}, or load the model in float32"
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    advance(1, f"loss {loss.item():.3f}")
    info = {
        "behavior": pairs.behavior,
        "pairs_digest": pairs.digest,
        "method": "activation scaling",
        "training": asdict(settings),
    }
    return ActivationScaling({site: a.detach() for site, a in alphas.items()}, lm.ref.fingerprint, info)


@dataclass(frozen=True)
class _Row:
    """A prompt with what its two answers share, and the tokens at which they part."""

    ids: list[int]
    shared: int
    """How many of the last ids belong to both answers."""
    positive: int
    negative: int


def _row(lm: LanguageModel, prompt: Any, positive: str, negative: str) -> _Row:
    (start, ours), (other, theirs) = (encode_example(lm, prompt, answer) for answer in (positive, negative))
    whole = start + ours, other + theirs
    same = sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1], zip(*whole, strict=False)))
    # What a tokenizer merges with the end of the prompt belongs to the answer.
    return _Row(whole[0][:same], max(same - len(start), 0), whole[0][same], whole[1][same])


def _loss(
    lm: LanguageModel, alphas: Mapping[Site, Tensor], rows: Sequence[_Row], settings: ScalingTraining
) -> Float[Tensor, ""]:
    with torch.no_grad():
        unscaled = _logits(lm, rows)
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(len(rows)).to(lm.device)
    both = [*rows, *rows]
    width = max(len(row.ids) for row in both)
    places = torch.stack([_places(width, 1 + row.shared, settings.positions) for row in both])
    with contextlib.ExitStack() as undo:
        _hook(lm, alphas, lambda _width, _positions: places, signs[:, None, None], undo)
        scaled = _logits(lm, both)
    tokens = torch.tensor([[row.positive, row.negative] for row in both], device=lm.device)
    apart = scaled.gather(1, tokens) @ torch.tensor([1.0, -1.0], device=lm.device)
    effectiveness = -torch.nn.functional.logsigmoid(signs * apart).mean()
    # Both logits at the least there is leave a distribution over all other tokens.
    before, after = (
        z.scatter(1, tokens, torch.finfo(z.dtype).min).log_softmax(-1) for z in (unscaled.repeat(2, 1), scaled)
    )
    divergence = torch.nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")
    size = torch.stack([alpha.abs().sum() for alpha in alphas.values()]).sum().to(lm.device)
    return effectiveness + settings.faithfulness * divergence + settings.minimality * size


def _logits(lm: LanguageModel, rows: Sequence[_Row]) -> Float[Tensor, "rows vocabulary"]:
    """Logits after the last id of each row; rows end in one column."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), lm.tokenizer.pad_token_id)
    positions, part = torch.zeros_like(ids), torch.full_like(ids, -1)
    for number, row in enumerate(rows):
        start = width - len(row.ids)
        ids[number, start:] = torch.tensor(row.ids)
        positions[number, start:], part[number, start:] = torch.arange(len(row.ids)), 0
    inputs = attention_inputs(lm.network, part, positions)
    logits = lm.network(input_ids=ids.to(lm.device), logits_to_keep=1, use_cache=False, **inputs).logits
    return logits[:, -1].float()


def _hook(
    lm: LanguageModel,
    alphas: Mapping[Site, Float[Tensor, "blocks positions"]],
    places: Callable[[int, int], Int[Tensor, "#rows columns"]],
    k: Any,
    undo: contextlib.ExitStack,
) -> None:
    """Scale each site by 1 + k·α; `places` gives each column's position, counted from 1, and 0 where α is 0."""
    for number, block in enumerate(decoder_blocks(lm.network)):
        modules = scaled_modules(block, number)
        for site, alpha in alphas.items():
            hook = _scaler(alpha[number].to(lm.device), places, k)
            undo.callback(modules[site].register_forward_hook(hook).remove)


def _scaler(alpha: Float[Tensor, " positions"], places: Callable[[int, int], Tensor], k: Any) -> Callable[..., Any]:
    table = torch.cat([alpha.new_zeros(1), alpha])

    def scale(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        at = places(hidden.shape[1], len(alpha)).to(table.device)
        if not at.any():
            return output
        # Half precision would round a small α away.
        scaled = (hidden.float() * (1 + k * table[at][..., None])).to(hidden.dtype)
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    return scale


def scaled_modules(block: Any, number: int) -> dict[Site, Any]:
    """The modules whose output a block adds to the residual stream: its attention and MLP, or the norms after them."""
    writers = residual_writers(block, number)
    named = dict(block.named_children())
    norms = next(([named[name] for name in names] for names in POST_NORMS if set(names) <= named.keys()), None)
    return dict(zip(get_args(Site), norms or writers, strict=True))


def _answer_places(width: int, positions: int) -> Int[Tensor, "1 columns"]:
    """The places of the running forward pass, as `answer_columns` tells them."""
    return _places(width, answer_columns() or 0, positions)[None]


def _places(width: int, answer: int, positions: int) -> Int[Tensor, " columns"]:
    """`answer` trailing columns at the last position, those before them at the ones before, further ones at none."""
    if answer == 0:
        return torch.zeros(width, dtype=torch.long)
    before_end = torch.arange(width - 1, -1, -1)
    return (positions - (before_end - answer + 1).clamp(min=0)).clamp(min=0)


def _check_training(lm: LanguageModel, pairs: ContrastDataset, settings: ScalingTraining) -> None:
    opening, known = opening_tokens(lm), get_args(Site)
    if not settings.sites or not set(settings.sites) <= set(known) or not 0 < settings.positions <= opening:
        raise AdapterError(
            f"activation scaling: sites {list(settings.sites)}, {settings.positions} positions. Expected some of "
            f"{', '.join(known)}, and 1 to {opening}, the tokens that the chat template of {lm.ref.source} writes "
            "after the user's turn: only these stand alike before every answer"
        )
    if not pairs.pairs:
        raise AdapterError("activation scaling: no pairs to train on. Expected at least one")
