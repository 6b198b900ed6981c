"""The report of an experiment: one HTML file that opens from disk, needs no network and fetches nothing.

What is read stands in the page itself (headline, tables, figures, examples), so that it prints and needs no script;
the explorer, its table (DataTables, from the package itables) and its charts (Vega, from vl-convert) are inlined.

Texts of the data are never markup: Jinja2 escapes them, JSON is embedded without `<`, `>` and `&`, the page's script
writes textContent only, and a content security policy lets no other script run and nothing be loaded.
"""

import base64
import functools
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import vl_convert
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from icprobe import charts
from icprobe.artifacts import write_text
from icprobe.binning import bins, threshold_of
from icprobe.errors import DataError, ScoreError
from icprobe.statistics import label_aucs, widen

logger = logging.getLogger(__name__)

Source = str | Path | pd.DataFrame  # a parquet or CSV file, or the table itself

DC_TITLE = "{http://purl.org/dc/elements/1.1/}title"
TEXT_FIELDS = ("instruction", "input", "output")
EXPLORED_EXAMPLES = 5_000  # what the explorer stays fluid with
EXPLORED_BYTES = 18_000_000  # texts and matrices in the page; the rest of 25 MB is libraries, figures, tables


@dataclass(frozen=True)
class ModelInputs:
    """What the experiment computed with one model. A table that is None or has no rows is reported as absent.

    Every `Source` is a path (.parquet or .csv) or a DataFrame with the same columns.
    """

    scores: Mapping[str, Source]  # method -> id, score; the order of the methods is that of the report
    attributions: Mapping[str, Source] = field(default_factory=dict)  # method -> id, one column per task; or id, score
    lengths: Source | None = None  # id, n_query, n_target (tokens)
    correlations: Source | None = None  # [model], method_a, method_b, statistic, value, low, high, interval, n
    overlaps: Source | None = None  # [model], method, bin, n, n_overlap, overlap, chance
    win_rates: Source | None = None  # [model], method, bin, subset, seed, n, win_rate, ..., n_draws
    label_aucs: Source | None = None  # [model], label, value, method, auc, n_positive, n_negative; absent: computed
    figures: Sequence[str | Path] = ()  # SVG files; the caption is the file's dc:title or its name


class RuleRun(NamedTuple):
    """One job, or one rule: several rows of one rule are summed (seconds) and maximised (peak_mb)."""

    rule: str
    seconds: float | None = None  # wall clock
    peak_mb: float | None = None  # resident memory, MB
    needs: Sequence[str] = ()  # names of the rules whose output it reads


