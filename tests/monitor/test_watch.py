"""From a run folder and vectors to a page that holds what was found, in words, tables and figures."""

import json
import re

import pytest
import torch
from trainings import random_vector

from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import AdapterError, DataError, WeightsteerError
from weightsteer.monitor.figures import run_pictures
from weightsteer.monitor.page import headline, write_page
from weightsteer.monitor.record import read_record, write_record
from weightsteer.monitor.watch import Rows, monitor_run, name_vectors, read_rows


@pytest.fixture
def shelf(vector, network, tmp_path):
    """Two weight vectors with names that have to be escaped on a page."""
    vector.save(tmp_path / "shelf" / "sweet")
    random_vector(network, 8, base=vector.base).save(tmp_path / "shelf" / "<b>sour")
    return tmp_path / "shelf"


def test_a_run_becomes_a_page(trained_run, shelf, model_folder, tmp_path):
    run, out = trained_run({}), tmp_path / "page"
    monitored = monitor_run(run, [str(shelf)], str(model_folder), out)
    assert [point.step for point in monitored.record.points] == [2, 4, 6]
    assert read_record(out) == monitored.record
    assert set(monitored.matrix.names) == {"sweet", "<b>sour", "τ run"}
    last = monitored.record.points[-1]
    assert monitored.matrix.cosine("τ run", "sweet") == pytest.approx(last.cosine("sweet"), abs=1e-5)
    html = (out / "monitor.html").read_text()
    assert "<b>sour" not in html
    assert "&lt;b&gt;sour" in html
    assert html.count("data:image/png;base64,") == 6, "three figures, light and dark"
    assert not re.search(r"https?://", html.replace("http-equiv", "")), "the page asks nobody for anything"
    assert "no control runs were given" in html
    for name in ("curve", "blocks", "matrix"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
    data = json.loads((out / "monitor.json").read_text())
    assert data["vectors"]["sweet"]["norm"] == pytest.approx(monitored.vectors["sweet"]["norm"])
    assert data["readings"][1]["step"] == 2
    assert data["crossings"] == {}


def test_limits_of_controls_are_on_the_page(trained_run, shelf, model_folder, tmp_path):
    run = trained_run({})
    record = monitor_run(run, [f"v={shelf / 'sweet'}"]).record
    files = []
    for number, shift in enumerate((-0.51, -0.5, -0.49)):
        for point in record.points:
            point.vectors["v"]["cosine"] += shift
        files.append(tmp_path / f"control-{number}.jsonl")
        write_record(record, files[-1])
        for point in record.points:
            point.vectors["v"]["cosine"] -= shift
    out = tmp_path / "page"
    crossing = monitor_run(run, [f"v={shelf / 'sweet'}"], out=out, controls=files)
    assert crossing.record.crossings()["v"].step == 2
    assert headline(crossing) == "The run moves along v from step 2 on more than the control runs do."
    html = (out / "monitor.html").read_text()
    assert "A limit was crossed" in html
    assert "mean plus 3.0 standard deviations of the cosine over 3 control runs" in html
    calm = monitor_run(run, [f"v={shelf / 'sweet'}"], controls=files, sigma=100.0)
    assert headline(calm).startswith("The run stays within what the control runs do")
    with pytest.raises(DataError, match="control 1: w is not in it"):
        monitor_run(run, [f"w={shelf / 'sweet'}"], controls=files)


def test_one_model_and_nothing_but_activations(trained_run, vector, model_folder, tmp_path):
    run = trained_run({}) / "checkpoint-6"
    vector.save(tmp_path / "v")
    alone = monitor_run(run, [str(tmp_path / "v")], out=tmp_path / "alone")
    assert set(run_pictures(alone.record)) == {"blocks"}
    ActivationVector({1: torch.ones(32)}, vector.base).save(tmp_path / "act")
    rows = Rows(["Is tea good?", "Why?"], [("Is tea good?", "Yes."), ("Why?", "No.")])
    both = monitor_run(run, [str(tmp_path / "act")], str(model_folder), tmp_path / "both", rows=rows)
    assert [p.kind for p in both.projections["act"]] == ["prompts", "shift", "training set"]
    html = (tmp_path / "both" / "monitor.html").read_text()
    assert "In activation space" in html
    assert "95th percentile" in html
    with pytest.raises(WeightsteerError, match=r"act: activation vectors.*--base MODEL, --prompts FILE"):
        monitor_run(run, [str(tmp_path / "act")])
    ActivationVector({1: torch.ones(32)}, "elsewhere").save(tmp_path / "other")
    with pytest.raises(AdapterError, match="other: was made for base elsewhere"):
        monitor_run(run, [str(tmp_path / "other")], str(model_folder), rows=rows)


def test_a_whole_model_has_its_activations_shifted_too(trained_run, vector, model_folder, tmp_path):
    run = trained_run(None) / "checkpoint-6"
    ActivationVector({1: torch.ones(32)}, vector.base).save(tmp_path / "act")
    from tiny_models import byte_tokenizer

    byte_tokenizer().save_pretrained(run)
    found = monitor_run(run, [str(tmp_path / "act")], str(model_folder), rows=Rows(["Is tea good?", "Why?"]))
    shift = found.projections["act"][1]
    assert shift.kind == "shift"
    assert max(map(abs, shift.blocks[1])) > 1e-3


def test_a_page_without_readings_says_so(tmp_path, vector, model_folder, trained_run):
    ActivationVector({1: torch.ones(32)}, vector.base).save(tmp_path / "act")
    run = trained_run({})
    found = monitor_run(run, [str(tmp_path / "act")], str(model_folder), rows=Rows(["Why?", "How?"]))
    found.record.error = "step 3: OSError: no room"
    write_page(found, tmp_path / "page")
    html = (tmp_path / "page" / "monitor.html").read_text()
    assert "No weight vector was monitored." in html
    assert "The monitor fell silent: step 3: OSError: no room" in html


def test_vectors_are_named_by_their_folders(shelf, tmp_path, vector):
    vector.save(tmp_path / "honest" / "weights" / "vector")
    given = str(tmp_path / "honest" / "weights" / "vector")
    assert list(name_vectors([given, f"mine={given}"])) == ["honest", "mine"]
    assert set(name_vectors([str(shelf)])) == {"sweet", "<b>sour"}
    with pytest.raises(AdapterError) as error:
        name_vectors([given, given, "none"])
    assert "honest: both" in str(error.value)
    assert "none: no such folder. Expected FOLDER or NAME=FOLDER" in str(error.value)


def test_rows_are_read_or_told_by_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n')
    assert read_rows(path, ["prompt", "answer"]) == [("a", "b")]
    path.write_text('{"prompt": "a"}\n{"prompt": 3, "answer": ""}\nno\n')
    with pytest.raises(DataError) as error:
        read_rows(path, ["prompt", "answer"])
    assert all(f"line {n}: " in str(error.value) for n in (1, 2, 3))
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none", ["prompt"])
