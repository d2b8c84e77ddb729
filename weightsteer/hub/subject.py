"""What is known of a folder to publish: its base, the changes in it, the recipe and the report of the run behind it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from weightsteer.errors import HubError
from weightsteer.hub.parcel import FIGURES, RECIPE, Kind, kind_of, recipe_text, scrub
from weightsteer.merging.provenance import STEERING, Provenance
from weightsteer.models.safetensors_file import load_json
from weightsteer.stage import digest

HUB_ID = re.compile(r"[\w][\w.-]*(?:/[\w][\w.-]*)?")
# What the card shows of a report, in this order.
SHOWN_FIGURES = ("tradeoff", "effects")


@dataclass(frozen=True)
class BaseModel:
    """The model that was changed."""

    source: str
    """As it was asked for, without the path of a local one."""
    hub_id: str | None
    """None when it is not known to be on a hub."""
    revision: str | None
    fingerprint: str | None
    folder: Path | None
    """Where a local one lies, if it still does."""

    @property
    def is_gguf(self) -> bool:
        return self.source.startswith("package:") or self.source.endswith(".gguf")


@dataclass(frozen=True)
class Change:
    """One change of the base's weights, and how strongly it was added; k is None for a vector that is not yet."""

    role: str
    k: float | None
    info: Mapping[str, Any]


@dataclass(frozen=True)
class RunReport:
    """The report of the run that made the folder."""

    content: Mapping[str, Any]
    figures: Mapping[str, Path]
    """By their path in the repository."""


@dataclass(frozen=True)
class Subject:
    """Everything a card tells, with no path of this machine in any text."""

    kind: Kind
    base: BaseModel
    changes: tuple[Change, ...]
    digest: str
    """Equal for folders of equal weights."""
    recipe: str | None
    report: RunReport | None
    notes: tuple[str, ...]
    """What was found and not used."""
    provenance: Provenance | None = None
    dtype: str | None = None
    rank: int | None = None
    """Largest rank of an adapter or a vector; None when PEFT cannot load it."""
    peft: str = "complete"
    """Whether PEFT's view of a vector is the whole vector; of a checkpoint, the first one inside."""


def read_subject(folder: Path) -> Subject:
    """What `folder` and the run around it tell; a HubError when it is not a checkpoint, a vector or an adapter."""
    kind = kind_of(folder)
    details = _checkpoint(folder) if kind == "checkpoint" else _adapter(folder)
    run = next((place for place in (folder.parent, folder.parent.parent) if (place / "report").is_dir()), None)
    report, note = _report(run, details["base"], details["changes"]) if run else (None, None)
    recipe = next((path for path in (folder / RECIPE, run and run / RECIPE) if path and path.is_file()), None)
    if recipe is not None and (recipe.parent == folder or report is not None):
        text = recipe_text(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    else:
        text = None
    return Subject(kind=kind, recipe=text, report=report, notes=(note,) if note else (), **details)


def _checkpoint(folder: Path) -> dict[str, Any]:
    provenance = Provenance.read(folder)
    config = load_json(folder / "config.json")
    base = provenance.base
    described = folder / STEERING / "0" / "vector.json"
    return {
        "base": _base(base["source"], base["revision"], base["fingerprint"]),
        "changes": tuple(Change(v["role"], v["k"], scrub(v["info"])) for v in provenance.vectors),
        "digest": digest(provenance.job),
        "provenance": provenance,
        "peft": load_json(described).get("peft") if described.is_file() else "unknown",
        "dtype": provenance.dtype or config.get("dtype") or config.get("torch_dtype"),
    }


def _adapter(folder: Path) -> dict[str, Any]:
    """A vector, or an adapter that was exported or trained."""
    from weightsteer.weights.adapter_writer import base_model_of
    from weightsteer.weights.vector import WeightVector

    vector = WeightVector.load(folder)
    exported = folder / "export.json"
    described = load_json(folder / "vector.json") if (folder / "vector.json").is_file() else {}
    record = load_json(exported) if exported.is_file() else {}
    info = record.get("info", vector.info)
    named = folder / "adapter_config.json"
    config = load_json(named) if named.is_file() else None
    recorded = info.get("base_source")
    source = recorded or base_model_of(info) or (config or {}).get("base_model_name_or_path") or "unknown"
    ranks = [config.get("r", 0), *(config.get("rank_pattern") or {}).values()] if config else []
    return {
        "base": _base(source, info.get("base_revision"), record.get("base", vector.base), bool(recorded)),
        "changes": (Change("vector", None if described else float(record.get("k", 1.0)), scrub(info)),),
        "digest": vector.digest,
        "rank": max(ranks, default=None),
        "peft": described.get("peft", "complete"),
    }


def _base(source: str, revision: str | None, fingerprint: str | None, recorded: bool = True) -> BaseModel:
    """The base as it was asked for. Where weightsteer `recorded` it, what came from a hub has a revision.

    PEFT records a name alone: OWNER/NAME is taken for a hub's unless there is a folder of that name.
    """
    folder = Path(source) if Path(source).is_dir() else None
    on_hub = bool(HUB_ID.fullmatch(source)) and (revision is not None or ("/" in source and not (recorded or folder)))
    return BaseModel(scrub(source, "source"), source if on_hub else None, revision, fingerprint, folder)


def _report(run: Path, base: BaseModel, changes: tuple[Change, ...]) -> tuple[RunReport | None, str | None]:
    """The run's report if it tells of this very change, else why not."""
    path = run / "report" / "report.json"
    if not path.is_file():
        return None, None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        told = (report["environment"]["fingerprint"], report["pairs"]["digest"])
        chosen = (report["choice"] or {}).get("k")
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(
            f"{path}: not a report that can be read ({type(error).__name__}: {error}). Expected what weightsteer "
            "wrote. Run the recipe again, or move the folder away from this report"
        ) from None
    change = changes[0] if len(changes) == 1 else None
    made = (base.fingerprint, change and change.info.get("pairs_digest"))
    if change is None or told != made or change.k not in (None, chosen):
        return None, "The report beside it tells of another base, other pairs or another k: the card leaves it out"
    figures = {f"{FIGURES}/{name}.png": run / "report" / FIGURES / f"{name}.png" for name in SHOWN_FIGURES}
    return RunReport(report, {name: file for name, file in figures.items() if file.is_file()}), None