def build(
    output: str | Path,
    experiment: str,
    config_text: str,
    models: Mapping[str, ModelInputs],
    train: pd.DataFrame,
    tasks: pd.DataFrame,
    labels: Sequence[str],
    sound_labels: Mapping[str, Sequence[str]],
    top: int = 20,
    environment: Mapping[str, Any] | None = None,
    dag: Iterable[RuleRun | tuple] | None = None,
) -> None:
    """Writes the report of one experiment to `output`, atomically; the same inputs give the same bytes.

    experiment: its name. config_text: the configuration as text, shown as it is. models: name -> what was computed.
    train, tasks: data/train.parquet and data/tasks.parquet (`id`, `instruction`, `input`, `output`, label columns).
    labels: label columns of train; absent ones are skipped. sound_labels: label -> values that mark good examples, for
    the AUC. top: examples shown as best and as worst of each method. environment: name -> value (versions, device,
    dtype, threads, commit); mappings within it become rows of their own. dag: `RuleRun` rows, or tuples (rule, seconds,
    peak MB, rules that it needs), times None where not measured; None leaves the picture out.

    Raises ScoreError where scores or matrices have ids that train lacks or a matrix has a task that tasks lacks,
    DataError where a file cannot be read or train lacks a text column.
    """
    for name, table in (("train", train), ("tasks", tasks)):
        if missing := [column for column in ("id", *TEXT_FIELDS) if column not in table.columns]:
            raise DataError(f"report: the {name} table lacks the column {missing[0]!r}; it has {', '.join(table)}.")
    train = train.assign(id=train["id"].astype(str)).reset_index(drop=True)
    tasks = tasks.assign(id=tasks["id"].astype(str)).reset_index(drop=True)
    labels = [label for label in labels if label in train.columns]
    experiments = [_Model(name, inputs, train, labels, sound_labels, top) for name, inputs in models.items()]

    explored = _explored(experiments, train, tasks, labels)
    data = {
        "labels": labels,
        "examples": {
            "id": train["id"].iloc[explored].tolist(),
            **{name: _texts(train[name]).iloc[explored].tolist() for name in TEXT_FIELDS},
            "labels": {label: _texts(train[label]).iloc[explored].tolist() for label in labels},
        },
        "tasks": {"id": tasks["id"].tolist(), **{name: _texts(tasks[name]).tolist() for name in TEXT_FIELDS}},
        "models": {model.name: model.explorer(explored, tasks) for model in experiments},
    }
    specifications = {"scatter": charts.scatter(), "effects": charts.effects()}
    for number, model in enumerate(experiments):
        specifications |= model.charts(number)
    runs = _rule_runs(dag)
    if runs is not None:
        specifications["dag"] = charts.dag(runs.drop(columns="needs"), _edges(runs))

    scripts = _scripts()
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    page = _environment().get_template("report.html.jinja")
    text = page.render(
        experiment=experiment,
        models=experiments,
        n_examples=len(train),
        n_explored=len(explored),
        n_tasks=len(tasks),
        labels=labels,
        sound_labels=sound_labels,
        top=top,
        config_text=config_text,
        environment=_flat(environment or {}),
        artifacts=_artifacts(runs),
        has_dag=runs is not None,
        statistics=charts.STATISTICS,
        policy=" ".join(
            [
                "default-src 'none';",
                "script-src",
                *(f"'sha256-{digest}'" for digest in hashes),
                "; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
            ]
        ),
        styles=[Markup(style) for style in _styles()],
        scripts=[Markup(script) for script in scripts],
        data=Markup(embedded_json(data)),
        specifications=Markup(embedded_json(specifications)),
    )
    write_text(output, text)
    logger.info(
        "report: %s examples x %s tasks, %s models, %s examples to explore, %.1f MB",
        len(train),
        len(tasks),
        len(experiments),
        len(explored),
        len(text.encode()) / 1e6,
    )


# --- one model --------------------------------------------------------------------------------------------------


