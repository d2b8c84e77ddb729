"""Target atoms: the features of an autoencoder, trained here, that tell the sides apart, and no others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_language_model

from weightsteer.activations.atoms import CONFIG, WEIGHTS, Atoms, SparseAutoencoder, atoms, target_atoms
from weightsteer.activations.capture import activations, example
from weightsteer.data.contrast import ContrastDataset, ContrastPair, encode_example, load_pairs
from weightsteer.errors import AdapterError
from weightsteer.methods import Fit
from weightsteer.methods import target_atoms as method
from weightsteer.models.language_model import LanguageModel, load_model
from weightsteer.recipe import load_recipe

PAIRS = ContrastDataset(
    "agreeing", tuple(ContrastPair(f"p{i}", f"Is tea {i} good?", f"Oh yes, {i}!", f"No {i}.") for i in range(6))
)
CFG = {
    "architecture": "standard", "d_in": 32, "d_sae": 48, "dtype": "float32", "apply_b_dec_to_input": True,
    "normalize_activations": "none", "activation_fn_str": "relu", "hook_name": "blocks.1.hook_resid_post",
}  # fmt: skip


def answer_tokens(lm: LanguageModel, prompt: Any, answer: str, block: int) -> torch.Tensor:
    """Outputs of a block at every token of an answer."""
    start, end = encode_example(lm, prompt, answer)
    positions = range(len(start), len(start) + len(end))
    [(_, found)] = activations(lm, [example(start, end, *positions)])
    return found[0, :, block]


def write_autoencoder(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({**CFG, **config}), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS)
    return folder


def trained_tensors(lm: LanguageModel, block: int = 1) -> dict[str, torch.Tensor]:
    """A sparse autoencoder of 48 features, trained on the answers' activations."""
    torch.manual_seed(0)
    sides = [row for side in ("positive", "negative") for row in PAIRS.side(side)]
    x = torch.cat([answer_tokens(lm, *row, block) for row in sides])
    decoder = torch.nn.functional.normalize(torch.randn(48, 32), dim=1)
    tensors = {"W_enc": decoder.T.clone(), "b_enc": torch.zeros(48), "W_dec": decoder, "b_dec": x.mean(0)}
    for tensor in tensors.values():
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(tensors.values(), lr=3e-3)
    losses = []
    for _ in range(300):
        z = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).relu()
        error = (z @ tensors["W_dec"] + tensors["b_dec"] - x).square().sum(-1).mean()
        losses.append(error.item())
        optimizer.zero_grad()
        (error + 0.05 * z.sum(-1).mean()).backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0], "it has learned something"
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, Path]:
    lm = tiny_language_model()
    return lm, write_autoencoder(tmp_path_factory.mktemp("sae") / "trained", trained_tensors(lm))


def test_the_vector_is_the_sum_of_the_features_that_tell_the_sides_apart(trained: tuple[LanguageModel, Path]):
    lm, folder = trained
    autoencoder = SparseAutoencoder.load(folder)
    assert (autoencoder.block, autoencoder.width, autoencoder.centered) == (1, 32, True)
    means = {
        side: torch.stack([autoencoder.encode(answer_tokens(lm, *row, 1)).mean(0) for row in PAIRS.side(side)])
        for side in ("positive", "negative")
    }
    a = means["positive"].mean(0) - means["negative"].mean(0)
    f = (means["positive"] > 0).sum(0) - (means["negative"] > 0).sum(0)
    found = atoms(lm, PAIRS, autoencoder, 1)
    assert torch.allclose(found.amplitude.float(), a, atol=1e-5)
    assert torch.equal(found.frequency, f.double())
    share, count = 0.25, 12
    scores = torch.where(f.sign() == a.sign(), f.float(), 0.0)
    kept = [i for i in range(48) if scores[i] != 0 and scores[i].abs() >= scores.abs().sort().values[-count]
            and a[i].abs() >= a.abs().sort().values[-count]]  # fmt: skip
    assert 0 < len(kept) < 48
    vector = target_atoms(lm, PAIRS, autoencoder, share=share)
    assert (vector.info["features"], list(vector.directions), vector.mode) == (kept, [1], "all")
    expected = sum(a[i] * autoencoder.decoder[i] for i in kept)
    assert torch.allclose(vector.directions[1], expected, atol=1e-4)
    assert vector.base == lm.ref.fingerprint


