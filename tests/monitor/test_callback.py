"""The monitor inside a training: its curve is that of the saved checkpoints, and its errors never end the training."""

import json
import logging
import shutil
from typing import Any

import pytest
import torch
from trainings import load, new_trainer, random_vector, with_lora

from weightsteer.errors import AdapterError, DataError, StageError, WeightsteerError
from weightsteer.monitor.callback import SteeringMonitor
from weightsteer.monitor.live import LiveChange
from weightsteer.monitor.record import Point, Record, read_record, write_record
from weightsteer.monitor.runs import measure_run
from weightsteer.monitor.thresholds import Thresholds
from weightsteer.weights.base import Base
from weightsteer.weights.vector import WeightVector


def control(vector: WeightVector, cosines: tuple[float, float], label: str = "v") -> Record:
    readings = [
        {"cosine": c, "projection": c, "without_embeddings": [c, c], "blocks": {}, "kinds": {}} for c in cosines
    ]
    points = [Point(step, step / 6, 1.0, {label: r}) for step, r in zip((2, 6), readings, strict=True)]
    return Record({label: vector.digest}, points=points)


def controls(vector: WeightVector, level: float) -> list[Record]:
    return [control(vector, (level + off, level + off)) for off in (-1e-4, 0.0, 1e-4)]


def assert_same(one: Record, other: Record) -> None:
    assert [point.step for point in one.points] == [point.step for point in other.points] == [2, 4, 6]
    for here, there in zip(one.points, other.points, strict=True):
        assert here.share == pytest.approx(there.share)
        assert here.norm == pytest.approx(there.norm, rel=1e-5)
        for label in one.labels:
            mine, theirs = here.vectors[label], there.vectors[label]
            assert mine["cosine"] == pytest.approx(theirs["cosine"], abs=1e-5)
            assert mine["projection"] == pytest.approx(theirs["projection"], abs=1e-5)
            assert mine["without_embeddings"] == pytest.approx(theirs["without_embeddings"], abs=1e-5)
            for group in ("blocks", "kinds"):
                shared = mine[group].keys() & theirs[group].keys()
                assert len(shared) >= 2
                for key in shared:
                    assert mine[group][key] == pytest.approx(theirs[group][key], abs=1e-5)


