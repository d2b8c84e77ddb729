"""Target atoms: an activation vector built from those features of a sparse autoencoder that tell two sides apart."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.vector import ActivationVector
from weightsteer.data.contrast import ContrastDataset, encode_example
from weightsteer.errors import AdapterError, DataError, report_problems
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import batch_tokens, batches
from weightsteer.models.language_model import LanguageModel

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
Architecture = Literal["standard", "jumprelu"]
# Keys of cfg.json that change what is computed, and the values under which it is what is computed here.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "normalize_activations": (None, "none"),
    "reshape_activations": (None, "none"),
    "activation_fn_str": (None, "relu"),
    "activation_fn": (None, "relu"),
    "finetuning_scaling_factor": (None, False),
}
AXES = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
    "threshold": ("d_sae",),
}
# The residual stream before block b is the output of block b − 1.
HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """z = relu(x·W_enc + b_enc), 0 where that does not exceed the threshold; x ≈ z·W_dec + b_dec; float32."""

    encoder: Float[Tensor, "d_model d_sae"]
    encoder_bias: Float[Tensor, " d_sae"]
    decoder: Float[Tensor, "d_sae d_model"]
    decoder_bias: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " d_sae"] | None = None
    """Of a JumpReLU; None is a plain ReLU."""
    centered: bool = False
    """Whether x stands for x − b_dec in the encoder."""
    block: int | None = None
    """The block, 0-based, whose output it was trained on, where the file says so."""
    source: str = ""

    @classmethod
    def load(cls, folder: str | Path) -> "SparseAutoencoder":
        """A folder in the layout of SAELens: cfg.json and sae_weights.safetensors.

        One AdapterError names everything that is missing or of another kind than `standard` and `jumprelu`, and
        whatever else would change what is computed. Pickles are never read.
        """
        folder = Path(folder)
        config, tensors = _read(folder)
        axes = AXES if config.get("architecture") == "jumprelu" else {n: a for n, a in AXES.items() if n != "threshold"}
        report_problems(AdapterError, folder, _config_problems(config) + _tensor_problems(axes, tensors))
        metadata = config.get("metadata") or {}
        hook = HOOK.fullmatch(str(config.get("hook_name") or metadata.get("hook_name")))
        wide = {name: tensors[name].float() for name in axes}
        return cls(
            wide["W_enc"],
            wide["b_enc"],
            wide["W_dec"],
            wide["b_dec"],
            wide.get("threshold"),
            centered=bool(config.get("apply_b_dec_to_input", False)),
            block=None if hook is None else int(hook[1]) - (hook[2] == "pre"),
            source=str(folder),
        )

    @property
    def width(self) -> int:
        """Width of the residual stream that it reads."""
        return len(self.encoder)

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_sae"]:
        """Features of activations, none below 0."""
        x = x.float() - self.decoder_bias if self.centered else x.float()
        z = x @ self.encoder + self.encoder_bias
        return z.relu() if self.threshold is None else z.relu() * (z > self.threshold)

    def decode(self, z: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_model"]:
        """What the features stand for."""
        return z @ self.decoder + self.decoder_bias

    def to(self, device: torch.device) -> "SparseAutoencoder":
        """The same on a device."""
        moved = (t.to(device) for t in (self.encoder, self.encoder_bias, self.decoder, self.decoder_bias))
        threshold = None if self.threshold is None else self.threshold.to(device)
        return SparseAutoencoder(*moved, threshold, self.centered, self.block, self.source)


@dataclass(frozen=True, eq=False)
class Atoms:
    """How much each feature tells the sides apart."""

    amplitude: Float[Tensor, " d_sae"]
    """Mean feature over positive answers minus that over negative ones."""
    frequency: Float[Tensor, " d_sae"]
    """Positive answers in which it is active minus negative ones."""

    @property
    def scores(self) -> Float[Tensor, " d_sae"]:
        """The frequency where it has the amplitude's sign, else 0.

        The paper's code normalises these and the amplitudes to magnitudes from 0 to 1, which leaves their order alone.
        """
        return torch.where(self.frequency.sign() == self.amplitude.sign(), self.frequency, 0.0)

    def kept(self, share: float) -> Bool[Tensor, " d_sae"]:
        """Features in the top `share` both by score and by amplitude, and zero in neither."""
        if not 0 < share <= 1:
            raise AdapterError(f"target atoms: share is {share}. Expected one above 0 and at most 1")
        return _top(self.scores, share) & _top(self.amplitude, share)


def target_atoms(
    lm: LanguageModel,
    pairs: ContrastDataset,
    autoencoder: SparseAutoencoder,
    block: int | None = None,
    share: float = 0.35,
    label: str = "target atoms",
) -> ActivationVector:
    """v = Σ a_i·W_dec[i] over the kept features, added at the block's output to every token.

    `block` None takes the one that the autoencoder was trained on. `info` names the features kept. Source: arXiv
    2505.20322 and its code, without its reconstruction term; `share` is its safety setting. An AdapterError where the
    autoencoder does not fit the model, or no feature is kept.
    """
    block = autoencoder.block if block is None else block
    check_fits(lm, autoencoder, block)
    assert block is not None
    found = atoms(lm, pairs, autoencoder, block, label)
    kept = found.kept(share)
    if not kept.any():
        raise AdapterError(
            f"{label}: none of {len(kept)} features tells the sides of {len(pairs)} pairs apart in amplitude and in "
            f"frequency at share {share:g}. Expected one at least. Raise share, or use another autoencoder or block"
        )
    direction = found.amplitude[kept] @ autoencoder.decoder.double()[kept]
    info = {
        "behavior": pairs.behavior,
        "pairs_digest": pairs.digest,
        "method": "target atoms",
        "autoencoder": Path(autoencoder.source).name,
        "share": share,
        "features": kept.nonzero().flatten().tolist(),
    }
    return ActivationVector({block: direction.float()}, lm.ref.fingerprint, "all", info)


@torch.inference_mode()
def atoms(
    lm: LanguageModel, pairs: ContrastDataset, autoencoder: SparseAutoencoder, block: int, label: str = "target atoms"
) -> Atoms:
    """Features of the answers' tokens, averaged over each answer, compared between the sides; float64."""
    moved = autoencoder.to(lm.device)
    means, active = {}, {}
    for side in ("positive", "negative"):
        total = torch.zeros(len(autoencoder.decoder), dtype=torch.float64)
        counts = torch.zeros_like(total)
        examples = [encode_example(lm, prompt, answer) for prompt, answer in pairs.side(side)]
        if not examples:
            raise DataError(f"{label}: no pairs. Expected at least one")
        with progress.task(f"{label}: {side}", len(examples)) as advance:
            for batch in batches([len(prompt) + len(answer) for prompt, answer in examples], batch_tokens(lm)):
                for features in _answer_features(lm, [examples[i] for i in batch], moved, block):
                    mean = features.double().mean(0).cpu()
                    total += mean
                    counts += mean > 0
                advance(len(batch))
        means[side], active[side] = total / len(examples), counts
    found = Atoms(means["positive"] - means["negative"], active["positive"] - active["negative"])
    if not found.amplitude.isfinite().all():
        raise AdapterError(
            f"{label}: features of {autoencoder.source} are not finite. Expected numbers. Load the model in float32"
        )
    return found


