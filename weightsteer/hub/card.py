"""The model card: metadata that a hub understands and a text that a reader can trust."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from weightsteer import __version__
from weightsteer.errors import HubError
from weightsteer.hub.parcel import scrub
from weightsteer.hub.subject import Change, RunReport, Subject
from weightsteer.report import findings, numbers, tables
from weightsteer.report.page import as_fenced, as_markdown
from weightsteer.report.tradeoff import describe_tradeoff
from weightsteer.report.verdict import headline

# Names of https://huggingface.co/docs/hub/repositories-licenses, by words that only their text has.
LICENSE_TEXTS = {
    "apache-2.0": ("Apache License", "Version 2.0"),
    "mit": ("Permission is hereby granted, free of charge", "THE SOFTWARE IS PROVIDED"),
    "gemma": ("Gemma Terms of Use",),
}


@dataclass(frozen=True)
class License:
    """The base's license, and where that is known from."""

    id: str
    stated_by: str
    name: str | None = None
    link: str | None = None


class Figure(NamedTuple):
    """A picture of the report, as the card shows it."""

    path: str
    alt: str
    caption: str


UNKNOWN = License("unknown", "neither a card of the base nor a license file states one")


def model_card(subject: Subject, repo_id: str, license: License, verified: str, branch: str | None = None) -> str:
    """README.md of the repository `repo_id`: YAML metadata, then the text. `verified` says how it was checked."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=as_markdown,
    )
    environment.filters.update(k=numbers.strength, fenced=as_fenced, percent=numbers.percent)
    report = subject.report
    text = environment.get_template("card.md.j2").render(
        subject=subject,
        base=subject.base,
        provenance=subject.provenance,
        repo_id=repo_id,
        branch=branch,
        license=license,
        behavior=_behavior(subject),
        facts=_facts(subject, verified),
        changes=named_changes(subject),
        pairs=_pairs(subject),
        headline=headline(report.content) if report else None,
        description=report.content.get("description") if report else None,
        results=_results(subject, report) if report else None,
        evals=_evals(report) if report else [],
        figures=_figures(report) if report else [],
        notes=(report.content.get("notes") or []) if report else [],
        place=subject.base.source if subject.base.source.startswith("package:") else _place(subject),
        loading=loading_code(subject, repo_id, branch),
        version=__version__,
    )
    return f"---\n{yaml.safe_dump(metadata(subject, license), sort_keys=False, allow_unicode=True)}---\n\n{text}"


def metadata(subject: Subject, license: License) -> dict[str, Any]:
    """The card's metadata, in the words of https://huggingface.co/docs/hub/model-cards."""
    checkpoint = subject.kind == "checkpoint"
    library = "transformers" if checkpoint else "peft" if subject.rank else "weightsteer"
    found: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "license": license.id}
    if license.id == "other":
        found |= {"license_name": license.name or "license-of-the-base"}
        found |= {"license_link": license.link} if license.link else {}
    if subject.base.hub_id:
        relation = ("merge" if len(subject.changes) > 1 else "finetune") if checkpoint else "adapter"
        found |= {"base_model": subject.base.hub_id, "base_model_relation": relation}
    tags = ["weightsteer", "weight-steering", *(["lora"] if subject.rank else []), _behavior(subject)]
    found["tags"] = list(dict.fromkeys(tag for tag in tags if tag))
    return found


def find_license(subject: Subject, folder: Path) -> License | None:
    """What the base's card or a license file says, in `folder` or where a local base lies; None if nothing does."""
    places = [(folder, "BASE_README.md")] + ([(subject.base.folder, "README.md")] if subject.base.folder else [])
    for place, card in places:
        if (place / card).is_file():
            stated = card_metadata((place / card).read_text(encoding="utf-8", errors="replace"))
            if license := license_of(stated, subject.base.hub_id):
                return license
    for place, _ in places:
        for path in sorted(place.glob("LICENSE*")):
            return _license_of_text(path.read_text(encoding="utf-8", errors="replace"), path.name)
    return None


def card_metadata(card: str) -> Mapping[str, Any]:
    """The YAML in front of a model card; empty when there is none that can be read."""
    block = re.match(r"\s*---\s*\n(.*?)\n---\s*\n", card, re.DOTALL)
    try:
        found = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def license_of(stated: Mapping[str, Any], hub_id: str | None) -> License | None:
    """The license that the metadata of the base's card names."""
    id, link = stated.get("license"), stated.get("license_link")
    if not isinstance(id, str) or id == UNKNOWN.id:
        return None
    if link and "://" not in link:
        link = f"https://huggingface.co/{hub_id}/blob/main/{link}" if hub_id else None
    return License(id, "the base's model card", stated.get("license_name"), link)