class _Model:
    """The tables of one model, in the form that the page shows."""

    def __init__(
        self,
        name: str,
        inputs: ModelInputs,
        train: pd.DataFrame,
        labels: Sequence[str],
        sound_labels: Mapping[str, Sequence[str]],
        top: int,
    ):
        self.name = name
        self.methods = list(inputs.scores)
        self._attributions = dict(inputs.attributions)
        self._train = train
        self.scores = {
            method: _scores(source, train["id"], f"{name}, {method}") for method, source in inputs.scores.items()
        }
        self.ranks = {method: _ranks(score) for method, score in self.scores.items()}
        lengths = _table(inputs.lengths)
        if lengths is not None and lengths["n_target"].isna().all():
            lengths = None  # no texts, or no model to count their tokens
        self.lengths = None if lengths is None else lengths.astype({"id": str}).set_index("id").reindex(train["id"])
        self.correlations = self._own(inputs.correlations)
        self.overlaps = self._own(inputs.overlaps)
        self.win_rates = self._own(inputs.win_rates)
        aucs = self._own(inputs.label_aucs)
        if aucs is None:
            sound = {label: values for label, values in sound_labels.items() if label in labels}
            aucs = label_aucs(self.scores, train[["id", *labels]], sound)
        self.aucs = aucs if len(aucs) else None
        self.figures = [_figure(Path(path)) for path in inputs.figures]
        self.best, self.worst = {}, {}
        for method, ranks in self.ranks.items():
            evaluated = ranks.dropna().astype(int).sort_values()
            self.best[method] = list(evaluated.index[:top])
            self.worst[method] = list(evaluated.index[::-1][:top])

    def _own(self, source: Source | None) -> pd.DataFrame | None:
        """The rows of a table that are of this model; None where there are none."""
        table = _table(source)
        if table is None:
            return None
        if "model" in table.columns:
            table = table[table["model"] == self.name]
        return table.reset_index(drop=True) if len(table) else None

    # --- for the template

    def headline(self) -> list[str]:
        """The correlation of icp and influence in words, with what the interval says about it."""
        pair = ("icp", "influence")
        found = {}
        if self.correlations is not None:
            for row in self.correlations.itertuples():
                if {row.method_a, row.method_b} == set(pair):
                    found[row.statistic] = row
        if "spearman" not in found:
            return ["The correlation of icp and influence was not computed: this experiment lacks one of the two."]
        plain = found["spearman"]
        if plain.value != plain.value:
            return ["The correlation of icp and influence is undefined: one of the two scores is constant."]
        sentences = [
            f"Over {count(plain.n)} examples, icp and influence have a Spearman correlation of "
            f"{fixed(plain.value)} (95% interval {fixed(plain.low)} to {fixed(plain.high)}, {plain.interval}). "
            + _reading(plain, "the two methods rank examples")
        ]
        partial = found.get("spearman_partial_length")
        if partial is None or partial.value != partial.value:
            sentences.append("How much of this is owed to the length of the responses was not computed.")
        else:
            sentences.append(
                f"Given response length it is {fixed(partial.value)} (95% interval {fixed(partial.low)} to "
                f"{fixed(partial.high)}). " + _reading(partial, "among responses of equal length they still rank")
            )
        return sentences

    def auc_tables(self) -> list[dict[str, Any]]:
        """One table for each label: methods × what stands against the good value."""
        tables = []
        for label, rows in [] if self.aucs is None else self.aucs.groupby("label", sort=False):
            columns = list(dict.fromkeys(rows["value"].astype(str)))
            cells = {(row.method, str(row.value)): row for row in rows.itertuples()}
            methods = list(dict.fromkeys(rows["method"]))
            tables.append({"label": label, "columns": columns, "methods": methods, "cells": cells})
        return tables

    def correlation_rows(self) -> list[dict[str, Any]]:
        """One row for each pair of methods: statistic -> row of the table."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for row in self.correlations.itertuples():
            rows.setdefault((row.method_a, row.method_b), {})[row.statistic] = row
        return [{"a": a, "b": b, "n": next(iter(found.values())).n, "of": found} for (a, b), found in rows.items()]

    def interval_kind(self) -> str:
        return " and ".join(sorted(set(self.correlations["interval"].astype(str))))

    def overlap_bins(self) -> dict[str, float]:
        """bin -> overlap expected by chance."""
        return {row.bin: row.chance for row in self.overlaps.itertuples()}

    def overlap_rows(self) -> dict[str, dict[str, Any]]:
        """method -> bin -> row of the table."""
        rows: dict[str, dict[str, Any]] = {}
        for row in self.overlaps.itertuples():
            rows.setdefault(row.method, {})[row.bin] = row
        return rows

    def overall_win_rates(self) -> list[Any]:
        """The rows over all subsets and seeds; every row where none says so."""
        table = self.win_rates
        overall = table[(table["subset"].astype(str) == "overall") & (table["seed"].astype(str) == "all")]
        return list((overall if len(overall) else table).itertuples())

    def charts(self, number: int) -> dict[str, dict[str, Any]]:
        """Name -> specification of this model's charts."""
        found = {}
        if self.correlations is not None:
            table = self.correlations
            drawn = [method for method in self.methods if method in {*table["method_a"], *table["method_b"]}]
            found[f"heat-map-{number}"] = charts.heat_map(table, drawn, self.name)
        if self.win_rates is not None:
            rows = pd.DataFrame(self.overall_win_rates())
            rows = rows[rows["n"] > 0]
            if len(rows):
                conditions = [
                    "all data" if row.bin == "all" else f"{row.method} {bin_label(row.bin)}"
                    for row in rows.itertuples()
                ]
                rows = rows[["method", "win_rate", "low", "high"]].round(3).assign(condition=conditions)
                found[f"win-rates-{number}"] = charts.win_rates(rows, list(dict.fromkeys(rows["method"])), self.name)
        return found

    def example(self, row: int, method: str) -> dict[str, Any]:
        """One example in full, with its score and rank by a method."""
        example = self._train.iloc[row]
        return {
            "id": example["id"],
            "score": self.scores[method].iloc[row],
            "rank": int(self.ranks[method].iloc[row]),
            "length": None if self.lengths is None else self.lengths["n_target"].iloc[row],
            **{name: _text(example[name]) for name in TEXT_FIELDS},
            "row": example,
        }

    # --- for the explorer

    def matrix_columns(self, tasks: pd.DataFrame) -> dict[str, list[str]]:
        """Method -> tasks of its attribution matrix, for methods that have values per task."""
        known = set(tasks["id"])
        found = {}
        for method, source in self._attributions.items():
            columns = _columns(source)
            if set(columns) == {"id", "score"} and "score" not in known:
                continue
            if unknown := [column for column in columns if column != "id" and column not in known]:
                raise ScoreError(
                    f"{self.name}, {method}: the attribution matrix has the task {unknown[0]!r}, which the tasks lack. "
                    "Compute it again from the same data."
                )
            found[method] = [column for column in columns if column != "id"]
        return found

    def explorer(self, explored: np.ndarray, tasks: pd.DataFrame) -> dict[str, Any]:
        """Scores, ranks, bins and matrices of the explored examples, as plain values."""
        matrices = {}
        for method, columns in self.matrix_columns(tasks).items():
            table = _table(self._attributions[method]).astype({"id": str}).set_index("id")
            _refuse_unknown(table.index, self._train["id"], f"{self.name}, {method}")
            values = table.reindex(index=self._train["id"].iloc[explored])[columns].to_numpy(np.float32)
            place = {task: number for number, task in enumerate(tasks["id"])}
            matrices[method] = {"tasks": [place[column] for column in columns], **_packed(values)}
        return {
            "methods": self.methods,
            "scores": {m: _plain(score.iloc[explored], digits=6) for m, score in self.scores.items()},
            "ranks": {m: _plain(rank.iloc[explored], whole=True) for m, rank in self.ranks.items()},
            "n_target": None if self.lengths is None else _plain(self.lengths["n_target"].iloc[explored], whole=True),
            "n_query": None if self.lengths is None else _plain(self.lengths["n_query"].iloc[explored], whole=True),
            "bins": self._bins(explored),
            "matrices": matrices,
        }

    def _bins(self, explored: np.ndarray) -> dict[str, dict[str, list[int]]]:
        """Bin -> method -> positions, among the explored, of its members; empty without overlaps or icp."""
        if self.overlaps is None or "icp" not in self.scores or self.scores["icp"].isna().any():
            return {}
        thresholds = [bin_label(name) for name in dict.fromkeys(self.overlaps["bin"])]
        tables = {m: score.rename_axis("id").rename("score").reset_index() for m, score in self.scores.items()}
        position = {identity: i for i, identity in enumerate(self._train["id"].iloc[explored])}
        found: dict[str, dict[str, list[int]]] = {threshold: {} for threshold in thresholds}
        for method, table in tables.items():
            if table["score"].isna().any():
                continue  # evaluated in part: its bins need not exist
            for threshold, ids in bins(tables["icp"], None if method == "icp" else table, thresholds).items():
                found[threshold][method] = sorted(position[i] for i in ids if i in position)
        return found


