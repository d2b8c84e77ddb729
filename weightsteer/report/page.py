"""Writes a report's folder: report.json, report.html (one self-contained file), report.md and the figures."""

import base64
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from weightsteer.errors import StageError
from weightsteer.report import compared, equal_kl, facts, interference, numbers, pareto, tables
from weightsteer.report.figures import Picture, draw_figures
from weightsteer.report.findings import chosen_method, part
from weightsteer.report.verdict import headline, status

FORMATS = (1, 2)


def write_report(report: Mapping[str, Any], out: Path) -> None:
    """Write report.json, report.html, report.md and figures/*.png into `out`.

    A part of the report that is null or absent is named as missing on the page; a number that is not finite
    is null in report.json. A report of another format is a StageError.
    """
    if report.get("format") not in FORMATS:
        raise StageError(
            f"{out}: the report to be written has format {report.get('format')!r}. Expected "
            f"{' or '.join(map(str, FORMATS))}. "
            "Render it with the version of weightsteer that made it, or run the recipe again"
        )
    figures = draw_figures(report)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in figures.items():
        (folder / f"{name}.png").write_bytes(picture.light)
    text = json.dumps(finite(report), indent=2, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    for name in ("report.html", "report.md"):
        (out / name).write_text(_render(name, report, figures), encoding="utf-8")


def render(template: str, **context: Any) -> str:
    """A template of this room, as HTML or Markdown by its name."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("weightsteer.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=as_markdown if template.endswith(".md") else lambda value: value,
    )
    environment.filters.update(
        k=numbers.strength, intervals=_set_intervals, data_uri=_data_uri, fenced=as_fenced, yaml=_yaml,
    )  # fmt: skip
    return environment.get_template(f"{template}.j2").render(**context)


def _render(name: str, report: Mapping[str, Any], figures: Mapping[str, Picture]) -> str:
    return render(
        name,
        report=report,
        name=report.get("name") or "unnamed run",
        headline=headline(report),
        status=status(report),
        part=lambda name: part(report, name),
        chosen_method=chosen_method(report),
        facts=facts,
        tables=tables,
        compared=compared,
        equal_kl=equal_kl,
        interference=interference,
        pareto=pareto,
        figures=figures,
    )


def finite(value: Any) -> Any:
    """The same with null for every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _set_intervals(text: str) -> Any:
    """A sentence with its intervals marked up, so that they keep together and step back behind the words."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\[[^\[\]]*\d, [^\[\]]*\d\]", r'<span class="interval">\g<0></span>', str(escape(text))))


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100).rstrip()


# What Markdown would read as markup; underscores only where they are not inside a word. Intervals of numbers,
# "[−0.1, +0.2]", stay as they are, as long as nothing after them makes them a link.
_INTERVAL = r"(?P<interval>\[[−+]?[\d.]+, [−+]?[\d.]+\](?![(\[:]))"
_MARKUP = r"(?P<markup>[\\`*{}\[\]#|~]|(?<!\w)_|_(?!\w))"
# What a reader may turn into a link, a formula or a mention.
_ACTIVE = r"(?P<active>://|www\.|[$@])"


def as_markdown(value: Any) -> Any:
    """Any text as Markdown that shows just that text, also inside a table cell; markup of ours passes."""
    from markupsafe import Markup

    if hasattr(value, "__html__"):
        return value
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    def literal(found: re.Match[str]) -> str:
        if found["markup"]:
            return "\\" + found["markup"]
        return found["interval"] or "".join(f"&#{ord(character)};" for character in found["active"])

    text = re.sub(f"{_INTERVAL}|{_MARKUP}|{_ACTIVE}", literal, text)
    return Markup(re.sub(r"\s*\n\s*", "<br>", text.strip()))


def as_fenced(text: str, language: str = "") -> Any:
    """A code block whose fence is longer than any run of backticks in it."""
    from markupsafe import Markup

    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")
