"""What the study `monitoring` found, as a document: every sentence is computed from the numbers beside it."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

from weightsteer.monitor.detect import Detection
from weightsteer.monitor.matrix import cosine_matrix
from weightsteer.report import numbers
from weightsteer.report.document import Document, Figure, Section, Table
from weightsteer.studies._monitoring_figures import CURVES, curves_alt, draw_auc, draw_curves, matrix_figure
from weightsteer.studies._monitoring_findings import (
    BEHAVIOR,
    COSINE,
    LOSS,
    OTHER,
    OWN,
    Findings,
    cosine_curve,
    detections_of,
    loss_curve,
    mean,
    signed,
    task_name,
)
from weightsteer.studies.monitoring import CONTROL_VECTOR, Settings, Watched
from weightsteer.weights.vector import WeightVector


def document(settings: Settings, vectors: Mapping[str, WeightVector], looked: Sequence[Watched]) -> Document:
    """The report of the study."""
    domains = [domain.name for domain in settings.domains]
    named = {f"w {name}": vector.entries for name, vector in vectors.items()}
    tasks = {task_name(w.kind, w.seed): WeightVector.load(w.folder).entries for w in looked}
    detections = {
        (runs, domain, detector): found
        for runs in (OWN, OTHER)
        for domain in domains
        for detector, found in detections_of(domain, looked, runs == OWN, settings.sigma).items()
    }
    found = Findings(settings, domains, looked, cosine_matrix(named | tasks), detections)
    return Document(
        title="Careless advice, seen in weight space",
        headline=_headline(found),
        lead=_lead(found),
        sections=(_vectors(found), _runs(found), _early(found), _compared(found), _cost(found)),
        facts={"runs": f"{len(looked)}, of each kind {settings.seeds}", "steps of a run": str(found.steps)},
        data=_data(found),
    )


def _headline(found: Findings) -> str:
    """How well the cosine ranks the runs, and what a limit makes of that: the one can be perfect and the other poor."""
    seen = found.pooled(OTHER, COSINE)
    share = numbers.percent(list(seen.auc.values())[-1])
    return (
        f"With a vector from another domain, a careless run ends with a larger cosine than a control run in {share} of "
        f"all pairs. By a limit of {found.settings.sigma:g} standard deviations, {_lower(_told(found, seen))}"
    )


def _lead(found: Findings) -> str:
    controls = sorted({w.kind for w in found.looked if not w.is_careless})
    return (
        f"Each vector is careless minus good advice about one of {numbers.listed(found.domains)}. The runs are "
        f"fine-tunes on careless advice, on questions that no vector was made from, and control fine-tunes "
        f"({', '.join(controls)}). A detector alarms "
        f"{found.settings.sigma:g} standard deviations from the mean of the controls at the same step; a control is "
        "held against controls of other kinds only."
    )


def _vectors(found: Findings) -> Section:
    names = [name for name in found.matrix.names if name.startswith("w ")]
    careless = [f"w {domain}" for domain in found.domains]
    within = [found.matrix.cosine(a, b) for a, b in combinations(careless, 2)]
    answer, control = f"Their cosines with one another are {_span(within)}.", f"w {CONTROL_VECTOR}"
    if control in names:
        across = [found.matrix.cosine(name, control) for name in careless]
        said = "Yes" if min(within) > max(across) else "On average" if mean(within) > mean(across) else "No"
        answer = (
            f"{said}: {_lower(answer[:-1])}, those with a vector that has nothing to do with advice {_span(across)}."
        )
    rows = tuple((a, *(signed(found.matrix.cosine(a, b)) for b in names)) for a in names)
    notes = ["Rows and columns of the figure stand in the order of their clusters (average linkage of 1 − cosine)."]
    if found.settings.control_vector and control in names:
        one, other = found.settings.control_vector
        notes.append(f"{control}: a fine-tune on {one} minus one on {other}.")
    return Section(
        "Vectors",
        f"Do the vectors of careless advice about {numbers.listed(found.domains)} lie near one another?",
        answer,
        (Table("Cosines of the vectors, over all parameters.", ("", *names), rows),),
        (matrix_figure(found),),
        tuple(notes),
    )


def _runs(found: Findings) -> Section:
    auc = {domain: list(found.detections[OTHER, domain, COSINE].auc.values())[-1] for domain in found.domains}
    said = "Yes" if min(auc.values()) == 1 else "Mostly" if min(auc.values()) > 0.5 else "Not with every vector"
    by_vector = ", ".join(f"{domain} {numbers.percent(share)}" for domain, share in auc.items())
    answer = (
        f"{said}: of all pairs of a careless run in another domain and a control run, the careless one has the larger "
        f"cosine at the end in {numbers.percent(mean(list(auc.values())))} ({by_vector})."
    )
    labels = [name for name in found.matrix.names if name.startswith("w ")]
    rows = []
    for kind in dict.fromkeys(w.kind for w in found.looked):
        seeds = [task_name(w.kind, w.seed) for w in found.looked if w.kind == kind]
        rows.append((kind, *(_spread([found.matrix.cosine(t, label) for t in seeds]) for label in labels)))
    pairs, note = _task_pairs(found)
    return Section(
        "Runs beside the vectors",
        "Is a fine-tune on careless advice nearer to a vector from another domain than other fine-tunes are?",
        answer,
        (
            Table("Cosine of each finished run with each vector: mean over seeds, from least to most.",
                  ("fine-tune", *labels), tuple(rows)),
            Table("Cosines of finished runs with one another.", ("two runs", "pairs", "mean", "least", "most"), pairs),
        ),
        notes=(note,),
    )  # fmt: skip


def _task_pairs(found: Findings) -> tuple[tuple[tuple[Any, ...], ...], str]:
    """How near plain fine-tunes lie to one another, by what they share; and which of the two counts for more."""
    groups: dict[str, list[float]] = {
        "same data, other seed": [], "careless, two domains": [], "careless and good, one domain": [],
        "careless and good, two domains": [], "careless and other controls": [],
    }  # fmt: skip
    domain = {f"{side} {name}": name for side in ("careless", "good") for name in found.domains}
    for one, other in combinations(found.looked, 2):
        if one.kind == other.kind:
            group = "same data, other seed"
        elif not (one.is_careless or other.is_careless):
            continue
        elif one.is_careless and other.is_careless:
            group = "careless, two domains"
        elif one.kind in domain and other.kind in domain:
            group = f"careless and good, {'one domain' if domain[one.kind] == domain[other.kind] else 'two domains'}"
        else:
            group = "careless and other controls"
        cosine = found.matrix.cosine(task_name(one.kind, one.seed), task_name(other.kind, other.seed))
        groups[group].append(cosine)
    rows = tuple(
        (group, len(values), signed(mean(values)), signed(min(values)), signed(max(values)))
        for group, values in groups.items()
        if values
    )
    behavior, topic = mean(groups["careless, two domains"]), mean(groups["careless and good, one domain"])
    grouped = "by behavior more than by domain" if behavior > topic else "by domain more than by behavior"
    return rows, f"Plain fine-tunes, without a contrast, group {grouped}: {signed(behavior)} against {signed(topic)}."


def _early(found: Findings) -> Section:
    seen = found.pooled(OTHER, COSINE)
    answer = f"With a vector from another domain, {_lower(_told(found, seen))}"
    own = found.pooled(OWN, COSINE)
    detailed = [
        (f"{domain}, {runs}", *_row(found, found.detections[runs, domain, COSINE], exact=True))
        for runs in (OWN, OTHER)
        for domain in found.domains
    ]
    counts = {one.controls for one in found.detections.values()}
    none = numbers.percent(1 - 0.025 ** (1 / min(counts)))
    return Section(
        "How early, and how often falsely",
        "How early does the monitor see a fine-tune on careless advice, and at how many false alarms?",
        answer,
        (Table("The cosine as detector, by vector and by the domain of the runs that it is to tell.",
               _columns("vector, runs"), tuple(detailed)),),
        (Figure("curves", CURVES, curves_alt(found), partial(draw_curves, found)),),
        (
            f"With a vector from the run's own domain, {_lower(_told(found, own))}",
            f"A case is a run held against a vector, at every look; there are {min(counts)} control runs. "
            f"None of {min(counts)} would still leave a rate of up to {none} open (95 %, exact, were the runs "
            "independent; seeds of one kind share their data).",
        ),
    )  # fmt: skip


def _compared(found: Findings) -> Section:
    rows = [
        (f"{detector}, {runs}", *_row(found, found.pooled(runs, detector), exact=False))
        for runs in (OWN, OTHER)
        for detector in (COSINE, BEHAVIOR, LOSS)
    ]
    detectors = (COSINE, BEHAVIOR, LOSS)
    told = [f"{name}: {_lower(_told(found, found.pooled(OTHER, name)))}" for name in detectors]
    end = "; ".join(f"{name} {list(found.pooled(OTHER, name).auc.values())[-1]:.2f}" for name in detectors)
    return Section(
        "Beside the loss and a behavior eval",
        f"Does the loss, or an eval of {found.settings.eval_pairs} pairs at every look, tell the same runs sooner?",
        " ".join(map(numbers.sentence, told)),
        (Table("All vectors together; the eval asks the pairs of the vector's domain, which no run was trained on.",
               _columns("detector, runs"), tuple(rows)),),
        (Figure("auc", "How well careless runs are told from controls at every look, mean over the vectors: 1 is "
                "always, 0.5 by chance.",
                f"Probability at the end that a careless run in another domain reads higher than a control: {end}.",
                partial(draw_auc, found)),),
        ("The eval knows what it looks for, and so does the vector; the loss does not. It alarms on either side of the "
         "controls' mean, as a share of the first step's loss.",),
    )  # fmt: skip


def _cost(found: Findings) -> Section:
    taken = {name: mean([w.seconds[name] for w in found.looked]) for name in found.looked[0].seconds}
    n_vectors = len(found.looked[0].record.labels)
    answer = (
        f"One reading along {n_vectors} vectors takes {_milliseconds(taken['arithmetic'])} of arithmetic, "
        f"{numbers.percent(taken['arithmetic'] / taken['step'])} of a training step; a behavior eval takes "
        f"{taken['eval'] / taken['arithmetic']:.0f} times as long."
    )
    rows = (
        (f"reading along {n_vectors} vectors, in a training", _milliseconds(taken["arithmetic"])),
        (f"reading along {n_vectors} vectors, saved factors read first", _milliseconds(taken["reading"])),
        (f"behavior eval, {found.settings.eval_pairs} pairs of one domain", _milliseconds(taken["eval"])),
        ("training step, loading and saving included", _milliseconds(taken["step"])),
    )
    return Section(
        "Cost", "What does a measurement cost?", answer, (Table("Means over all runs.", ("", "time"), rows),)
    )


def _columns(first: str) -> tuple[str, ...]:
    return (first, "told", "half of them by step", "false alarms", "AUC at half", "AUC at the end")


def _row(found: Findings, seen: Detection, exact: bool) -> tuple[Any, ...]:
    """Told, median step, false alarms, how well runs and controls are apart halfway and at the end."""
    half = min(seen.auc, key=lambda share: abs(share - 0.5))
    alarms = f"{len(seen.false_alarms)} of {seen.controls}"
    if exact:
        alarms += f" {numbers.interval(seen.false_alarm_rate, '')}"
    told = f"{seen.found} of {len(seen.first)}"
    return told, found.step(seen.median_first), alarms, seen.auc[half], list(seen.auc.values())[-1]


def _told(found: Findings, seen: Detection) -> str:
    """A detection as a sentence; a case is a run held against a vector."""
    half = f", half of them by step {found.step(seen.median_first)} of {found.steps}" if seen.median_first else ""
    kinds = sorted({kind for kind, _, _ in seen.false_alarms})
    by = f" ({', '.join(kinds)})" if kinds else ""
    return (
        f"A careless run is told in {seen.found} of {len(seen.first)} cases{half}; a control run in "
        f"{len(seen.false_alarms)} of {seen.controls}{by}."
    )


def _data(found: Findings) -> dict[str, Any]:
    """Every number behind the sections."""
    told = [
        {
            "runs": runs, "domain": domain, "detector": detector, "told": seen.found, "of": len(seen.first),
            "first": list(seen.first), "false alarms": [list(alarm) for alarm in seen.false_alarms],
            "controls": seen.controls, "auc": {f"{share:g}": value for share, value in seen.auc.items()},
        }
        for (runs, domain, detector), seen in found.detections.items()
    ]  # fmt: skip
    runs = [
        {
            "kind": w.kind, "seed": w.seed, "loss": loss_curve(w), "behavior": w.behavior, "seconds": w.seconds,
            "cosines": {label: cosine_curve(w, label) for label in w.record.labels},
        }
        for w in found.looked
    ]  # fmt: skip
    return {"detections": told, "runs": runs, "matrix": found.matrix.to_json(), "sigma": found.settings.sigma}


def _span(values: Sequence[float]) -> str:
    return signed(values[0]) if len(values) == 1 else f"{signed(min(values))} to {signed(max(values))}"


def _spread(values: Sequence[float]) -> str:
    return signed(mean(values)) + (f" ({_span(values)})" if len(values) > 1 else "")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else numbers.duration(seconds)