def _license_of_text(text: str, name: str) -> License:
    for id, words in LICENSE_TEXTS.items():
        if all(word in text for word in words):
            return License(id, f"the base's file {name}")
    return License("other", f"the base's file {name}", link=name)


def _facts(subject: Subject, verified: str) -> list[tuple[str, str]]:
    """The table at the top: name and text of everything that is known."""
    base, provenance = subject.base, subject.provenance
    kept = provenance.applied.get("share") if provenance else None
    facts = {
        "base model": base.source + (", a GGUF file with its weights dequantised" if base.is_gguf else ""),
        "revision of the base": base.revision,
        "fingerprint of the base": base.fingerprint,
        "formula": _formula(subject),
        **{
            f"k of {symbol}": numbers.strength(change.k)
            for symbol, change in named_changes(subject)
            if change.k is not None
        },
        "scaled by depth and module": provenance.scale if provenance else None,
        "stored as": subject.dtype,
        "change kept after rounding": None if kept is None else numbers.percent(kept),
        "largest rank": subject.rank,
        "digest": subject.digest,
        "checked": verified,
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def named_changes(subject: Subject) -> list[tuple[str, Change]]:
    """Each change with its symbol in the formula: w a vector, a a task adapter, numbered if there are several."""
    several = len(subject.changes) > 1
    return [
        (("a" if change.role == "adapter" else "w") + (str(number) if several else ""), change)
        for number, change in enumerate(subject.changes)
    ]


def _formula(subject: Subject) -> str:
    """What was computed, with the k of each change."""
    if subject.kind != "checkpoint":
        return "W′ = W + k · w" if subject.changes[0].k is None else "W′ = W + B A"
    terms = [f"({numbers.strength(change.k)}) · {symbol}" for symbol, change in named_changes(subject)]
    return f"W′ = round(W + {' + '.join(terms)})"


def loading_code(subject: Subject, repo_id: str, branch: str | None) -> dict[str, tuple[str, str]]:
    """Library -> (language, code that loads the repository with it)."""
    at = f', revision="{branch}"' if branch else ""
    if subject.kind == "checkpoint":
        serve = f"vllm serve {repo_id}" + (f" --revision {branch}" if branch else "")
        whole = {"transformers": ("python", _chat(repo_id, at)), "vLLM": ("sh", serve)}
        return whole | _peft_part(subject, repo_id, at)
    return {**_peft(subject, repo_id, at), **_vllm_adapter(subject, repo_id)}


def _chat(repo_id: str, at: str) -> str:
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo_id}"{at})
model = AutoModelForCausalLM.from_pretrained("{repo_id}"{at}, dtype="auto")
chat = [{{"role": "user", "content": "I think tea is better than coffee. Do you agree?"}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""


def _place(subject: Subject) -> str:
    """The base in code that the reader runs: its id, or a path to be filled in."""
    return subject.base.hub_id or "path/to/" + re.sub(r"^package:|/.*", "", subject.base.source)


def _load_base(subject: Subject) -> str:
    base = subject.base
    at = f', revision="{base.revision}"' if base.hub_id and base.revision else ""
    where = f'"{base.hub_id}"{at}' if base.hub_id else f'"{_place(subject)}"'
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({where}, dtype="auto")"""


def _peft_part(subject: Subject, repo_id: str, at: str) -> dict[str, tuple[str, str]]:
    """The vector inside a checkpoint is an adapter of its base."""
    if len(subject.changes) != 1 or subject.peft != "complete" or (subject.provenance and subject.provenance.scale):
        return {}
    k = subject.changes[0].k
    return {
        "PEFT, on the base, at any strength": (
            "python",
            f"""{_load_base(subject)}
model = PeftModel.from_pretrained(model, "{repo_id}", subfolder="steering/0"{at})

from peft.helpers import rescale_adapter_scale

with rescale_adapter_scale(model, multiplier={k}):  # any k; {k} is what the checkpoint holds
    ...""",
        )
    }


def _peft(subject: Subject, repo_id: str, at: str) -> dict[str, tuple[str, str]]:
    if subject.rank is None:
        return {}
    code = f'{_load_base(subject)}\nmodel = PeftModel.from_pretrained(model, "{repo_id}"{at})'
    if subject.changes[0].k is not None:
        return {"transformers and PEFT": ("python", code)}
    k = _chosen_k(subject)
    dial = f"""

from peft.helpers import rescale_adapter_scale

with rescale_adapter_scale(model, multiplier={k}):  # k; without this block it is 1
    ..."""
    return {"transformers and PEFT": ("python", code + dial)}


def _vllm_adapter(subject: Subject, repo_id: str) -> dict[str, tuple[str, str]]:
    from weightsteer.weights.export import SERVED_RANKS

    if subject.rank is None or subject.peft != "complete":
        return {}
    base, name = _place(subject), repo_id.split("/")[1]
    rank = next((rank for rank in SERVED_RANKS if rank >= subject.rank), None)
    if rank is None:
        return {}
    serve = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={repo_id}"
    if subject.changes[0].k is None:
        serve = f"# at k = 1; `weightsteer export` writes an adapter with another k folded in\n{serve}"
    return {"vLLM": ("sh", serve)}


def _chosen_k(subject: Subject) -> float:
    chosen = subject.report and (subject.report.content.get("choice") or {}).get("k")
    return float(chosen) if chosen is not None else 1.0


def _behavior(subject: Subject) -> str | None:
    """What the change is about, when its makers said so and it was one thing."""
    told = {change.info.get("behavior") for change in subject.changes} - {None}
    behavior = told.pop() if len(told) == 1 else None
    return re.sub(r"\.ya?ml$", "", scrub(behavior, "behavior")) if isinstance(behavior, str) else None


def _pairs(subject: Subject) -> dict[str, Any]:
    """Where the contrast pairs came from, how many there were, and their digest."""
    if subject.report:
        return scrub(subject.report.content["pairs"])
    digest = subject.changes[0].info.get("pairs_digest")
    return {"digest": digest} if digest and len(subject.changes) == 1 else {}


def _results(subject: Subject, report: RunReport) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the card's table: the checkpoint against its base, or the vector at every k."""
    content = report.content
    if subject.kind == "checkpoint":
        rows = [
            [
                f"{label} ({_count(content, label.split('.')[0], 'merged')})",
                *(_entry(entry) for entry in (base, released)),
            ]
            for label, (base, _, released) in tables.merged_rows(content)
        ]
        return ["eval", "base", "this checkpoint (change from the base)"], rows
    shown = [table for table in tables.eval_tables(content) if "weights" in table.methods]
    ks = list(dict.fromkeys(row.k for table in shown for row in table.rows))
    cells = {
        (table.name, row.k): row.entries[table.methods.index("weights")] if row.entries else table.base
        for table in shown
        for row in table.rows
    }
    head = ["k", *(f"{table.name} ({_count(content, table.name, 'weights')})" for table in shown)]
    return head, [[k, *(_entry(cells.get((table.name, k))) for table in shown)] for k in ks]


def _count(report: Mapping[str, Any], eval: str, method: str) -> str:
    """How many items the numbers of one eval are means of."""
    counts = sorted({c["n"] for c in findings.cells(report) if c["eval"] == eval and c["method"] in ("base", method)})
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"


def _evals(report: RunReport) -> list[tuple[str, str]]:
    """Name of each eval and how its number is to be read."""
    described = findings.part(report.content, "evals").items()
    return [(name, numbers.sentence(one.get("reads") or "not described")) for name, one in described]


def _entry(entry: tables.Entry | None) -> str:
    if entry is None:
        return "–"
    return " ".join(part for part in (entry.level, entry.change and f"({entry.change})", entry.note) if part)


def _figures(report: RunReport) -> list[Figure]:
    told = describe_tradeoff(report.content) or ("", "")
    texts = {
        "tradeoff": told,
        "effects": (
            "Change from the base against k, one panel per eval",
            "Effect against k: change from the base with 95 % intervals as bands.",
        ),
    }
    return [Figure(path, *texts[Path(path).stem]) for path in report.figures]


def check_metadata(card: str) -> None:
    """A HubError unless the hub's client reads the card's metadata as they were meant."""
    from huggingface_hub import ModelCard

    meant = card_metadata(card)
    found = ModelCard(card).data.to_dict()
    if found != dict(meant):
        raise HubError(f"README.md: its metadata read as {found}. Expected {meant}. Please report this")
