"""Experiments that are not a sweep of methods over one behavior: a file each, found by the name in a recipe's `study`.

A study file has `ABOUT` (a line), `Settings` (a StudySettings), `check(settings) -> list of lines`, which reads every
input without loading a model, and `run(settings, out) -> Document`, which does whatever is slow in stages below `out`,
so that a second run skips them.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsteer.recipe import StudySettings, find_plugin
from weightsteer.report import numbers
from weightsteer.report.document import Document, write_document
from weightsteer.stage import command, discard, locked, machine, run_stage, stage_digests, writing


@dataclass(frozen=True)
class Finding:
    """What a study left behind."""

    folder: Path
    document: Document


def check_study(settings: StudySettings) -> list[str]:
    """Read every input of a study without loading a model; what there is, in lines."""
    from weightsteer.models.reference import locate

    locate(settings.model.source)
    return find_plugin("studies", settings.study).check(settings)


def run_study(settings: StudySettings, out: str | Path | None = None) -> Finding:
    """Run a study into `out` (default: checkpoints/<name>), skipping finished stages, and write its report."""
    check_study(settings)
    out = Path(out) if out is not None else Path("checkpoints") / settings.name
    start = time.monotonic()
    with locked(out), writing(out):
        document = find_plugin("studies", settings.study).run(settings, out)
        document = replace(document, facts={**document.facts, **_facts(settings, time.monotonic() - start)})
        folder = out / "report"
        discard(folder)  # a view of the other stages, made anew when one of them is
        inputs = {"study": settings.model_dump(mode="json"), "stages": stage_digests(out)}
        run_stage(folder, inputs, lambda path: write_document(document, path))
    return Finding(out, document)


def _facts(settings: StudySettings, seconds: float) -> dict[str, Any]:
    ran = machine()
    return {
        "model": settings.model.source,
        "command": command(),
        "time": f"{numbers.duration(seconds)}, finished stages not counted",
        "machine": f"{ran['machine']}, {ran['cores']} cores, {ran['memory_gb']:g} GB",
        "versions": ", ".join(f"{name} {version}" for name, version in ran["versions"].items()),
        "seed": str(settings.seed),
    }
