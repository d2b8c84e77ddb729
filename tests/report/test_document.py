"""A report in sections: everything said is on the page, in Markdown and in JSON."""

import json
from pathlib import Path

import pytest

from weightsteer.report.document import Document, Figure, Section, Table, in_terminal, write_document
from weightsteer.report.theme import _legend_columns, new_figure
from weightsteer.stats import Estimate


def drawn(theme):
    figure, axes = new_figure(2.0)
    axes.plot([0, 1], [0, 1], color=theme.ink)
    return figure


TABLE = Table("Effects", ("set", "effect", "share"), (("a <b>", Estimate(0.5, 0.4, 0.6), 0.25), ("c", None, 3)))
SECTION = Section("Where", "Where does it act?", "In block 2: +0.5 [+0.4, +0.6].", (TABLE,), (), ("a note",))
DOCUMENT = Document("study", "It acts.", "What was done.", (SECTION,), {"machine": "two cores"}, {"x": float("nan")})


def test_page_markdown_and_json_say_the_same(tmp_path: Path):
    section = Section("Picture", "How?", "So.", (), (Figure("line", "A line.", "A rising line.", drawn),))
    write_document(Document("study", "It acts.", "Lead.", (SECTION, section), {"machine": "two cores"}), tmp_path)
    page, text = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for told in ("It acts.", "Where does it act?", "a note", "two cores", "A line."):
        assert told in page
        assert told in text
    assert "a &lt;b&gt;" in page
    assert "<b>" not in page
    assert "0.500" in page
    assert "[0.400, 0.600]" in page
    assert "not scored" in page
    assert "| --- | --- | --- |" in text
    assert "| c | not scored | 3 |" in text
    assert (tmp_path / "figures" / "line.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_numbers_that_json_cannot_hold_are_null(tmp_path: Path):
    write_document(DOCUMENT, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["data"] == {"x": None}
    assert found["sections"][0]["tables"][0]["rows"][0][1]["mean"] == 0.5


def test_a_row_that_does_not_fit_and_figures_of_one_name_are_mistakes(tmp_path: Path):
    with pytest.raises(ValueError, match="row \\('a',\\) does not fit"):
        Table("t", ("x", "y"), (("a",),))
    figure = Figure("line", "", "", drawn)
    with pytest.raises(ValueError, match="share a name"):
        write_document(Document("s", "", "", (Section("a", "", "", (), (figure, figure)),)), tmp_path)


def test_the_terminal_gets_the_answers():
    assert "Where: In block 2: +0.5" in in_terminal(DOCUMENT)


def test_a_legend_has_as_many_columns_as_its_entries_leave_room_for():
    names = ["largest elements", "random, rescaled", "largest singular directions", "whole blocks, largest norm first"]
    assert _legend_columns(names) == 2  # in three columns, the last entry would stand alone and be cut off
    assert _legend_columns(["a", "b", "c", "d"]) == 4
