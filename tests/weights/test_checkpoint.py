"""Reading a model folder: what it holds, and every way in which it can be broken."""

import json
import os
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_checkpoints import equal_bytes, llama_tensors, read, write_checkpoint

from weightsteer.errors import CheckpointError
from weightsteer.models.fingerprint import fingerprint
from weightsteer.models.safetensors_file import encode_header, read_header
from weightsteer.weights.checkpoint import Checkpoint


def write_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def u8(start: int, stop: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_read_as_it_was_saved(tmp_path, shards):
    dtypes = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    floats = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    tensors = {str(d): torch.randint(0, 2, (3, 5)).to(d) for d in [*dtypes, *floats]}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "cube": torch.randn(2, 3, 4)}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, tensors, shards))
    assert set(checkpoint.names) == set(tensors)
    for name, tensor in tensors.items():
        assert equal_bytes(checkpoint.tensor(name), tensor)
        info = checkpoint.info(name)
        assert (info.shape, info.size_bytes) == (tuple(tensor.shape), tensor.nbytes)
    with pytest.raises(CheckpointError, match="holds no tensor nonsense"):
        checkpoint.tensor("nonsense")


def test_header_written_by_us_is_read_by_the_library(tmp_path):
    header = encode_header([("a", "BF16", (2, 3)), ("é", "I64", ())], {"format": "pt"})
    (tmp_path / "x.safetensors").write_bytes(header + bytes(20))
    assert len(header) % 8 == 0
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert {n: file.get_tensor(n).dtype for n in ("a", "é")} == {"a": torch.bfloat16, "é": torch.int64}
        assert file.metadata() == {"format": "pt"}


def test_fingerprint_is_that_of_the_weights_not_of_the_files(tmp_path):
    tensors = llama_tensors()
    one = fingerprint(write_checkpoint(tmp_path / "one", tensors))
    assert one == fingerprint(write_checkpoint(tmp_path / "many", dict(reversed(tensors.items())), 3))
    assert one == Checkpoint.open(tmp_path / "many").fingerprint()
    for changed in (
        {**tensors, "model.norm.weight": tensors["model.norm.weight"] + 1},
        {n: t.half() for n, t in tensors.items()},
        {n.replace("norm", "Norm"): t for n, t in tensors.items()},
        {n: t.reshape(-1, 2) for n, t in tensors.items()},
    ):
        assert fingerprint(write_checkpoint(tmp_path / "other", changed)) != one


