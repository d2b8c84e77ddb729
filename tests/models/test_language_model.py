"""Loading a model: what is refused, and how conversations are written."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, tiny_language_model

from weightsteer.errors import CheckpointError, ModelError
from weightsteer.models.language_model import compute_dtype, load_model
from weightsteer.recipe import ModelPart

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def configure(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **keys}), encoding="utf-8")


def test_a_loaded_model_is_ready_to_be_asked(model_folder: Path):
    lm = load_model(ModelPart(source=str(model_folder), dtype="float32", system="Be kind."))
    assert lm.network.dtype == torch.float32
    assert not lm.network.training
    assert not any(p.requires_grad for p in lm.network.parameters())
    assert (lm.tokenizer.padding_side, lm.system, lm.ref.source) == ("left", "Be kind.", str(model_folder))
    assert lm.ref.path == model_folder.resolve()
    assert load_model(str(model_folder)).network.dtype == compute_dtype("auto")


def test_dtypes_by_name():
    assert compute_dtype("bfloat16") is torch.bfloat16
    assert compute_dtype("auto") in (torch.bfloat16, torch.float16, torch.float32)


def test_loading_is_quiet(model_folder: Path, capfd: pytest.CaptureFixture[str]):
    load_model(model_folder)
    assert capfd.readouterr() == ("", "")


Damage = Callable[[Path], Any]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "more layers than weights": (
        lambda f: configure(f, num_hidden_layers=3),
        "weights and configuration do not fit\n  model.layers.2.input_layernorm.weight: no such tensor in the files\n",
    ),
    "another width": (
        lambda f: configure(f, intermediate_size=48),
        "weights and configuration do not fit\n  model.layers.0.mlp.down_proj.weight: has shape [32, 64] in the files, "
        "[32, 48] by config.json\n",
    ),
    "an architecture of other weights": (
        lambda f: configure(f, model_type="gpt2"),
        "weights and configuration do not fit\n  transformer.h.0.attn.c_attn.bias: no such tensor in the files\n",
    ),
    "an unknown architecture": (
        lambda f: configure(f, model_type="foo"),
        "cannot be loaded (The checkpoint you are trying to load has model type `foo` but Transformers does not",
    ),
    "code of its own": (
        lambda f: configure(f, model_type="foo", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}),
        "its architecture is code inside the model folder (auto_map in config.json), which is never run. Expected an "
        "architecture that transformers has. Choose another model, or a transformers version that includes this one",
    ),
    "an encoder-decoder": (
        lambda f: configure(f, model_type="t5"),
        "cannot be loaded (Unrecognized configuration class",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "cannot be loaded ("),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded ("),
    "a config of another kind": (lambda f: configure(f, hidden_size="wide"), "cannot be loaded ("),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "cannot be loaded (",
    ),
    "a tokenizer that is none": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded ("),
    "no chat template": (
        lambda f: (f / "chat_template.jinja").unlink(),
        "has no chat template. Expected an instruction-tuned model, whose tokenizer says how a conversation is "
        "written. Choose one, or name a Jinja file as model.chat_template",
    ),
    "a broken chat template": (
        lambda f: (f / "chat_template.jinja").write_text("{% for"),
        "its chat template cannot write a question (unexpected 'end of template'). Expected a Jinja template over",
    ),
    "an adapter beside it": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "an adapter (adapter_config.json) lies beside the weights, and transformers would put it on unasked. Expected",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_model_that_cannot_be_used_as_it_is(folder: Path, name: str):
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert str(caught.value).startswith(f"model {folder}: {message}")


def test_all_parameters_without_weights_are_counted(folder: Path):
    configure(folder, num_hidden_layers=3)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "... and 4 more\nExpected a tensor for every parameter. Fetch the folder again" in str(caught.value)


def test_a_truncated_shard(folder: Path):
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=f"{shard.name}: 1 problem\n  the data ends at byte"):
        load_model(folder)


def test_a_missing_shard(folder: Path):
    shard = max(folder.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(
        CheckpointError, match=f"{shard.name}: missing; expected every shard of the index. Fetch it again"
    ):
        load_model(folder)


class Bomb:
    """What a pickle can do: run anything when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_loaded(folder: Path, tmp_path: Path, name: str):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert f"holds no model.safetensors and no model.safetensors.index.json (but {name})" in str(caught.value)
    assert "Pickles can run code, so they are never loaded" in str(caught.value)
    assert not (tmp_path / "went off").exists()


def test_a_pickle_beside_the_weights_is_left_alone(folder: Path, tmp_path: Path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    load_model(folder)
    assert not (tmp_path / "went off").exists()


def test_a_chat_template_of_the_users_own(folder: Path, tmp_path: Path):
    (folder / "chat_template.jinja").unlink()
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}!", encoding="utf-8")
    assert load_model(ModelPart(source=str(folder), chat_template=tmp_path / "own.jinja")).chat("Hi") == "Hi!"
    with pytest.raises(
        ModelError, match=r"model.chat_template .*nope.jinja: No such file or directory. Expected a Jinja"
    ):
        load_model(ModelPart(source=str(folder), chat_template=tmp_path / "nope.jinja"))


def test_a_tokenizer_without_padding_pads_with_something(folder: Path):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for missing in (["pad_token"], ["pad_token", "eos_token"]):
        path.write_text(json.dumps({k: v for k, v in settings.items() if k not in missing}), encoding="utf-8")
        assert load_model(folder).tokenizer.pad_token_id is not None


def test_a_question_is_written_by_the_template():
    lm = tiny_language_model()
    assert lm.chat("Hi") == "<|user|>Hi<|end|><|assistant|>"
    assert lm.chat([{"role": "user", "content": "Hi"}]) == lm.chat("Hi")
    assert lm.tokenizer.decode(lm.tokens(lm.chat("Hi"))) == lm.chat("Hi")


def test_a_system_prompt_comes_first_unless_the_conversation_has_one():
    lm = tiny_language_model().with_system("Be kind.")
    assert lm.chat("Hi") == "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"
    own = [{"role": "system", "content": "Be curt."}, {"role": "user", "content": "Hi"}]
    assert lm.chat(own) == "<|system|>Be curt.<|end|><|user|>Hi<|end|><|assistant|>"
    assert lm.with_system(None).chat("Hi") == "<|user|>Hi<|end|><|assistant|>"


@pytest.mark.parametrize(
    "template", [NO_SYSTEM, CHAT_TEMPLATE.replace("for m in messages", "for m in messages if m.role != 'system'")]
)
def test_a_template_without_a_system_role_gets_it_in_the_first_message(template: str):
    lm = tiny_language_model().with_system("Be kind.")
    lm.tokenizer.chat_template = template
    assert lm.chat("Hi") == "<|user|>Be kind.\n\nHi<|end|><|assistant|>"
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "Hm"},
    ]
    assert lm.chat(turns) == ("<|user|>Be kind.\n\nHi<|end|><|assistant|>Ho<|end|><|user|>Hm<|end|><|assistant|>")


def test_another_system_prompt_is_the_same_network():
    lm = tiny_language_model()
    assert lm.with_system("x").network is lm.network
    assert lm.system is None
