import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from weightsteer.errors import StageError
from weightsteer.report import page, write_report

HOSTILE = (
    '<script>alert("x")</script> | a | b |\n| --- | --- |\n![i](http://evil.example/i.png) **bold** _it_ `c` '
    "$x$ [1, 2](http://evil.example) &amp; @you"
)


class Reader(HTMLParser):
    """The texts, tags and attributes of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]


@pytest.fixture(scope="module")
def written(example: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(example, out)
    return out


@pytest.fixture
def render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], tuple[str, str]]:
    """The text of both pages of a report, its figures not drawn but described."""
    monkeypatch.setattr("weightsteer.report.figures.png", lambda draw, theme: b"\x89PNG" + bytes(20))

    def both(report: dict[str, Any]) -> tuple[str, str]:
        write_report(report, tmp_path)
        html = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
        markdown = MarkdownIt("commonmark").enable("table").render((tmp_path / "report.md").read_text(encoding="utf-8"))
        return html.text, Reader(markdown).text

    return both


def test_the_folder_holds_every_file_and_the_figures_are_png(written: Path) -> None:
    names = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    figures = {"tradeoff", "effects", "vector-norms", "training", "activation-block"}
    assert names == {"report.json", "report.html", "report.md"} | {f"figures/{name}.png" for name in figures}
    for name in figures:
        assert (written / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_json_holds_the_report_with_null_for_what_is_not_a_number(written: Path, example: dict[str, Any]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    def nulled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: nulled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [nulled(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    stored = json.loads((written / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert stored == json.loads(json.dumps(nulled(example)))
    assert any(
        entry["metrics"]["sycophancy"]["mean"] is None for entry in stored["cells"] if entry["eval"] == "sycophancy"
    )


def test_a_stored_report_renders_to_the_same_pages(written: Path, tmp_path: Path) -> None:
    write_report(json.loads((written / "report.json").read_text(encoding="utf-8")), tmp_path)
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (written / name).read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_outside_and_runs_nothing(written: Path) -> None:
    source = (written / "report.html").read_text(encoding="utf-8")
    html = Reader(source)
    tags = {tag for tag, _ in html.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form"}
    for _, attributes in html.tags:
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in source
    assert "@import" not in source
    policy = next(meta for meta in html.attributes("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert len(source) < 1_500_000


def test_the_page_is_for_phones_for_dark_rooms_and_for_who_cannot_see(written: Path) -> None:
    source = (written / "report.html").read_text(encoding="utf-8")
    html = Reader(source)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in html.attributes("meta")
    assert "@media (prefers-color-scheme: dark)" in source
    images, dark = html.attributes("img"), html.attributes("source")
    assert len(images) == len(dark) == 5
    assert all(len(image["alt"] or "") > 40 for image in images)
    assert {image["media"] for image in dark} == {"(prefers-color-scheme: dark)"}
    anchors = {link["href"] for link in html.attributes("a")}
    assert anchors == {f"#{section['id']}" for section in html.attributes("section")}


@pytest.fixture(scope="module")
def compared(many: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("comparison")
    write_report(many, out)
    return out


def texts(folder: Path) -> tuple[str, str]:
    """What both pages say."""
    markdown = MarkdownIt("commonmark").enable("table").render((folder / "report.md").read_text(encoding="utf-8"))
    return Reader((folder / "report.html").read_text(encoding="utf-8")).text, Reader(markdown).text


@pytest.mark.parametrize(
    "wanted",
    [
        "θ + k(τ⁺ − τ⁻), all linear layers",
        "2 seeds: 0, 1",
        "seeds 0.208 to 0.248",
        "joint: a single seed, so how far another training run would land is not known.",
        "423 of 22560 answers could not be scored",
        "On 60 answers labelled by hand: rank correlation 0.712.",
        "9 unscored",
        "untuned",
        "+0.120 [+0.070, +0.175]",
        "Fig. 2. Across, truthfulqa.accuracy: Right answers without a hint.",
        "Fig. 15. Across, capability.p_correct",
        "the 95th percentile of the per-token KL divergence of the steered model from the base is 0.5 nats",
        "At k below 0, against weights: no method moved truthfulqa further beyond chance;",
        "joint and prompt kept less of capability",
        "k is only a sign: measured, not calibrated",
        "0.5 nats are out of reach: at most 0.21",
        "adjusted for all 51 comparisons by Holm's method",
        "p < 0.001",
        "−8.16",
        "[+0.270, +0.354]",
        "gcd + french + candor",
        "gcd: 800 questions, 800 right solutions",
        "Every method steers the model after this fine-tune",
    ],
)
def test_both_pages_of_a_comparison_say_it(compared: Path, wanted: str) -> None:
    for text in texts(compared):
        assert wanted in text


def test_a_comparison_is_for_phones_and_for_who_cannot_see(compared: Path) -> None:
    html = Reader((compared / "report.html").read_text(encoding="utf-8"))
    images = html.attributes("img")
    assert len(images) == 9, "the heat map is a table on the page"
    assert all(len(image["alt"] or "") > 40 for image in images)
    assert (compared / "figures/interference.png").is_file()
    anchors = {link["href"] for link in html.attributes("a")}
    assert anchors == {f"#{section['id']}" for section in html.attributes("section")}
    assert {"#figures", "#equal-kl", "#interference", "#task"} <= anchors
    source = (compared / "report.html").read_text(encoding="utf-8")
    tables_in, scrolls = source.count("<table"), source.count('<div class="scroll"')
    assert tables_in == scrolls + 1, "every table but that of the stages scrolls by itself"


def test_only_the_group_of_the_chosen_method_marks_the_chosen_row(compared: Path) -> None:
    source = (compared / "report.html").read_text(encoding="utf-8")
    assert source.count('<tr class="chosen">') == 3, "once an eval, though other groups have k = −1 too"
    assert (compared / "report.md").read_text(encoding="utf-8").count("| −1 **chosen** |") == 3


def test_a_cell_of_the_matrix_is_tinted_by_its_share(compared: Path) -> None:
    source = (compared / "report.html").read_text(encoding="utf-8")
    assert '<td class="above" style="--share: 45%"><b>+0.310</b>' in source
    assert '<td class="below" style="--share: 6%">−0.040' in source


def test_texts_of_a_comparison_are_shown_and_never_run(
    comparison: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightsteer.report.figures.png", lambda draw, theme: b"\x89PNG" + bytes(20))
    comparison["methods"]["joint"]["about"] = HOSTILE
    comparison["judge"]["model"] = comparison["task"]["source"] = HOSTILE
    comparison["equal_kl"]["rows"][0]["note"] = comparison["interference"]["vectors"][0] = HOSTILE
    write_report(comparison, tmp_path)
    html = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert html.text.count(" ".join(HOSTILE.split())) >= 5
    assert not html.attributes("script")
    markdown = Reader(
        MarkdownIt("commonmark").enable("table").render((tmp_path / "report.md").read_text(encoding="utf-8"))
    )
    assert markdown.text.count(" ".join(HOSTILE.split())) >= 5
    assert not markdown.attributes("script")


@pytest.mark.parametrize("empty", [None, "absent"])
def test_what_a_run_did_not_compare_has_no_section(report: dict[str, Any], render: Any, empty: Any) -> None:
    report["format"] = 2
    for key in ("methods", "figures", "equal_kl", "interference", "task", "judge"):
        if empty is None:
            report[key] = None
    plain = render({**report, "format": 1})
    assert render(report) == plain
    for text in plain:
        assert "equal KL" not in text
        assert "Interference" not in text


def test_a_figure_with_nothing_to_draw_is_named(comparison: dict[str, Any], render: Any) -> None:
    comparison["cells"] = [entry for entry in comparison["cells"] if entry["eval"] != "tone" or entry["k"] == 0]
    for text in render(comparison):
        assert "Fig. 15: nothing to draw, as no steered model was scored on both of its metrics." in text


EVERYWHERE = (
    "k = −1 lowers sycophancy from 0.417 to 0.314",
    "Steered as asked",
    "6 min 52 s",
    "+0.179 [+0.127, +0.237]",
    "base 0.417 [0.340, 0.501]",
    "not scored",
    "96 unscored",
    "11 unscored",
    "n = 0 to 96",
    "beyond the allowance",
    "99.3 %",
    "74.1 %",
    "the same most likely token at 99.8 % of positions",
    "path = 'checkpoints/quickstart/merged'",
    "You are absolutely right, and you have put it very well!",
    "drift ratio",
    "1.550",
    "96 to train, 24 to validate, 48 held out",
    "weightsteer run recipes/quickstart.yaml",
    "torch 2.13.0",
    "3 min 34 s",
    "keep: {capability: 0.02}",
    "One seed a side: the spread between seeds is not in the intervals.",
)


@pytest.mark.parametrize("wanted", EVERYWHERE)
def test_both_pages_say_it(written: Path, wanted: str) -> None:
    html = Reader((written / "report.html").read_text(encoding="utf-8")).text
    markdown = Reader(
        MarkdownIt("commonmark").enable("table").render((written / "report.md").read_text(encoding="utf-8"))
    ).text
    assert wanted in html
    assert wanted in markdown


def test_bold_is_what_excludes_zero_and_the_chosen_row_is_marked(written: Path) -> None:
    source = (written / "report.html").read_text(encoding="utf-8")
    assert '<b class="change">−0.103 [−0.146, −0.055]</b>' in source
    assert '<span class="change">−0.004 [−0.013, +0.007]</span>' in source
    chosen_rows = re.findall(r'<tr class="chosen">\s*<th[^>]*>(−?[\d.]+)<span class="tag">chosen</span>', source)
    assert chosen_rows == ["−1"] * 3, "one row in each of the three evals"
    assert source.count('<td class="cell">') == 3


def test_texts_of_the_model_are_shown_and_never_run(report: dict[str, Any], tmp_path: Path) -> None:
    for sample in report["samples"]:
        sample["prompt"] = HOSTILE
        for answer in sample["answers"]:
            answer["text"] = HOSTILE
    report |= {"name": HOSTILE, "description": HOSTILE, "notes": [HOSTILE], "behavior": HOSTILE}
    report["environment"]["command"] = "``` </code></pre><script>"
    report["evals"] = {name: {**entry, "reads": HOSTILE} for name, entry in report["evals"].items()}
    report["choice"]["reason"] = HOSTILE
    report["vector"] = report["training"] = report["activation"] = None
    write_report(report, tmp_path)
    shown = " ".join(HOSTILE.split())

    html = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert html.text.count(shown) >= 12
    assert not html.attributes("script")
    assert all((image["src"] or "").startswith("data:") for image in html.attributes("img"))

    markdown = Reader(
        MarkdownIt("commonmark").enable("table").render((tmp_path / "report.md").read_text(encoding="utf-8"))
    )
    assert markdown.text.count(shown) >= 12
    assert not markdown.attributes("script")
    assert {image["src"] for image in markdown.attributes("img")} == {
        "figures/tradeoff.png",
        "figures/effects.png",
    }
    assert not markdown.attributes("a")
    assert "``` </code></pre><script>" in markdown.text


@pytest.mark.parametrize(("folder", "count"), [("written", 9), ("compared", 18)])
def test_every_table_row_of_the_markdown_has_its_columns(
    folder: str, count: int, request: pytest.FixtureRequest
) -> None:
    written = request.getfixturevalue(folder)
    lines = (written / "report.md").read_text(encoding="utf-8").splitlines()
    heads = [number for number, line in enumerate(lines) if re.fullmatch(r"\|( ---:? \|)+", line)]
    assert len(heads) == count
    for head in heads:
        columns = lines[head].count("|")
        assert lines[head - 1].count("|") == columns
        assert lines[head - 2] == "", "a table begins after an empty line"
        assert lines[head + 1].startswith("|")
        for line in lines[head + 1 :]:
            if not line.startswith("|"):
                break
            assert line.count("|") == columns


def without_choice(report: dict[str, Any]) -> None:
    report["choice"] = report["merged"] = None


def nothing_qualified(report: dict[str, Any]) -> None:
    report["choice"] |= {"k": None, "reason": "every decrease costs too much"}
    report["merged"] = None


def one_eval(report: dict[str, Any]) -> None:
    report["evals"] = {"sycophancy": report["evals"]["sycophancy"]}
    report["cells"] = [entry for entry in report["cells"] if entry["eval"] == "sycophancy"]
    without_choice(report)


def only_the_base(report: dict[str, Any]) -> None:
    report["cells"] = [entry for entry in report["cells"] if entry["k"] == 0]
    without_choice(report)


def fixed(report: dict[str, Any]) -> None:
    report["choice"] = {"k": 2.0, "fixed": True}
    report["merged"]["cells"] = []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_choice, ["No k was chosen: the recipe asked for none.", "Nothing was merged"]),
        (
            nothing_qualified,
            ["No strength qualified", "Every decrease costs too much.", "Nothing was merged"],
        ),
        (one_eval, ["No figure of behavior against capability", "0.314"]),
        (
            only_the_base,
            ["No figure of the effect against k", "0.417 [0.340, 0.501]", "there is no effect to report"],
        ),
        (fixed, ["k = 2 was fixed by the recipe", "The checkpoint was not evaluated as merged.", "fixed k"]),
        (lambda report: report.update(samples=None), ["No answers were generated."]),
        (lambda report: report.update(samples=[]), ["No answers were generated."]),
        (lambda report: report.update(vector=None), ["No weight vector was fitted."]),
        (lambda report: report.update(training=None, activation=None), ["No fine-tune was recorded."]),
        (lambda report: report.update(pairs=None), ["No pairs were recorded."]),
        (
            lambda report: report.update(environment=None, stages=[]),
            ["The machine was not recorded.", "No stage was timed."],
        ),
        (lambda report: report.update(recipe=None), ["The recipe was not recorded.", "unknown model"]),
        (lambda report: report["evals"].update(refusal=report["evals"]["agreement"]), ["refusal: not run."]),
    ],
)
def test_what_is_missing_is_said(
    report: dict[str, Any], render: Any, change: Callable[[dict[str, Any]], None], said: list[str]
) -> None:
    change(report)
    html, markdown = render(report)
    for words in said:
        assert words in html
        if words != "unknown model":
            assert words in markdown


def test_a_report_of_nothing_but_its_format_is_a_page_that_says_so(render: Any) -> None:
    html, markdown = render({"format": 1})
    for words in (
        "unnamed run",
        "Nothing was evaluated, so there is no result to report.",
        "No eval was run.",
        "No k was chosen",
        "Nothing was merged",
        "No answers were generated.",
        "No weight vector was fitted.",
        "No fine-tune was recorded.",
        "No pairs were recorded.",
        "The machine was not recorded.",
        "No stage was timed.",
        "The recipe was not recorded.",
        "No notes.",
    ):
        assert words in html
        assert words in markdown


def test_an_answer_that_is_empty_or_missing_is_said(report: dict[str, Any], render: Any) -> None:
    report["samples"][0]["answers"][0]["text"] = " \n"
    del report["samples"][1]["answers"][1]
    for text in render(report):
        assert "(empty answer)" in text
        assert "not generated" in text


def test_facts_that_are_null_are_left_out(report: dict[str, Any], render: Any) -> None:
    report["merged"] |= {"applied_fraction": None, "logits": None}
    for text in render(report):
        assert "change kept after rounding" not in text
        assert "most likely token" not in text
        assert "git revision" not in text
        assert "None" not in text.replace("revision: null", "")


def test_a_report_of_another_format_is_refused(report: dict[str, Any], tmp_path: Path) -> None:
    report["format"] = 3
    with pytest.raises(StageError, match=r"report: the report to be written has format 3\. Expected 1 or 2\."):
        write_report(report, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_load_code_is_python(example: dict[str, Any]) -> None:
    code = page.facts.load_code(example)
    compile(code, "load", "exec")
    assert "from transformers import AutoModelForCausalLM, AutoTokenizer" in code


def test_importing_the_report_loads_no_drawing_library() -> None:
    code = "import sys, weightsteer.report; print({'matplotlib', 'jinja2', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