def test_decoding_what_is_encoded_gives_the_activations_back(trained: tuple[LanguageModel, Path]):
    lm, folder = trained
    autoencoder = SparseAutoencoder.load(folder)
    x = torch.cat([answer_tokens(lm, *row, 1) for row in PAIRS.side("positive")])
    z = autoencoder.encode(x)
    assert (z >= 0).all()
    assert (autoencoder.decode(z) - x).square().sum() < 0.1 * (x - x.mean(0)).square().sum()


def test_a_feature_must_agree_in_sign_and_be_large_in_both():
    amplitude = torch.tensor([5.0, -4.0, 3.0, 0.1, 2.0, 0.0], dtype=torch.float64)
    frequency = torch.tensor([4.0, -3.0, -6.0, 5.0, 0.0, 2.0], dtype=torch.float64)
    found = Atoms(amplitude, frequency)
    assert found.scores.tolist() == [4, -3, 0, 5, 0, 0]
    assert found.kept(0.5).tolist() == [True, True, False, False, False, False]
    assert found.kept(0.17).tolist() == [False] * 6, "the first by amplitude is not the first by frequency"
    assert found.kept(1.0).tolist() == [True, True, False, True, False, False]
    with pytest.raises(AdapterError, match=r"share is 0.0. Expected one above 0"):
        found.kept(0.0)


def test_jumprelu_passes_only_what_exceeds_its_threshold(tmp_path: Path):
    eye = torch.eye(32)
    tensors = {"W_enc": eye, "b_enc": torch.zeros(32), "W_dec": eye.clone(), "b_dec": torch.ones(32),
               "threshold": torch.full((32,), 2.0)}  # fmt: skip
    x = torch.tensor([-1.0, 1.0, 2.0, 3.0] * 8)
    options = {"d_sae": 32, "hook_name": "blocks.1.hook_resid_pre", "apply_b_dec_to_input": False}
    jump = SparseAutoencoder.load(write_autoencoder(tmp_path / "jump", tensors, architecture="jumprelu", **options))
    plain = SparseAutoencoder.load(write_autoencoder(tmp_path / "plain", tensors, **options))
    assert jump.encode(x).tolist() == [0.0, 0.0, 0.0, 3.0] * 8
    assert plain.encode(x).tolist() == [0.0, 1.0, 2.0, 3.0] * 8
    assert jump.decode(jump.encode(x)).tolist() == [1.0, 1.0, 1.0, 4.0] * 8
    assert jump.block == plain.block == 0, "before block 1 is after block 0"