def check_fits(lm: LanguageModel, autoencoder: SparseAutoencoder, block: int | None) -> None:
    """Raise an AdapterError where the autoencoder does not read that block of the model."""
    blocks, width = len(decoder_blocks(lm.network)), lm.network.config.get_text_config().hidden_size
    if autoencoder.width != width or block is None or not 0 <= block < blocks:
        raise AdapterError(
            f"sparse autoencoder {autoencoder.source}: of width {autoencoder.width}, for the output of block {block}. "
            f"Expected width {width} and a block of {lm.ref.source}, 0 to {blocks - 1}. Name one that was trained on "
            "this model, and its block"
        )


def _answer_features(
    lm: LanguageModel, rows: Sequence[tuple[list[int], list[int]]], autoencoder: SparseAutoencoder, block: int
) -> Iterator[Float[Tensor, "answer d_sae"]]:
    """Features of every answer token, row by row: those of a whole batch would be its largest tensor by far."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    # Padding stands on the right, where causal attention does not see it.
    ids = torch.full((len(rows), width), lm.tokenizer.pad_token_id)
    attention = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end], attention[row, :end] = torch.tensor(prompt + answer), 1
    found: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hook = decoder_blocks(lm.network)[block].register_forward_hook(keep)
    try:
        lm.network.get_decoder()(input_ids=ids.to(lm.device), attention_mask=attention.to(lm.device), use_cache=False)
    finally:
        hook.remove()
    for hidden, (prompt, answer) in zip(found[0], rows, strict=True):
        yield autoencoder.encode(hidden[len(prompt) : len(prompt) + len(answer)])


def _top(values: Float[Tensor, " d_sae"], share: float) -> Bool[Tensor, " d_sae"]:
    """The `share` of largest magnitude, one at least; equals of the last one too, zeros never."""
    sizes = values.abs()
    last = sizes.topk(max(1, round(share * len(sizes)))).values[-1]
    return (sizes >= last) & (sizes > 0)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} is a {type(config).__name__}")
        return config, load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(
            f"{folder}: not a sparse autoencoder ({error}). Expected {CONFIG} and {WEIGHTS}, as SAELens writes them; "
            "pickles are never read. Convert it with SAELens"
        ) from None


def _config_problems(config: Mapping[str, Any]) -> list[str]:
    architecture, problems = config.get("architecture", "standard"), []
    if architecture not in get_args(Architecture):
        expected = " or ".join(get_args(Architecture))
        problems.append(f"{CONFIG}: architecture {architecture!r}. Expected {expected}. Use another autoencoder")
    return problems + [
        f"{CONFIG}: {key} {config[key]!r}, which changes what is computed. Expected {plain[-1]!r}. Fold it into the "
        "weights with SAELens"
        for key, plain in PLAIN.items()
        if config.get(key) not in plain
    ]


def _tensor_problems(axes: Mapping[str, tuple[str, ...]], tensors: Mapping[str, Tensor]) -> list[str]:
    """What is missing, of another shape than the encoder's axes say, or not finite."""
    if missing := [name for name in axes if name not in tensors]:
        return [f"{WEIGHTS}: has no {', '.join(missing)}; found {sorted(tensors)}. Expected all of {list(axes)}"]
    if tensors["W_enc"].ndim != 2:
        return [f"{WEIGHTS}: W_enc is {list(tensors['W_enc'].shape)}. Expected [d_in, d_sae]"]
    sizes = dict(zip(axes["W_enc"], tensors["W_enc"].shape, strict=True))
    problems = []
    for name, named in axes.items():
        expected, found = [sizes[axis] for axis in named], tensors[name]
        if list(found.shape) != expected:
            problems.append(f"{WEIGHTS}: {name} is {list(found.shape)}. Expected {list(named)}, {expected}")
        if not found.isfinite().all():
            problems.append(f"{WEIGHTS}: {name} is not finite. Expected numbers")
    return problems