def _reading(row: Any, what: str) -> str:
    """What an interval says about 0, in a sentence."""
    if row.low != row.low or row.high != row.high:
        return "Its interval is undefined."
    if row.low > 0:
        return f"The interval excludes 0: {what} alike, more than chance would."
    if row.high < 0:
        return f"The interval excludes 0 from below: {what} in opposite ways."
    return "The interval includes 0: these examples do not tell it from no correlation at all."


def _scores(source: Source, ids: pd.Series, what: str) -> pd.Series:
    """Scores in the order of the examples, indexed by id; NaN where an example has none."""
    table = _table(source)
    table = table.assign(id=table["id"].astype(str))
    _refuse_unknown(table["id"], ids, what)
    values = pd.Series(widen(table["score"].to_numpy()), index=pd.Index(table["id"], name="id"))
    return values.reindex(ids)


def _refuse_unknown(found: Iterable[str], ids: pd.Series, what: str) -> None:
    if unknown := sorted(set(found) - set(ids)):
        raise ScoreError(
            f"{what}: {len(unknown)} ids are not among the training examples, the first is {unknown[0]!r}. "
            "Compute it again from the same data."
        )


def _ranks(score: pd.Series) -> pd.Series:
    """1 for the best by (−score, id), the order of the bins, by position; NaN where not evaluated."""
    order = pd.DataFrame({"negative": -score.to_numpy(), "id": score.index.to_numpy()})
    evaluated = order.dropna(subset="negative").sort_values(["negative", "id"], kind="stable").index
    return pd.Series(np.arange(1, len(evaluated) + 1), index=evaluated, dtype=float).reindex(range(len(score)))