def test_a_newer_file_names_its_hook_in_the_metadata(tmp_path: Path):
    shapes = {"W_enc": (32, 48), "b_enc": (48,), "W_dec": (48, 32), "b_dec": (32,)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    hook = {"hook_name": None, "metadata": {"hook_name": "blocks.0.hook_resid_post"}}
    new = write_autoencoder(tmp_path / "new", tensors, **hook)
    assert SparseAutoencoder.load(new).block == 0
    other = write_autoencoder(tmp_path / "other", tensors, hook_name="blocks.0.hook_mlp_out")
    assert SparseAutoencoder.load(other).block is None
    lm = tiny_language_model()
    with pytest.raises(AdapterError, match=r"of width 32, for the output of block None. Expected width 32 and a block"):
        target_atoms(lm, PAIRS, SparseAutoencoder.load(other))
    with pytest.raises(AdapterError, match=r"none of 48 features tells the sides of 6 pairs apart"):
        target_atoms(lm, PAIRS, SparseAutoencoder.load(new))


def test_the_method_fits_saves_and_finds_itself_again(
    write_recipe: Callable[..., Path], tmp_path: Path, trained: tuple[LanguageModel, Path]
):
    _, folder = trained
    methods = [{"name": "target-atoms", "autoencoder": str(folder), "share": 1}]
    recipe = load_recipe(write_recipe(methods=methods, merge_k=None))
    pairs, lm, settings = load_pairs(recipe), load_model(recipe.model), recipe.method("target-atoms")
    method.check(settings, recipe, pairs)
    vector = method.fit(settings, Fit(recipe, pairs, lm, tmp_path, 0))
    assert method.fit(settings, Fit(recipe, pairs, lm, tmp_path, 0)).digest == vector.digest
    direct = target_atoms(lm, pairs.part("train"), SparseAutoencoder.load(folder), share=1.0)
    assert direct.digest == vector.digest
    unknown = write_autoencoder(tmp_path / "unknown", trained_copy(folder), hook_name="blocks.1.hook_mlp_out")
    with pytest.raises(AdapterError, match=r"target-atoms: cfg.json of .*unknown names no residual stream"):
        method.check(settings.model_copy(update={"autoencoder": unknown}), recipe, pairs)
    method.check(settings.model_copy(update={"autoencoder": unknown, "block": 1}), recipe, pairs)


def trained_copy(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def test_another_autoencoder_is_refused_by_name(trained: tuple[LanguageModel, Path], tmp_path: Path):
    lm, folder = trained
    tensors = trained_copy(folder)
    narrow = {"W_enc": torch.ones(16, 48), "b_enc": tensors["b_enc"], "W_dec": torch.ones(48, 16),
              "b_dec": torch.ones(16)}  # fmt: skip
    autoencoder = SparseAutoencoder.load(write_autoencoder(tmp_path / "narrow", narrow, d_in=16))
    with pytest.raises(AdapterError, match=r"narrow: of width 16, for the output of block 1. Expected width 32"):
        target_atoms(lm, PAIRS, autoencoder)
    with pytest.raises(AdapterError, match=r"for the output of block 2. .* a block of llama, 0 to 1"):
        target_atoms(lm, PAIRS, SparseAutoencoder.load(folder), block=2)
    cases: list[tuple[dict[str, Any], dict[str, torch.Tensor], str]] = [
        ({"architecture": "gated"}, tensors, r"architecture 'gated'. Expected standard or jumprelu"),
        ({"normalize_activations": "layer_norm"}, tensors, r"normalize_activations 'layer_norm', which changes"),
        ({"activation_fn_str": "topk"}, tensors, r"activation_fn_str 'topk', which changes .* Expected 'relu'"),
        ({"architecture": "jumprelu"}, tensors, r"has no threshold; found \['W_dec', 'W_enc', 'b_dec', 'b_enc'\]"),
        ({}, {"W_dec": tensors["W_dec"]}, r"has no W_enc, b_enc, b_dec; found \['W_dec'\]"),
        ({}, {**tensors, "b_enc": torch.zeros(5)}, r"b_enc is \[5\]. Expected \['d_sae'\], \[48\]"),
        ({}, {**tensors, "b_dec": tensors["b_dec"] * float("nan")}, r"b_dec is not finite"),
        ({}, {**tensors, "W_enc": torch.zeros(5)}, r"W_enc is \[5\]. Expected \[d_in, d_sae\]"),
    ]
    for number, (config, stored, said) in enumerate(cases):
        with pytest.raises(AdapterError, match=said):
            SparseAutoencoder.load(write_autoencoder(tmp_path / str(number), stored, **config))
    with pytest.raises(AdapterError, match=r"nowhere: not a sparse autoencoder .* pickles are never read"):
        SparseAutoencoder.load(tmp_path / "nowhere")
    (tmp_path / "0" / CONFIG).write_text("[]", encoding="utf-8")
    with pytest.raises(AdapterError, match=r"not a sparse autoencoder \(cfg.json is a list\)"):
        SparseAutoencoder.load(tmp_path / "0")
