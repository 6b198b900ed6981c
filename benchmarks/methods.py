"""The table of docs/methods.md: what each method of a finished experiment costs, and what holds it against the truth.

    python benchmarks/methods.py results/truth [--name demo] [--model MODEL] [--label planted]

reads the experiment's tables, and the benchmark files beside the logs of its jobs, and writes docs/methods/NAME.csv.
The table between `<!-- methods: NAME -->` and `<!-- end -->` in docs/methods.md is made of that. What the experiment
has not measured is left empty.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import icprobe
from icprobe import artifacts, paths
from icprobe.analysis import headline
from icprobe.errors import DataError, IcprobeError
from icprobe.formatting import estimate, fixed, number
from icprobe.tracking.environment import benchmark

DOCS = Path(__file__).parents[1] / "docs"
TRUTHS = ("lds", "removal", "auc")
COLUMNS = [
    *("model", "examples", "tasks", "method", "seconds", "operations", "gb"),
    *(f"{truth}{end}" for truth in TRUTHS for end in ("", "_low", "_high")),
    *("label", "spearman_length", "machine"),
]
MEBIBYTE = 1024**2


def measured(directory: str | Path, model: str | None = None, label: str = "planted") -> pd.DataFrame:
    """Reads an experiment's results: `COLUMNS`, a row for each method of its tables, NaN for what is not known.

    model: which, where the experiment has several. seconds, operations: those of frontier.csv. gb: the most memory, in
    10^9 bytes, that a job took on which the method's matrix rests, as Snakemake sampled it; without the job that puts
    shards together. lds: over the tasks. removal: what they lose without its best examples, in nats. auc: of the
    label's good values against all others. spearman_length: of the scores with the number of response tokens. machine:
    what its jobs computed on. Raises ArtifactError where there are no such results.
    """
    results = icprobe.load(directory)
    model = model or (results.models[0] if len(results.models) == 1 else None)
    known = results.tables(model)
    tables = {
        name: results.table(name, model) for name in ("lds", "frontier", "removal", "label_aucs") if name in known
    }
    # Scores of methods that are no longer asked for may lie beside the others.
    asked = [name for rows in tables.values() for name in rows["method"] if name not in headline.RIVALS]
    methods = [*dict.fromkeys(asked)] or results.methods(model)
    scores = results.scores(model, methods)
    found = pd.DataFrame(index=pd.Index(methods, name="method"), columns=[c for c in COLUMNS if c != "method"])
    found = found.assign(model=model, examples=len(scores), tasks=len(results.tasks), label=label)

    def take(rows: pd.DataFrame, **columns: str) -> None:
        rows = rows.drop_duplicates("method").set_index("method").reindex(methods)
        for column, source in columns.items():
            found[column] = rows[source]

    if "frontier" in tables:
        take(tables["frontier"], seconds="seconds", operations="operations")
    if "lds" in tables:
        take(headline.of_set(tables["lds"]), lds="lds", lds_low="low", lds_high="high")
    if "removal" in tables:
        take(headline.over_all_tasks(tables["removal"]), removal="loss", removal_low="low", removal_high="high")
    if "label_aucs" in tables:
        rows = headline.good_against_others(tables["label_aucs"])
        take(rows[rows["label"] == label], auc="auc", auc_low="low", auc_high="high")
    made = _makers(Path(directory))
    for method in methods:
        values = scores[f"score_{method}"]
        if values.nunique() > 1 and scores["n_target"].nunique() > 1:
            found.loc[method, "spearman_length"] = values.corr(scores["n_target"], method="spearman")
        matrix = paths.matrix(method).format(experiment=Path(directory).resolve().name, model=model)
        jobs = [(record, at) for record, at in _rests_on(matrix, made) if record["rule"] != "gather_attributions"]
        if jobs:
            peaks = pd.Series([benchmark(at)[1] for _, at in jobs])
            found.loc[method, "gb"] = peaks.max(skipna=False) * MEBIBYTE / 1e9
            found.loc[method, "machine"] = "; ".join(sorted({_machine(record["environment"]) for record, _ in jobs}))
    return found.reset_index()[COLUMNS]


Made = tuple[dict[str, Any], Path]  # the record of a job, and the path of its benchmark file


def _makers(directory: Path) -> dict[str, Made]:
    """{file: the job that made it, the last of them} by the records beside the logs of an experiment."""
    directory = directory.resolve()
    found = {}
    records = (directory.parents[1] / paths.LOGS / directory.name).rglob(f"*{paths.ENVIRONMENT}")
    for path in sorted(records, key=lambda path: path.stat().st_mtime):
        record = artifacts.read_json(path)
        beside = path.with_name(path.name.removesuffix(paths.ENVIRONMENT) + paths.BENCHMARK)
        found |= dict.fromkeys(record["outputs"], (record, beside))
    return found


def _rests_on(matrix: str, made: dict[str, Made]) -> list[Made]:
    """The jobs that made a matrix, its shards, and the matrices that it was computed from; none if one is not known."""
    if matrix not in made:
        return []
    folder, parts = matrix.partition("/attributions/")[0], []
    for file in made[matrix][0]["inputs"]:
        if file.startswith(f"{folder}/attributions/"):
            below = _rests_on(file, made)
            if not below:
                return []
            parts += below
    return [*parts, made[matrix]]


def _machine(facts: dict[str, Any]) -> str:
    """What a job computed on, in words."""
    device = facts.get("device", "cpu")
    threads = f"{facts['threads']} thread{'' if facts['threads'] == 1 else 's'}"
    return f"{facts['processor']}, {threads}" if device == "cpu" else str(device)


# --- as Markdown --------------------------------------------------------------------------------------------------


def table(rows: pd.DataFrame) -> str:
    """The table of docs/methods.md from the rows of a CSV file of `COLUMNS`: what stands between its markers."""
    first = rows.iloc[0]
    machines = sorted({name for cell in rows["machine"].dropna() for name in cell.split("; ")})
    on = f", on {'; '.join(machines)}" if machines else ""
    lines = [
        f"{first['model']}, {first['examples']} examples, {first['tasks']} tasks{on}:",
        "",
        "| method | seconds | 10¹² operations | GB | LDS | removal, nats "
        f"| AUC of {first['label']} | Spearman with length |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows.to_dict("records"):
        cells = [f"`{row['method']}`", number(row["seconds"]), number(row["operations"] / 1e12), number(row["gb"])]
        cells += [_estimate(row, truth) for truth in TRUTHS] + [fixed(row["spearman_length"])]
        lines.append("| " + " | ".join("" if cell == "–" else cell for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _estimate(row: dict[str, Any], truth: str) -> str:
    value, low, high = (row[f"{truth}{end}"] for end in ("", "_low", "_high"))
    return estimate(value, low, high) if low == low and high == high else fixed(value)


def _markers(name: str) -> re.Pattern:
    return re.compile(rf"(<!-- methods: {re.escape(name)} -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def between(page: str, name: str) -> str:
    """What stands between the markers of a table on the page. Raises DataError where they are not there."""
    if not (found := _markers(name).search(page)):
        raise DataError(
            f"docs/methods.md has no <!-- methods: {name} --> with an <!-- end --> behind; write both first."
        )
    return found[2]


def write(rows: pd.DataFrame, name: str, docs: Path = DOCS) -> None:
    """Writes methods/NAME.csv under `docs`, and the table in methods.md from what was written."""
    page, file = docs / "methods.md", docs / "methods" / f"{name}.csv"
    text = page.read_text(encoding="utf-8")
    between(text, name)
    artifacts.write_csv(file, rows)
    lines = table(artifacts.read_csv(file))
    page.write_text(_markers(name).sub(lambda found: found[1] + lines + found[3], text, count=1), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="the results of a finished experiment, such as results/truth")
    parser.add_argument("--name", default="demo", help="of the CSV file and the markers")
    parser.add_argument("--model", help="where the experiment has several")
    parser.add_argument("--label", default="planted", help="whose good values the AUC is of")
    known = parser.parse_args()
    try:
        write(measured(known.results, known.model, known.label), known.name)
    except IcprobeError as error:
        sys.exit(str(error))
