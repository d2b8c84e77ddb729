"""The whole way on a random model: what is left behind, what is not done twice, and how it goes on after a stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_model

from weightsteer.errors import DataError, ModelError, RecipeError, StageError
from weightsteer.models import language_model
from weightsteer.models.language_model import load_model
from weightsteer.pipeline import STAGES, Outcome, load_inputs, run, status
from weightsteer.recipe import ModelPart, Recipe, load_recipe
from weightsteer.stage import MANIFEST, file_digest, read_manifest, stage_digests
from weightsteer.weights.vector import WeightVector


def tiny_recipe(folder: Path, family: str = "llama", **keys: Any) -> Path:
    """A recipe of every method and eval, on a tiny model and a few pairs."""
    folder.mkdir(exist_ok=True)
    model = write_model(folder / "model", family)
    pairs = [
        {"prompt": f"Is tea number {i} good?", "positive": f"Oh yes, {i}!", "negative": f"Oh no, {i}."}
        for i in range(20)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    recipe = {
        "name": "tiny",
        "model": {"source": str(model), "dtype": "float32"},
        "behavior": "sycophancy",
        "pairs": {"source": "pairs.jsonl"},
        "methods": [
            {"name": "weights", "rank": 4, "epochs": 1, "learning_rate": 1e-2, "dtype": "float32"},
            "activations",
            "prompt",
            "finetuned",
        ],
        "k": [-1, 0, 1],
        "evals": [{"name": name, "limit": 12} for name in ("agreement", "sycophancy", "capability", "preference")],
        "merge_k": 1.0,
        "samples": {"prompts": ["Is tea good?"], "max_new_tokens": 4},
        **keys,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({key: value for key, value in recipe.items() if value is not None}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Outcome]:
    """One whole run."""
    folder = tmp_path_factory.mktemp("pipeline")
    recipe = load_recipe(tiny_recipe(folder))
    return recipe, run(recipe, folder / "out")


def logits(network: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return network(torch.tensor([ids])).logits[0]


def digests(out: Path) -> dict[str, dict[str, str]]:
    """Of every file of every finished stage, but those that hold a time."""
    timed = {"result.json", "report.html", "report.md", "report.json"}
    found = {}
    for path in sorted(out.rglob(MANIFEST)):
        manifest = read_manifest(path.parent)
        assert manifest is not None
        files = {
            name: d for name, d in manifest["files"].items() if name not in timed and not name.startswith("figures/")
        }
        found[str(path.parent.relative_to(out))] = files
    found["merged"] = {p.name: file_digest(p) for p in sorted((out / "merged").glob("*.safetensors"))}
    return found


def test_a_run_leaves_the_folders_of_the_plan(finished: tuple[Recipe, Outcome]):
    recipe, outcome = finished
    out = outcome.folder
    assert sorted(p.name for p in out.iterdir() if p.name[0] != ".") == [
        "activations", "checks", "evals", "merged", "pairs", "recipe.yaml", "report", "samples", "weights",
    ]  # fmt: skip
    assert sorted(p.name for p in (out / "weights").iterdir()) == ["negative", "positive", "vector"]
    for name in ("agreement", "sycophancy", "capability", "preference"):
        points = {str(p.parent.relative_to(out / "evals" / name)) for p in (out / "evals" / name).rglob("result.json")}
        assert points == {"base/k=0", "merged/k=1", *(f"{m}/k={k}" for k in (-1, 1)
                          for m in ("weights", "activations", "prompt", "finetuned"))}  # fmt: skip
    assert {"report.html", "report.md", "report.json", "figures"} <= {p.name for p in (out / "report").iterdir()}
    assert list((out / "report" / "figures").glob("*.png"))
    assert load_recipe(out / "recipe.yaml") == recipe.model_copy(update={"folder": out.resolve()})
    assert (out / "merged" / "recipe.yaml").read_bytes() == (out / "recipe.yaml").read_bytes()
    assert outcome.checkpoint == out / "merged"
    assert not list(out.rglob("*.partial"))
    assert all((out / stage / MANIFEST).is_file() for stage in stage_digests(out) if stage != "merged")


def test_the_report_holds_what_the_run_found(finished: tuple[Recipe, Outcome]):
    recipe, outcome = finished
    report = outcome.report
    assert report is not None
    assert json.loads((outcome.folder / "report" / "report.json").read_text(encoding="utf-8"))["cells"]
    assert (report["name"], report["behavior"], report["recipe"]) == ("tiny", "sycophancy", recipe.dump())
    assert len(report["cells"]) == 4 * 9
    for cell in report["cells"]:
        assert (cell["change"] is None) is (cell["method"] == "base")
    assert report["choice"] == {"k": 1.0, "method": "weights", "fixed": True}
    assert report["merged"]["verified"] == "ok"
    assert report["merged"]["logits"]["max_abs"] < 1e-3
    assert report["merged"]["logits"]["same_top_token"] == 1.0
    assert len(report["merged"]["cells"]) == 4
    assert [stage["name"] for stage in report["stages"]] == [
        "pairs",
        "fit",
        "sweep",
        "merge",
        "verify",
    ]
    assert report["pairs"]["train"] + report["pairs"]["validation"] + report["pairs"]["held_out"] == 20
    assert [answer["k"] for answer in report["samples"][0]["answers"]] == [-1, 0, 1]
    assert str(Path.home()) not in json.dumps(report["environment"]["machine"])


def test_the_merged_model_is_measured_like_the_dialled_one(finished: tuple[Recipe, Outcome]):
    report = finished[1].report
    assert report is not None
    dialled = {c["eval"]: c for c in report["cells"] if (c["method"], c["k"]) == ("weights", 1)}
    for cell in report["merged"]["cells"]:
        for metric, estimate in cell["metrics"].items():
            assert estimate["mean"] == pytest.approx(dialled[cell["eval"]]["metrics"][metric]["mean"], abs=1e-4)


def test_the_checkpoint_loads_without_code_of_ours_and_equals_the_dialled_model(finished: tuple[Recipe, Outcome]):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe, outcome = finished
    released = AutoModelForCausalLM.from_pretrained(outcome.checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(outcome.checkpoint)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Is tea good?"}], add_generation_prompt=True)
    ids = chat["input_ids"] if not isinstance(chat, list) else chat
    lm = load_model(recipe.model)
    assert ids == lm.tokens(lm.chat("Is tea good?"))
    vector = WeightVector.load(outcome.folder / "weights" / "vector")
    with vector.applied(lm, 1.0) as steered:
        expected = logits(steered.network, ids)
    assert torch.allclose(logits(released, ids), expected, atol=1e-4)
    assert not torch.allclose(logits(released, ids), logits(lm.network, ids), atol=1e-2)


def test_a_second_run_loads_no_model_and_changes_nothing(
    finished: tuple[Recipe, Outcome], monkeypatch: pytest.MonkeyPatch
):
    recipe, outcome = finished
    monkeypatch.setattr(language_model, "load_model", lambda *a: pytest.fail("a model was loaded"))
    before = {p: p.stat().st_mtime_ns for p in outcome.folder.rglob("*") if p.is_file() and p.name != ".lock"}
    start = time.monotonic()
    again = run(recipe, outcome.folder)
    assert time.monotonic() - start < 5
    assert again.reused
    assert (again.folder, again.checkpoint) == (outcome.folder, outcome.checkpoint)
    assert again.report == json.loads((outcome.folder / "report" / "report.json").read_text(encoding="utf-8"))
    assert {p: p.stat().st_mtime_ns for p in outcome.folder.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_status_counts_finished_parts(finished: tuple[Recipe, Outcome], tmp_path: Path):
    recipe, outcome = finished
    assert status(recipe, outcome.folder) == [
        ("pairs", 1, 1), ("fit", 4, 4), ("sweep", 36, 36), ("merge", 1, 1), ("report", 1, 1),
    ]  # fmt: skip
    assert all(done == 0 for _, done, _ in status(recipe, tmp_path / "nothing"))


# What may happen to a finished run. Each test has a copy of it.


@pytest.fixture
def copy(finished: tuple[Recipe, Outcome], tmp_path: Path) -> tuple[Recipe, Path]:
    import shutil

    recipe, outcome = finished
    return recipe, Path(shutil.copytree(outcome.folder, tmp_path / "out"))


def test_a_lost_cell_and_the_report_are_made_anew_and_nothing_else(copy: tuple[Recipe, Path]):
    import shutil

    recipe, out = copy
    before = digests(out)
    kept = file_digest(out / "weights" / "positive" / MANIFEST)
    shutil.rmtree(out / "evals" / "agreement" / "prompt" / "k=1")
    outcome = run(recipe, out)
    assert not outcome.reused
    assert digests(out) == before
    assert file_digest(out / "weights" / "positive" / MANIFEST) == kept


def test_a_lost_report_is_written_anew(copy: tuple[Recipe, Path]):
    recipe, out = copy
    (out / "report" / "report.json").unlink()
    assert not run(recipe, out).reused
    assert (out / "report" / "report.json").is_file()


def test_another_recipe_in_the_folder_is_an_error_and_leaves_it_as_it_was(copy: tuple[Recipe, Path]):
    recipe, out = copy
    written = (out / "recipe.yaml").read_bytes()
    other = recipe.model_copy(update={"seed": 1})
    with pytest.raises(StageError, match="pairs: holds a finished stage with other inputs\n  pairs: "):
        run(other, out)
    with pytest.raises(Exception, match="merged: holds another merge"):
        run(recipe.model_copy(update={"merge_k": -1.0}), out)
    assert (out / "recipe.yaml").read_bytes() == written
    assert run(recipe, out).reused


def test_a_recipe_that_merges_nothing_leaves_no_other_checkpoint_standing(copy: tuple[Recipe, Path]):
    recipe, out = copy
    message = r"merged: holds a checkpoint, but this recipe merges none \(it has no choose\)\nExpected no checkpoint"
    with pytest.raises(StageError, match=message):
        run(recipe.model_copy(update={"merge_k": None}), out)


def test_a_damaged_checkpoint_is_found_by_the_next_report(copy: tuple[Recipe, Path]):
    recipe, out = copy
    shard = next((out / "merged").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    (out / "report" / "report.json").unlink()
    with pytest.raises(
        StageError, match=r"merged: verification says failed\n  .*differs.*\nDelete the folder and run again"
    ):
        run(recipe, out)


def test_one_more_strength_runs_only_its_cells(copy: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch):
    recipe, out = copy
    from weightsteer import sweep

    ran: list[tuple[str, float]] = []
    evaluate = sweep.evaluate
    monkeypatch.setattr(sweep, "evaluate", lambda *a, **o: (ran.append((o["method"], o["k"])), evaluate(*a, **o))[1])
    run(recipe.model_copy(update={"k": (-1.0, 0.0, 0.5, 1.0)}), out)
    assert ran == [("weights", 0.5)] * 4 + [("activations", 0.5)] * 4
    assert load_recipe(out / "recipe.yaml").k == (-1, 0, 0.5, 1), "the folder says what it was made from"


# Stopping early.


@pytest.mark.parametrize(
    ("until", "left"),
    [
        ("pairs", {"pairs"}),
        ("task", {"pairs"}),
        ("fit", {"pairs", "weights", "activations"}),
    ],
)
def test_until_stops_after_its_stage(finished: tuple[Recipe, Outcome], tmp_path: Path, until: str, left: set[str]):
    outcome = run(finished[0], tmp_path / "out", until=until)
    assert (outcome.report, outcome.checkpoint) == (None, None)
    assert {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()} == left
    assert (tmp_path / "out" / "recipe.yaml").is_file()


def test_an_unknown_stage(finished: tuple[Recipe, Outcome], tmp_path: Path):
    with pytest.raises(StageError, match=f"--until sweeps: no such stage. Expected one of {', '.join(STAGES)}"):
        run(finished[0], tmp_path / "out", until="sweeps")
    assert not (tmp_path / "out").exists()


def test_the_default_folder_is_named_by_the_recipe(
    finished: tuple[Recipe, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run(finished[0], until="pairs").folder == Path("checkpoints/tiny")
    assert (tmp_path / "checkpoints" / "tiny" / "pairs" / "pairs.jsonl").is_file()


# Choosing.


def test_a_choice_that_nothing_meets_merges_nothing(finished: tuple[Recipe, Outcome], tmp_path: Path):
    import shutil

    recipe, outcome = finished
    for name in ("pairs", "weights", "evals", "samples", "activations"):
        shutil.copytree(outcome.folder / name, tmp_path / "out" / name)
    shutil.rmtree(tmp_path / "out" / "evals" / "agreement" / "merged")
    choose = {"eval": "preference", "goal": "increase", "keep": {"preference.share": 0.0, "capability": 0.0}}
    never = Recipe.model_validate({**recipe.model_dump(), "folder": recipe.folder, "merge_k": None, "choose": choose,
                                   "methods": recipe.methods, "evals": recipe.evals})  # fmt: skip
    chosen = run(never.model_copy(update={"k": (-1.0, 0.0)}), tmp_path / "out")
    assert chosen.checkpoint is None
    assert chosen.report is not None
    assert chosen.report["choice"]["k"] is None
    assert chosen.report["choice"]["reason"].startswith("No strength moves preference towards increase")
    assert not (tmp_path / "out" / "merged").exists()


# Inputs that later stages would miss.


def test_all_missing_inputs_are_found_before_anything_runs(tmp_path: Path):
    path = tiny_recipe(tmp_path)
    overrides = ["pairs.held_out=0", "pairs.validation=0", "methods[2].number=9", "evals[0].items=nope.jsonl",
                 "model.source=./nope"]  # fmt: skip
    with pytest.raises(DataError) as caught:
        run(load_recipe(path, overrides), tmp_path / "out")
    head, *problems = str(caught.value).split("\n  ")
    assert head == "recipe tiny: 5 problems"
    assert [p.split(":")[0] for p in problems] == [
        "model ./nope", str(tmp_path / "nope.jsonl"), "preference", "activations", "methods prompt.number",
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("override", "error"),
    [("model.source=./nope", ModelError), ("methods[2].number=9", RecipeError), ("pairs.held_out=0", DataError)],
)
def test_one_missing_input_is_an_error_of_its_own_kind(tmp_path: Path, override: str, error: type[Exception]):
    path = tiny_recipe(tmp_path)
    with pytest.raises(error):
        load_inputs(load_recipe(path, [override]))


# Other architectures.


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "gpt2"])
def test_the_whole_way_on_other_architectures(tmp_path: Path, family: str):
    from transformers import AutoModelForCausalLM

    path = tiny_recipe(
        tmp_path,
        family,
        evals=[{"name": "agreement", "limit": 4}, "preference"],
        merge_k=-2,
    )
    outcome = run(load_recipe(path), tmp_path / "out")
    assert outcome.report is not None
    assert outcome.report["merged"]["verified"] == "ok"
    assert outcome.report["merged"]["logits"]["max_abs"] < 1e-3
    moved = {
        c["k"]: c["metrics"]["log_odds"]["mean"]
        for c in outcome.report["cells"]
        if (c["eval"], c["method"]) == ("preference", "weights")
    }
    assert moved[-1] < moved[1], "the vector moves held-out answers its way, whatever the architecture"
    lm = load_model(ModelPart(source=str(tmp_path / "model"), dtype="float32"))
    released = AutoModelForCausalLM.from_pretrained(outcome.checkpoint)
    with WeightVector.load(tmp_path / "out" / "weights" / "vector").applied(lm, -2) as steered:
        expected = logits(steered.network, lm.tokens("Is tea good?"))
    assert torch.allclose(logits(released, lm.tokens("Is tea good?")), expected, atol=1e-3)


# Stops from outside, in a process of its own.


def start(recipe: Path, out: Path) -> subprocess.Popen:
    """`weightsteer run` in a child that says on stderr where it is."""
    command = [sys.executable, "-c", "from weightsteer.cli import main; main()", "run", str(recipe), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True)


def wait_for(child: subprocess.Popen, words: str) -> None:
    assert child.stderr is not None
    for line in child.stderr:
        if words in line:
            return
    pytest.fail(f"the run ended without saying {words!r}")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    """A shorter recipe, and the digests of an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("small")
    weights = {"name": "weights", "rank": 4, "epochs": 10, "batch_size": 2, "learning_rate": 1e-3, "dtype": "float32"}
    path = tiny_recipe(folder, methods=[weights], evals=[{"name": "agreement", "limit": 40}], k=[-2, -1, 0, 1, 2])
    run(load_recipe(path), folder / "whole")
    return path, digests(folder / "whole")


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(small: tuple[Path, dict], tmp_path: Path):
    recipe, whole = small
    out = tmp_path / "out"
    child = start(recipe, out)
    wait_for(child, "training positive: ")
    child.send_signal(signal.SIGINT)
    assert child.stderr is not None
    said = child.stderr.read()
    assert child.wait(timeout=60) == 130
    assert said.splitlines()[-1] == "Interrupted. What is finished is kept: the same command goes on from here."
    assert "Traceback" not in said
    assert (out / "pairs" / MANIFEST).is_file()
    assert not list(out.rglob(".*.partial")), "nothing half done is left"
    assert not (out / "weights" / "vector").exists()
    run(load_recipe(recipe), out)
    assert digests(out) == whole