def _explored(models: Sequence[_Model], train: pd.DataFrame, tasks: pd.DataFrame, labels: Sequence[str]) -> np.ndarray:
    """Positions of the examples that the explorer holds, ascending.

    All, while there are at most EXPLORED_EXAMPLES and they fit EXPLORED_BYTES; else the best and worst of each
    method, and of the others as many as fit, drawn by the digest of their ids.
    """
    extreme = {row for model in models for rows in (*model.best.values(), *model.worst.values()) for row in rows}
    digests = [hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest() for identity in train["id"]]
    order = sorted(range(len(train)), key=lambda row: (row not in extreme, digests[row]))
    cells = sum(len(columns) for model in models for columns in model.matrix_columns(tasks).values())
    numbers = sum(len(model.methods) for model in models)
    texts = sum(_texts(train[name]).str.encode("utf-8", "replace").str.len() for name in (*TEXT_FIELDS, *labels))
    # 8/3: two bytes in base64; 16: a score and a rank in JSON.
    cost = texts.to_numpy(float) * 1.05 + cells * 8 / 3 + numbers * 16
    fits = np.cumsum(cost[order]) <= EXPLORED_BYTES
    fits[EXPLORED_EXAMPLES:] = False
    fits[: len(extreme)] = True
    return np.sort(np.array(order, dtype=int)[fits])


# --- plain values -----------------------------------------------------------------------------------------------


def _table(source: Source | None) -> pd.DataFrame | None:
    if source is None or isinstance(source, pd.DataFrame):
        return source
    path = Path(source)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        # "None" is a fair name for a label's value; only what is empty is missing.
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read for the report ({error}). Remove it so that it is made anew."
        ) from None


def _columns(source: Source) -> list[str]:
    if isinstance(source, pd.DataFrame):
        return list(source.columns)
    if Path(source).suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_schema(source).names
    return list(_table(source).columns)


def _text(value: Any) -> str:
    return "" if value is None or value is pd.NA or value != value else str(value)


def _texts(values: pd.Series) -> pd.Series:
    # Not `map`: the strings of pandas cannot hold a broken surrogate.
    return pd.Series([_text(value) for value in values], index=values.index, dtype=object)


def _plain(values: pd.Series, digits: int = 6, whole: bool = False) -> list[float | int | None]:
    """Numbers for JSON, at most `digits` significant ones; None for NaN."""
    if whole:
        return [None if value != value else int(value) for value in values]
    return [None if value != value else float(f"{value:.{digits}g}") for value in values]


def _packed(values: np.ndarray) -> dict[str, Any]:
    """A matrix [n, m] as float16 in base64, row by row, and the factor that restores its unit.

    The largest entry becomes 60,000: 11 significant bits (3.3 digits) over nine decades below it. NaN stays NaN.
    """
    largest = float(np.nanmax(np.abs(values), initial=0.0, where=np.isfinite(values))) if values.size else 0.0
    unit = largest / 60_000 or 1.0
    half = (values.astype(np.float64) / unit).astype("<f2")
    return {"unit": unit, "values": base64.b64encode(half.tobytes()).decode()}