BROKEN_HEADERS = {
    "its header starts with b'[]'": [b"[]"],
    "its header is not valid JSON": [b"{", b"{'a': 1}", b'{"a":' * 100_000, b'\xff{"a": 1}'[1:] + b"\xff"],
    "the key 'a' stands there twice": [b'{"a": 1, "a": 2}'],
    "the number NaN, which JSON does not have": [b'{"a": NaN}'],
    "surrogates not allowed": [b'{"\\ud800": 1}'],
    "__metadata__: {'a': 1}; expected text keys with text values": [{"__metadata__": {"a": 1}}],
    "'a': 1; expected dtype, shape and data_offsets": [{"a": 1}],
    "'a': dtype is 'F5'; expected one of BOOL": [{"a": {"dtype": "F5", "shape": [], "data_offsets": [0, 0]}}],
    "'a': shape is [-1]; expected counts": [{"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 0]}}],
    "'a': shape is [True]; expected counts": [{"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}],
    "expected counts whose product fits 63 bits": [
        {"a": {"dtype": "U8", "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}},
    ],
    "'a': data_offsets are [0]; expected begin and end": [{"a": {"dtype": "U8", "shape": [], "data_offsets": [0]}}],
    "'a': U8 [5] in bytes [0, 4]; expected 40 bits": [{"a": {"dtype": "U8", "shape": [5], "data_offsets": [0, 4]}}],
    "'b': starts at byte": [{"a": u8(0, 4), "b": u8(3, 8)}, {"a": u8(0, 3), "b": u8(4, 8)}],
    "it overlaps the tensor before it": [{"a": u8(0, 4), "b": u8(3, 8)}],
    "it leaves a hole before it": [{"a": u8(0, 3), "b": u8(4, 8)}],
    "the data ends at byte": [{"a": u8(0, 7)}, {"a": u8(0, 9)}],
}


@pytest.mark.parametrize(("message", "headers"), BROKEN_HEADERS.items())
def test_a_broken_header_is_named(tmp_path, message, headers):
    for header in headers:
        path = write_file(tmp_path / "model.safetensors", header, bytes(8))
        with pytest.raises(CheckpointError) as error:
            read_header(path)
        assert message in str(error.value)
        assert str(path) in str(error.value)


def test_lengths_that_lie_are_named(tmp_path):
    for length in (3, 2**40, 2**63):
        path = write_file(tmp_path / "model.safetensors", b"{}", length=length)
        with pytest.raises(CheckpointError, match=rf"10 bytes with a header of {length} bytes announced"):
            read_header(path)
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="4 bytes with a header of"):
        read_header(tmp_path / "short")


def test_all_problems_are_reported_together_but_not_without_end(tmp_path):
    path = write_file(tmp_path / "model.safetensors", {f"t{i}": 1 for i in range(1000)})
    with pytest.raises(CheckpointError, match=r"21 problems[^$]*'t0': 1[^$]*'t19': 1[^$]*and 980 more") as error:
        read_header(path)
    assert len(str(error.value)) < 3000


def mutations(text: bytes, count: int, seed: int):
    """`text` with a few bytes or pieces changed, `count` times."""
    generator = random.Random(seed)
    pieces = [b"-1", b"0", b"1e9", b"1.0", b"true", b"null", b"[]", b"{}", b'""', b"NaN", b'"', b"\\ud800", b"\xff"]
    pieces += [b"99999999999999999999999", b"F32", b"BF16", b"../", b"/", b"\x00", b",", b":", b"9" * 5000]
    for _ in range(count):
        mutated = bytearray(text)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(mutated))
            kind = generator.randrange(4)
            if kind == 0:
                mutated[at] = generator.randrange(256)
            elif kind == 1:
                del mutated[at : at + generator.randint(1, 20)]
            elif kind == 2:
                mutated[at:at] = generator.choice(pieces)
            else:
                piece = generator.choice(pieces)
                mutated[at : at + len(piece)] = piece
            mutated = mutated or bytearray(b"{")
        yield bytes(mutated)


def test_a_mutated_file_is_read_as_the_library_reads_it_or_refused(tmp_path):
    """1,200 files whose length, header or data was changed: never a traceback, never another content."""
    tensors = {"a": torch.arange(6).reshape(2, 3).float(), "b": torch.arange(4).bfloat16(), "c": torch.tensor(7)}
    save_file(tensors, tmp_path / "good", {"format": "pt"})
    good = (tmp_path / "good").read_bytes()
    header = good[8 : 8 + struct.unpack("<Q", good[:8])[0]]
    data = good[8 + len(header) :]
    (tmp_path / "config.json").write_text("{}")
    accepted = refused = 0
    for number, mutated in enumerate(mutations(header, 900, seed=0)):
        length = len(mutated) if number % 10 else len(mutated) + number % 7 - 3
        write_file(tmp_path / "model.safetensors", mutated, data, max(length, 0))
        accepted, refused = count(tmp_path, accepted, refused)
    for mutated in mutations(good, 300, seed=1):
        (tmp_path / "model.safetensors").write_bytes(mutated)
        accepted, refused = count(tmp_path, accepted, refused)
    assert accepted > 20
    assert refused > 900


def count(folder: Path, accepted: int, refused: int) -> tuple[int, int]:
    try:
        checkpoint = Checkpoint.open(folder)
        found = {name: checkpoint.tensor(name) for name in checkpoint.names}
    except CheckpointError:
        return accepted, refused + 1
    expected = read(folder)  # what we accept, the library has to accept
    assert found.keys() == expected.keys()
    assert all(equal_bytes(found[name], expected[name]) for name in found)
    return accepted + 1, refused


def test_a_mutated_index_is_read_right_or_refused(tmp_path):
    """800 index files: whatever they say, no file outside the folder is opened and no tensor is misread."""
    tensors = {f"t{i}": torch.full((2,), float(i)) for i in range(6)}
    write_checkpoint(tmp_path / "model", tensors, shards=3)
    index = tmp_path / "model" / "model.safetensors.index.json"
    accepted = 0
    for mutated in mutations(index.read_bytes(), 800, seed=2):
        index.write_bytes(mutated)
        try:
            checkpoint = Checkpoint.open(tmp_path / "model")
        except CheckpointError:
            continue
        accepted += 1
        assert all(torch.equal(checkpoint.tensor(name), tensors[name]) for name in tensors)
    assert accepted > 5


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "a/../b.safetensors", "..", "x\\y.safetensors", "shard.bin"]
)
def test_an_index_cannot_name_files_elsewhere(tmp_path, name):
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"expected the name of a .safetensors file in this folder") as error:
        Checkpoint.open(folder)
    assert repr(name) in str(error.value)


def test_links_that_lead_outside_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    folder = write_checkpoint(tmp_path / "model", {"a": torch.zeros(1)})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../outside.safetensors")
    with pytest.raises(CheckpointError, match=r"links to .*outside.safetensors, outside the folder"):
        Checkpoint.open(folder)
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.zeros(1)}, folder / "real.safetensors")
    (folder / "model.safetensors").symlink_to("real.safetensors")
    assert Checkpoint.open(folder).names == ("a",)