@pytest.mark.parametrize("kind", ["lora", "rslora", "embedding", "modules_to_save", "full", "full with base"])
def test_the_curve_equals_the_one_computed_from_the_checkpoints(kind, trained_run, vector, model_folder, tmp_path):
    base = model_folder if kind == "full with base" else None
    monitor = SteeringMonitor({"v": vector, "w": -vector}, tmp_path / "m", every=2, base=base, figure_every_s=0)
    settings = {
        "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
        "embedding": {"target_modules": ["q_proj", "down_proj", "embed_tokens"]},
        "modules_to_save": {"modules_to_save": ["norm"]},
    }.get(kind, {})
    run = trained_run(None if kind.startswith("full") else settings, [monitor])
    afterwards = measure_run(run, monitor.directions, Base.of(model_folder))
    assert_same(read_record(tmp_path / "m"), afterwards)
    assert afterwards.points[-1].norm > 0.01, "nothing was trained"
    assert afterwards.points[-1].cosine("v") == pytest.approx(-afterwards.points[-1].cosine("w"))
    assert [step for step, _ in monitor.record.losses] == [2, 4, 6]
    assert (tmp_path / "m" / "monitor.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "m" / ".monitor.png.partial").exists()


def test_live_factors_are_those_that_peft_adds(network):
    lora = with_lora(network, target_modules=["q_proj", "down_proj"], use_rslora=True)
    before = {name: p.clone() for name, p in lora.base_model.model.named_parameters() if "base_layer" in name}
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    changes = {name: change.dense() for name, change in LiveChange(lora)}
    merged = dict(lora.merge_and_unload().named_parameters())
    assert len(changes) == len(before) == 4
    for name, change in changes.items():
        stored = before[name.removesuffix(".weight") + ".base_layer.weight"]
        assert torch.allclose(merged[name] - stored, change, atol=1e-5)


def test_everything_that_reports_sees_the_numbers(network, vector, tmp_path):
    from transformers import TrainerCallback

    seen: list[dict[str, Any]] = []

    class Reporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    trainer = new_trainer(with_lora(network), tmp_path / "run", [Reporter()], logging_steps=3)
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m", every=2).attach(trainer)
    assert trainer.callback_handler.callbacks.count(monitor.attach(trainer)) == 1
    trainer.train()
    rows = {point.step: point for point in read_record(tmp_path / "m").points}
    logged = [logs for logs in seen if "steering/v/cosine" in logs]
    assert [logs["steering/v/cosine"] for logs in logged] == [rows[step].cosine("v") for step in (2, 4, 6)]
    assert all(
        {"steering/v/projection", "steering/v/attention", "steering/change", "loss"} <= set(log) for log in logged
    )
    history = [row for row in trainer.state.log_history if "steering/v/cosine" in row]
    assert [row["step"] for row in history] == [2, 4, 6]
    assert any("steering/v/cosine" not in logs for logs in seen), "step 3 has a loss but no measurement"


def test_reporters_that_would_see_nothing_are_told_of_before_training(network, vector, tmp_path):
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m")
    trainer = new_trainer(with_lora(network), tmp_path / "run", [monitor])
    trainer.args.report_to = ["wandb"]
    with pytest.raises(WeightsteerError, match=r"reports to wandb.*monitor\.attach\(trainer\)"):
        trainer.train()


@pytest.mark.parametrize("action", ["log", "stop", "snapshot"])
def test_a_crossing_is_told_and_acted_on(action, network, vector, tmp_path, caplog):
    warn = Thresholds(controls(vector, -1.0), action=action)
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m", every=2, warn=warn)
    trainer = new_trainer(with_lora(network), tmp_path / "run", [monitor], save_strategy="no")
    trainer.train()
    record = read_record(tmp_path / "m")
    assert trainer.state.global_step == (2 if action == "stop" else 6)
    assert (tmp_path / "run" / "checkpoint-2").is_dir() == (action == "snapshot")
    assert not (tmp_path / "run" / "checkpoint-4").exists(), "only the first crossing is acted on"
    assert record.crossings()["v"].step == 2
    assert record.points[0].limits["v"] == pytest.approx(-1 + 3e-4)
    assert len([r for r in caplog.records if "above the limit" in r.getMessage()]) == 1


def test_below_its_limit_nothing_happens(network, vector, tmp_path, caplog):
    warn = Thresholds(controls(vector, 0.9), action="stop")
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m", every=2, warn=warn)
    trainer = new_trainer(with_lora(network), tmp_path / "run", [monitor])
    trainer.train()
    assert trainer.state.global_step == 6
    assert read_record(tmp_path / "m").crossings() == {}
    assert not caplog.records


def test_limits_lie_on_straight_lines_between_the_controls_readings(vector, tmp_path):
    runs = [control(vector, (0.0 + off, 0.6 + 2 * off)) for off in (-0.01, 0.0, 0.01)]
    for number, run in enumerate(runs):
        write_record(run, tmp_path / f"{number}.jsonl")
    limits = Thresholds.from_controls([tmp_path / f"{i}.jsonl" for i in range(3)], sigma=2)
    assert limits.limit("v", 4 / 6) == pytest.approx(0.3 + 2 * 0.015)
    assert limits.limit("v", 0.0) == pytest.approx(0.0 + 2 * 0.01)


def test_a_change_without_a_direction_crosses_nothing(vector):
    limits = Thresholds(controls(vector, -0.5))
    assert limits.hold({"v": None}, 1.0) == ({"v": pytest.approx(-0.5 + 3e-4)}, [])
    assert limits.hold({"v": -0.4}, 1.0)[1] == ["v"]


def test_thresholds_that_say_nothing_are_refused(vector, network):
    with pytest.raises(DataError) as error:
        Thresholds(controls(vector, 0.0)[:2], sigma=0, action="halt")
    for told in ("sigma is 0", "action is 'halt'", "2 control runs. Expected 3 or more"):
        assert told in str(error.value)
    with pytest.raises(DataError, match=r"control 1: w is not in it.*\n.*control 2"):
        Thresholds(controls(vector, 0.0)).check({"w": vector.digest})
    with pytest.raises(DataError, match="control 1: v is another vector"):
        Thresholds(controls(vector, 0.0)).check({"v": random_vector(network, 7).digest})


def test_an_error_of_the_monitor_is_told_once_and_the_training_goes_on(network, vector, tmp_path, caplog, monkeypatch):
    plain = new_trainer(with_lora(load_again(network)), tmp_path / "plain", save_strategy="no")
    plain.train()
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m", every=2)
    calls = []

    def fail(changes: Any) -> None:
        calls.append(next(iter(changes)))
        raise ZeroDivisionError("a bug in the monitor")

    monkeypatch.setattr(monitor.directions, "measure", fail)
    trainer = new_trainer(with_lora(network), tmp_path / "run", [monitor])
    trainer.train()
    assert trainer.state.global_step == 6
    assert len(calls) == 1
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "step 2: ZeroDivisionError: a bug in the monitor" in caplog.text
    assert read_record(tmp_path / "m").error == "step 2: ZeroDivisionError: a bug in the monitor"
    for (name, one), other in zip(trainer.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def load_again(network: Any) -> Any:
    import copy

    return copy.deepcopy(network)


def test_a_disk_that_goes_away_does_not_end_the_training(network, vector, tmp_path, caplog):
    from transformers import TrainerCallback

    class Remove(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                shutil.rmtree(tmp_path / "m")

    monitor = SteeringMonitor({"v": vector}, tmp_path / "m", every=2)
    trainer = new_trainer(with_lora(network), tmp_path / "run", [Remove(), monitor])
    trainer.train()
    assert trainer.state.global_step == 6
    assert "FileNotFoundError" in caplog.text
    assert not (tmp_path / "m").exists()


def test_one_that_failed_between_two_looks_still_comes_to_where_others_wait(network, vector, tmp_path, monkeypatch):
    """Losses are kept by the main process alone: what fails there is known to no other before they next meet."""
    met: list[tuple[bool, ...]] = []

    def meet(args: Any, *flags: bool) -> tuple[bool, ...]:
        met.append(flags)
        return flags

    def fail(step: int, loss: float) -> None:
        raise OSError("no room")

    monkeypatch.setattr("weightsteer.monitor.callback._anywhere", meet)
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m", every=2)
    monkeypatch.setattr(monitor, "_keep_loss", fail)
    trainer = new_trainer(with_lora(network), tmp_path / "run", [monitor])
    trainer.train()
    assert trainer.state.global_step == 6
    # the beginning; step 2 before the look and after it; step 4, where all learn of it; none at step 6
    assert met == [(False,), (False,), (False, False), (True,)]
    assert read_record(tmp_path / "m").error == "step 2: OSError: no room"


def test_a_training_that_bursts_is_measured_as_no_number(network, vector, tmp_path):
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m", every=2)
    new_trainer(with_lora(network), tmp_path / "run", [monitor], learning_rate=1e38, max_grad_norm=0).train()
    last = read_record(tmp_path / "m").points[-1]
    assert (last.norm, last.cosine("v")) == (None, None)


def test_the_monitor_leaves_the_training_as_it_is(network, vector, tmp_path):
    plain = new_trainer(with_lora(load_again(network)), tmp_path / "plain", save_strategy="no")
    plain.train()
    watched = new_trainer(with_lora(network), tmp_path / "run", save_strategy="no")
    SteeringMonitor({"v": vector}, tmp_path / "m", every=1).attach(watched)
    watched.train()
    for (name, one), other in zip(watched.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_resumed_training_goes_on_with_its_readings(model_folder, vector, tmp_path, trained_run):
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m", every=1)
    run = trained_run({}, [monitor])
    whole = read_record(tmp_path / "m")
    again = SteeringMonitor({"v": vector}, tmp_path / "m", every=1)
    new_trainer(with_lora(load(model_folder)), run, [again]).train(resume_from_checkpoint=str(run / "checkpoint-4"))
    resumed = read_record(tmp_path / "m")
    assert [p.step for p in resumed.points] == [1, 2, 3, 4, 5, 6]
    assert resumed.points[:4] == whole.points[:4]
    assert resumed.points[5].cosine("v") == pytest.approx(whole.points[5].cosine("v"), abs=1e-5)
    file = tmp_path / "m" / "readings.jsonl"
    file.write_text(file.read_text()[:-30])  # killed while it wrote its last line
    cut = SteeringMonitor({"v": vector}, tmp_path / "m", every=1)
    new_trainer(with_lora(load(model_folder)), run, [cut]).train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert [p.step for p in read_record(tmp_path / "m").points] == [1, 2, 3, 4, 5, 6]
    other = SteeringMonitor({"v": -vector}, tmp_path / "m")
    with pytest.raises(StageError, match="was measured on v, not on these vectors"):
        new_trainer(with_lora(load(model_folder)), run, [other]).train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_whole_parameters_that_are_resumed_need_their_base(model_folder, vector, tmp_path, trained_run):
    run = trained_run(None)
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m")
    with pytest.raises(WeightsteerError, match=r"goes on from step 4.*Pass base="):
        new_trainer(load(model_folder), run, [monitor]).train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_what_is_wrong_from_the_start_is_an_error_before_the_first_step(model_folder, network, vector, tmp_path):
    def begin(vectors: Any, out: str = "m", wrapped: Any = None, **settings: Any) -> Any:
        trainer = new_trainer(wrapped or with_lora(load(model_folder)), tmp_path / "run")
        SteeringMonitor(vectors, tmp_path / out, **settings).attach(trainer)
        try:
            trainer.train()
        finally:
            assert trainer.state.global_step == 0

    import peft

    with pytest.raises(AdapterError, match="v: was made for base elsewhere, the run's is"):
        begin({"v": WeightVector(vector.entries, "elsewhere")})
    with pytest.raises(AdapterError, match="v: has no parameter in common with the run"):
        begin({"v": WeightVector({"transformer.h.0.attn.weight": torch.ones(2, 2)})})
    with pytest.raises(AdapterError, match=r"v: changes model\.layers\.0\.mlp\.up_proj"):
        begin({"v": WeightVector({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)})})
    (tmp_path / "used").mkdir()
    write_record(Record({"v": "x"}), tmp_path / "used" / "readings.jsonl")
    with pytest.raises(StageError, match="holds the readings of another run"):
        begin({"v": vector}, "used")
    with pytest.raises(DataError, match="control 1: v is another vector"):
        begin({"v": vector}, warn=Thresholds(controls(-vector, 0.0)))
    with pytest.raises(AdapterError, match="DoRA"):
        begin({"v": vector}, wrapped=with_lora(load(model_folder), use_dora=True))
    loha = peft.get_peft_model(load(model_folder), peft.LoHaConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="q_proj: is trained by Linear"):
        begin({"v": vector}, wrapped=loha)
    emptied = with_lora(load(model_folder))
    next(emptied.parameters()).ds_id = 0  # as DeepSpeed marks what it has taken apart
    with pytest.raises(AdapterError, match="DeepSpeed's stage 3"):
        begin({"v": vector}, wrapped=emptied)
    with pytest.raises(AdapterError, match="nothing is trained"):
        LiveChange(network.requires_grad_(False))
    with pytest.raises(WeightsteerError, match="every is 0"):
        SteeringMonitor({"v": vector}, tmp_path / "m", every=0)
    assert not (tmp_path / "m").exists(), "nothing is written where nothing is measured"


def test_a_descendant_of_the_base_is_watched_when_that_is_meant(model_folder, vector, tmp_path):
    monitor = SteeringMonitor({"v": WeightVector(vector.entries, "elsewhere")}, tmp_path / "m", any_base=True)
    new_trainer(with_lora(load(model_folder)), tmp_path / "run", [monitor]).train()
    assert len(read_record(tmp_path / "m").points) == 1


def test_trl_trains_under_it(model_folder, vector, tmp_path):
    from datasets import Dataset
    from tiny_models import byte_tokenizer
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        disable_tqdm=True, logging_steps=1, max_length=None, bf16=False,
    )  # fmt: skip
    texts = Dataset.from_list([{"text": text} for text in ["tea is good", "rain is wet"] * 4])
    trainer = SFTTrainer(
        model=with_lora(load(model_folder)), args=arguments, train_dataset=texts, processing_class=byte_tokenizer()
    )
    monitor = SteeringMonitor({"v": vector}, tmp_path / "m", every=1).attach(trainer)
    trainer.train()
    assert [point.step for point in monitor.record.points] == [1, 2]
    assert json.loads((tmp_path / "m" / "readings.jsonl").read_text().splitlines()[0])["max_steps"] == 2


def test_readings_that_are_damaged_are_told_by_line(vector, tmp_path):
    path = tmp_path / "readings.jsonl"
    write_record(controls(vector, 0.0)[0], path)
    assert read_record(tmp_path) == controls(vector, 0.0)[0]
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"readings\.jsonl: line 3 is not one that a monitor wrote"):
        read_record(path)
    path.write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_record(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_record(tmp_path / "none.jsonl")