def embedded_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it, nor open another, whatever the texts are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\x7f-\x9f\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _figure(path: Path) -> dict[str, str]:
    """An SVG file as a data address: in an <img> its ids cannot meet those of another, and no script of it runs."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read for the report ({error}). Remove it so that it is made anew."
        ) from None
    try:
        # Of the drawing itself: the program that drew it has a dc:title too.
        title = ElementTree.fromstring(content).findtext(".//{http://creativecommons.org/ns#}Work/" + DC_TITLE)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: is no SVG figure ({error}). Remove it so that it is made anew.") from None
    caption = title or (path.stem.replace("--", " against ") if "--" in path.stem else path.stem.replace("_", " "))
    return {"caption": caption, "source": "data:image/svg+xml;base64," + base64.b64encode(content).decode()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as rows (name, value), inner names behind a dot."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else value))
    return rows


# --- how it was made --------------------------------------------------------------------------------------------

# rule -> what it makes (below results/{experiment}/, or resources/), and how.
RULES = {
    "prepare_model": ("resources/models/{model}/", "fetched, checked by SHA-256, saved as safetensors with tokenizer"),
    "prepare_train": ("data/train.parquet", "read, checked, sampled as configured; ids unique"),
    "prepare_eval": ("data/eval.parquet", "read and checked"),
    "select_tasks": ("data/tasks.parquet", "the tasks that data.tasks.select chooses"),
    "measure_lengths": ("{model}/data/lengths.parquet", "tokens of query and response of each example"),
    "attribute": (
        "{model}/attributions/{method}/{scatteritem}.parquet",
        "effect of each example of a shard on the log-likelihood of each task",
    ),
    "attribute_influence": (
        "{model}/attributions/influence{,_log}/{scatteritem}.parquet",
        "gradients of examples and tasks, multiplied layer by layer; both methods in one pass",
    ),
    "gather_attributions": ("{model}/attributions/{method}.parquet", "the shards of a method, joined"),
    "score": ("{model}/scores/{method}.parquet", "the matrix reduced over tasks by the method's aggregator"),
    "correlate": ("{model}/tables/correlations.csv", "correlations of every pair of methods with 95% intervals"),
    "compare_bins": ("{model}/tables/overlaps.csv", "examples that each method's bins share with those of icp"),
    "tell_labels": ("{model}/tables/label_aucs.csv", "how well each method tells good examples from others"),
    "subset": ("{model}/subsets/{method}/{bin}.jsonl", "the examples of a bin; as many as icp's bin of that name"),
    "fine_tune": (
        "{model}/checkpoints/{method}/{bin}/seed-{seed}/",
        "the model fine-tuned on a subset, loss on responses only",
    ),
    "generate": (
        "{model}/responses/{method}/{bin}/seed-{seed}.jsonl",
        "the fine-tuned model's response to each prompt",
    ),
    "generate_base": ("{model}/responses/base.jsonl", "the base model's response to each eval prompt"),
    "judge": (
        "{model}/judgements/{method}/{bin}/seed-{seed}.jsonl",
        "each response against the base model's: a preference from 1 (base) to 2, 1.5 a draw",
    ),
    "tabulate_win_rates": ("{model}/tables/win_rates.csv", "preferences averaged by method, bin, subset and seed"),
    "plot": ("{model}/figures/*.svg", "figures of scores, correlations, overlaps and win rates"),
    "report": ("report.html", "this page"),
}


def _rule_runs(dag: Iterable[RuleRun | tuple] | None) -> pd.DataFrame | None:
    """One row per rule in order of appearance: rule, jobs, seconds, peak_mb, needs. None where there is no row.

    A rule that is only waited for has no jobs: its times are not known.
    """
    rows = [RuleRun(*row) for row in dag or ()]
    if not rows:
        return None
    names = dict.fromkeys([row.rule for row in rows] + [need for row in rows for need in row.needs])
    found: dict[str, dict[str, Any]] = {
        name: {"rule": name, "jobs": 0, "seconds": np.nan, "peak_mb": np.nan, "needs": {}} for name in names
    }
    for row in rows:
        rule = found[row.rule]
        rule["jobs"] += 1
        if row.seconds is not None and row.seconds == row.seconds:
            rule["seconds"] = np.nansum([rule["seconds"], row.seconds])
        if row.peak_mb is not None and row.peak_mb == row.peak_mb:
            rule["peak_mb"] = np.nanmax([rule["peak_mb"], row.peak_mb])
        rule["needs"] |= dict.fromkeys(row.needs)
    return pd.DataFrame(found.values()).astype({"seconds": float, "peak_mb": float})


def _edges(runs: pd.DataFrame) -> list[tuple[str, str]]:
    return [(row.rule, need) for row in runs.itertuples() for need in row.needs]


def _artifacts(runs: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows of the table of artifacts: those of the rules that ran, or of all rules where that is not known."""
    if runs is None:
        rows = [{"rule": rule, "jobs": None, "seconds": None, "peak_mb": None, "needs": ()} for rule in RULES]
    else:
        rows = runs.to_dict("records")
    found = []
    for row in rows:
        makes, how = RULES.get(row["rule"]) or RULES.get(row["rule"].split("_")[0]) or ("", "")
        found.append({**row, "needs": list(row["needs"]), "makes": makes, "how": how})
    return found