def test_links_of_a_hub_cache_work(tmp_path):
    cache = tmp_path / "models--a--b"
    real = write_checkpoint(cache / "blobs", llama_tensors(), side_files=False)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert fingerprint(snapshot) == fingerprint(real)


def test_a_pipe_in_place_of_a_shard_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        Checkpoint.open(tmp_path)


def test_index_and_shards_have_to_agree(tmp_path):
    folder = write_checkpoint(tmp_path / "model", {f"t{i}": torch.zeros(2) for i in range(4)}, shards=2)
    index = folder / "model.safetensors.index.json"
    first, second = sorted(path.name for path in folder.glob("*.safetensors"))
    content = json.loads(index.read_text())
    content["weight_map"]["t0"] = second
    content["weight_map"]["new"] = first
    index.write_text(json.dumps(content))
    with pytest.raises(
        CheckpointError, match=rf"new: not in {first}, where the index has it[^$]*t0: in {first}, where"
    ):
        Checkpoint.open(folder)
    (folder / second).unlink()
    with pytest.raises(CheckpointError, match=f"{second}: missing; expected every shard"):
        Checkpoint.open(folder)
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    (folder / second).write_bytes((folder / first).read_bytes())
    with pytest.raises(CheckpointError, match=r"model.safetensors lies beside the index"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", r"but pytorch_model.bin\).*Pickles can run code, so they are never loaded"),
        ("model-q4.gguf", r"but model-q4.gguf\).*A GGUF file has to be dequantised first"),
        ("adapter_model.safetensors", r"but adapter_model.safetensors\).*This is an adapter"),
        ("notes.txt", r"but no weights\)"),
    ],
)
def test_folders_without_safetensors_say_what_to_do(tmp_path, file, message):
    (tmp_path / file).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


def test_paths_that_are_no_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(tmp_path / "missing")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"x.gguf: a file.*dequantised first"):
        Checkpoint.open(tmp_path / "x.gguf")


def test_a_broken_config_is_named(tmp_path):
    folder = write_checkpoint(tmp_path, {"a": torch.zeros(1)})
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config.json: not valid \(a list, not an object\)"):
        Checkpoint.open(folder)


def test_unreadable_dtypes_are_seen_but_not_read(tmp_path):
    header = {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    write_file(tmp_path / "model.safetensors", header, bytes(2))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.info("a").dtype == "F4"
    with pytest.raises(CheckpointError, match=r"a has dtype F4. Expected one of BOOL"):
        checkpoint.tensor("a")
