"""Saved runs: order of steps, whole models, one finished model, and folders that were left half written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import write_model
from trainings import load

from weightsteer.errors import AdapterError, CheckpointError, WeightsteerError
from weightsteer.monitor import measure
from weightsteer.monitor.measure import Directions
from weightsteer.monitor.runs import SavedChange, measure_run, saved_states
from weightsteer.weights.base import Base
from weightsteer.weights.vector import WeightVector


def steps(folder: Path) -> list[tuple[str, int, float]]:
    return [(state.path.name, state.step, state.share) for state in saved_states(folder)]


def test_checkpoints_stand_in_the_order_of_their_numbers(tmp_path):
    for step in (100, 20, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text(json.dumps({"max_steps": 200}))
    (tmp_path / "logs").mkdir()
    assert steps(tmp_path) == [("checkpoint-3", 3, 0.015), ("checkpoint-20", 20, 0.1), ("checkpoint-100", 100, 0.5)]


def test_snapshots_of_a_task_and_its_final_adapter(tmp_path):
    for name in ("at=0.5", "at=0.25", "at=0.04"):
        (tmp_path / name).mkdir()
    (tmp_path / "training.json").write_text(json.dumps({"steps": 40}))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert steps(tmp_path) == [
        ("at=0.04", 2, 0.04),
        ("at=0.25", 10, 0.25),
        ("at=0.5", 20, 0.5),
        (tmp_path.name, 40, 1.0),
    ]


def test_the_losses_of_the_trainer_are_read_along(trained_run, vector):
    run = trained_run({})
    assert [step for step, _ in measure_run(run, Directions({"v": vector})).losses] == [2, 4, 6]


def test_one_finished_model_or_adapter_is_a_run_of_one(model_folder, trained_run, vector):
    run = trained_run({})
    directions = Directions({"v": vector})
    whole = measure_run(run, directions)
    alone = measure_run(run / "checkpoint-6", directions)
    assert alone.points[0].vectors == whole.points[-1].vectors
    assert [(p.step, p.share) for p in alone.points] == [(1, 1.0)]
    merged = WeightVector.load(run / "checkpoint-6")
    network = load(model_folder)
    with torch.no_grad():
        for name, change in merged.entries.items():
            network.get_parameter(name).add_(change.dense())
    network.save_pretrained(run.parent / "merged")
    one = measure_run(run.parent / "merged", directions, Base.of(model_folder)).points[0]
    assert one.cosine("v") == pytest.approx(alone.points[0].cosine("v"), abs=1e-5)
    assert one.norm == pytest.approx(alone.points[0].norm, rel=1e-4)


def test_a_whole_change_can_be_asked_for_parameter_by_parameter(model_folder, trained_run, vector):
    run = trained_run(None)
    base = Base.of(model_folder)
    change = SavedChange(run / "checkpoint-6", base)
    before, after = load(model_folder), load(run / "checkpoint-6")
    assert set(change) == {name for name, _ in after.named_parameters(remove_duplicate=False)}
    assert len(change) == len(change.shapes)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.allclose(change[name], after.get_parameter(name) - before.get_parameter(name), atol=1e-7)
    assert (SavedChange(model_folder, base)[name] == 0).all()
    assert SavedChange(model_folder, base).measured(Directions({"v": vector})).norm == 0


def test_a_whole_change_is_the_same_in_few_rows_at_a_time(model_folder, trained_run, vector, monkeypatch):
    change = SavedChange(trained_run(None) / "checkpoint-6", Base.of(model_folder))
    directions = Directions({"v": vector})
    at_once = change.measured(directions)
    monkeypatch.setattr(measure, "BLOCK_ELEMENTS", 100)  # three rows of 32, then one of 64
    few = change.measured(directions)
    assert few.norm > 0.01
    assert few.norm == pytest.approx(at_once.norm, rel=1e-6)
    assert few.readings["v"].whole == pytest.approx(at_once.readings["v"].whole, abs=1e-7)


def test_a_whole_model_needs_its_base(trained_run, vector):
    run = trained_run(None)
    with pytest.raises(CheckpointError, match=r"checkpoint-2: .*is a whole model.*\n.*checkpoint-4"):
        measure_run(run, Directions({"v": vector}))


def test_half_written_checkpoints_are_named_all_of_them(trained_run, vector):
    run = trained_run({})
    file = run / "checkpoint-4" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (run / "checkpoint-8").mkdir()
    with pytest.raises(CheckpointError) as error:
        measure_run(run, Directions({"v": vector}))
    told = str(error.value)
    assert "2 problems" in told
    assert "checkpoint-4: " in told
    assert "checkpoint-8: " in told
    (run / "tmp-checkpoint-10").mkdir()
    with pytest.raises(CheckpointError, match="tmp-checkpoint-10: is being written, or was left"):
        measure_run(run, Directions({"v": vector}))


def test_a_whole_model_cut_short_is_named(trained_run, vector, model_folder):
    run = trained_run(None)
    file = run / "checkpoint-4" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"checkpoint-4: .*model\.safetensors"):
        measure_run(run, Directions({"v": vector}), Base.of(model_folder))
    (run / "checkpoint-6" / "trainer_state.json").write_text('{"max_st')
    with pytest.raises(CheckpointError, match=r"trainer_state\.json: cannot be read"):
        saved_states(run)


def test_vectors_of_another_base_or_other_parameters_are_told_once(trained_run, vector, tmp_path, model_folder):
    run = trained_run({})
    elsewhere = WeightVector(vector.entries, "elsewhere")
    with pytest.raises(AdapterError, match=r"v: was made for base elsewhere, the run's is") as error:
        measure_run(run, Directions({"v": elsewhere}))  # the adapter names its base, which is here
    assert str(error.value).count("elsewhere") == 1
    assert len(measure_run(run, Directions({"v": elsewhere}), any_base=True).points) == 3
    with pytest.raises(AdapterError, match="v: has no parameter in common with the run"):
        measure_run(run, Directions({"v": WeightVector({"model.norm.weight": torch.ones(32)})}))
    other = write_model(tmp_path / "other", seed=5)
    with pytest.raises(AdapterError, match="v: was made for base"):
        measure_run(run, Directions({"v": vector}), Base.of(other))
    shutil.rmtree(run)
    with pytest.raises(CheckpointError, match="no such folder"):
        saved_states(run)
    run.mkdir()
    with pytest.raises(WeightsteerError, match="holds no checkpoint-STEP folders"):
        saved_states(run)