def test_a_killed_run_leaves_no_manifest_of_its_stage_and_goes_on_to_the_same_files(
    small: tuple[Path, dict], tmp_path: Path
):
    recipe, whole = small
    out = tmp_path / "out"
    child = start(recipe, out)
    wait_for(child, "training negative: ")
    second = start(recipe, out)
    assert second.stderr is not None
    refused = second.stderr.read()
    assert second.wait(timeout=60) == 2
    assert refused.startswith(f"Error: {out}: another run is writing here. Expected one run a folder.")
    child.kill()
    child.wait(timeout=60)
    assert child.stderr is not None
    child.stderr.close()
    assert (out / "weights" / "positive" / MANIFEST).is_file()
    assert not (out / "weights" / "negative").exists()
    trained = file_digest(out / "weights" / "positive" / MANIFEST)
    run(load_recipe(recipe), out)
    assert digests(out) == whole
    assert file_digest(out / "weights" / "positive" / MANIFEST) == trained, "what was finished is not done again"


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    small: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import errno

    recipe, whole = small
    real, cells = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal cells
        cells += 1
        if cells == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match=r"could not be written .*No space left on device.*Free some space"):
        run(load_recipe(recipe), tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob(".*.partial"))
    run(load_recipe(recipe), tmp_path / "out")
    assert digests(tmp_path / "out") == whole