# --- the page ---------------------------------------------------------------------------------------------------


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals and a true minus sign; a dash where there is none."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "–" if value is None or value != value else f"{int(value):,}".replace(",", "\u202f")


def number(value: float | None) -> str:
    """A number to 3 significant digits, as the page's script writes it too."""
    if value is None or value != value:
        return "–"
    size = abs(value)
    text = f"{value:.2e}" if size and (size >= 1e5 or size < 1e-3) else f"{value:.3g}" if size < 1e3 else f"{value:.0f}"
    return re.sub(r"e([+-])0*(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", text).replace("-", "−")


def bin_label(name: str) -> str:
    """A bin as people write it, whether the table holds `>0.85` or the name of its file."""
    if name == "all":
        return "all data"
    return threshold_of(name) if re.fullmatch(r"(le|gt)-[\d.]+", name) else name


def visible(value: Any) -> Any:
    """A text of the data as it can stand in a page: control characters as their pictures, broken surrogates marked."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    value = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", lambda match: chr(0x2400 + ord(match[0])), value)
    return re.sub("[\ud800-\udfff\x7f-\x9f]", "\ufffd", value).replace("\r\n", "\n").replace("\r", "\n")


def _template(name: str) -> str:
    return (files("icprobe") / "templates" / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": fixed,
        "count": count,
        "number": number,
        "bin_label": bin_label,
        "duration": lambda seconds: charts.duration(float("nan") if seconds is None else seconds) or "–",
        "text": _text,
        "breakable": lambda path: Markup("<wbr>").join(re.split(r"(?<=/)", str(path))),
    }
    return environment


def _itables(name: str) -> str:
    return (files("itables") / "html" / name).read_text(encoding="utf-8")


@functools.cache
def _scripts() -> list[str]:
    """Modules to inline, in order: Vega, DataTables, the page's own."""
    tables, found = re.subn(
        r"export\s*\{[^}]*?(\w+) as default[^}]*\};?",
        lambda match: f"window.DataTable={match[1]};",
        _itables("dt_bundle.js"),
    )
    if found != 1:
        raise RuntimeError("itables: its bundle no longer exports DataTables as its default; the report needs a look")
    return [_inline(script) for script in (vl_convert.javascript_bundle(), tables, _template("report.js"))]


def _inline(script: str) -> str:
    """A script that no character sequence of its own can end: \\x3C is `<` in strings and regular expressions."""
    return re.sub(r"<(?=!--|/?script)", r"\\x3C", script, flags=re.IGNORECASE).replace("\r\n", "\n")


def _styles() -> list[str]:
    return [_itables("dt_bundle.css"), _template("report.css")]
