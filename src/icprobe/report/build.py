"""The report of an experiment: one HTML file that opens from disk, needs no network and fetches nothing.

What is read stands in the page itself (headline, tables, figures, examples), so that it prints and needs no script;
the explorer, its table (DataTables, from the package itables) and its charts (Vega, from vl-convert) are inlined.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icprobe.analysis.headline import BASELINES
from icprobe.analysis.labels import is_continuous, kinds
from icprobe.artifacts import write_text
from icprobe.errors import DataError, several
from icprobe.evaluation import tabulation
from icprobe.formatting import OKABE_ITO
from icprobe.report import charts, gains, page, provenance, sentences, truth
from icprobe.report.findings import TEXT_FIELDS, Findings, ModelInputs, Sweep
from icprobe.report.provenance import RuleRun
from icprobe.tables.checking import ROW_NUMBER
from icprobe.texts.conversations import before, is_plain

logger = logging.getLogger(__name__)

EXPLORED_EXAMPLES = 5_000  # what the explorer stays fluid with
EXPLORED_BYTES = 18_000_000  # texts and matrices in the page; the rest of 25 MB is libraries, figures, tables


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
    sweep: str | Path | None = None,
    colors: Sequence[str] = OKABE_ITO,
    asked: Mapping[str, tuple[str, str]] | None = None,
    objective: Sequence[str] = (),
    selections: Mapping[str, str] | None = None,
    duplicates: str = "",
    baselines: Sequence[str] = BASELINES,
    repeated: pd.DataFrame | None = None,
) -> None:
    """Writes the report of one experiment to `output`, atomically; the same inputs give the same bytes.

    experiment: its name. config_text: the configuration as text, shown as it is. models: name -> what was computed.
    train, tasks: data/train.parquet and data/tasks.parquet (`id`, `instruction`, `input`, `output`, label columns).
    labels: label columns of train; absent ones are skipped. sound_labels: label -> values that mark good examples, for
    the AUC. top: examples shown as best and as worst of each method. environment: name -> value (versions, device,
    dtype, threads, commit); mappings within it become rows of their own. dag: `RuleRun` rows, or tuples (rule, seconds,
    peak MB, rules that it needs), times None where not measured; None leaves the picture out. sweep: the figure
    (SVG) of icp against influence by model and domain, with its table beside it (.csv). colors: the cycle of #rrggbb
    in which the charts are drawn. asked: method -> the question it puts to an example, and what its score is with its
    unit. objective: whose gradients and likelihoods the methods take, in sentences. selections: data set -> what was
    asked for, in words. duplicates: which examples were dropped before all else, in a sentence. baselines: the methods
    that are `length` and `random`, and not external scores that are called so. repeated: data/repeated.csv.

    Raises ScoreError where scores or matrices have ids that train lacks or a matrix has a task that tasks lacks,
    DataError where a file cannot be read or train lacks a text column.
    """
    for name, table in (("train", train), ("tasks", tasks)):
        if missing := [column for column in ("id", *TEXT_FIELDS) if column not in table.columns]:
            raise DataError(f"report: the {name} table lacks the column {missing[0]!r}; it has {', '.join(table)}.")
    train, tasks = (
        table.assign(id=table["id"].astype(str), instruction=_asked(table)).reset_index(drop=True)
        for table in (train, tasks)
    )
    labels = [label for label in labels if label in train.columns]
    questions = tasks.set_index("id")["instruction"]
    experiments = [
        Findings(name, inputs, train, labels, sound_labels, top, baselines, questions)
        for name, inputs in models.items()
    ]

    explored = _explored(experiments, train, tasks, labels)
    coloured = kinds(train, labels)
    data = {
        "labels": labels,
        "kinds": None if coloured is None else coloured.name,
        "examples": {
            "id": train["id"].iloc[explored].tolist(),
            "row_number": _row_numbers(train.iloc[explored]),
            **{name: page.texts(train[name]).iloc[explored].tolist() for name in TEXT_FIELDS},
            "labels": {label: page.texts(train[label]).iloc[explored].tolist() for label in labels},
        },
        "tasks": {
            "id": tasks["id"].tolist(),
            "row_number": _row_numbers(tasks),
            **{name: page.texts(tasks[name]).tolist() for name in TEXT_FIELDS},
        },
        "models": {model.name: model.explorer(explored, tasks) for model in experiments},
    }
    groups = ["example"] if coloured is None else [*map(page.visible, sorted(coloured.dropna().astype(str).unique()))]
    specifications = {"scatter": charts.scatter(groups, colors), "effects": charts.effects()}
    for number, model in enumerate(experiments):
        specifications |= model.charts(number, colors)
    methods = list(dict.fromkeys(method for model in experiments for method in model.methods))
    runs = provenance.rule_runs(dag)
    if runs is not None:
        specifications["dag"] = charts.dag(runs.drop(columns="needs"), provenance.edges(runs))

    text = page.render(
        data,
        specifications,
        experiment=experiment,
        models=experiments,
        asked={method: asked[method] for method in methods if method in (asked or {})},
        objective=objective,
        duplicates=duplicates,
        repeated=repeated,
        asked_of_selections=selections or {},
        bins=sentences.bins(experiments, len(train), {method: unit for method, (_, unit) in (asked or {}).items()}),
        found={model.name: sentences.found(model, sound_labels, labels) for model in experiments},
        gains=gains,
        truth=truth,
        with_truth=[model for model in experiments if truth.is_shown(model)],
        few_prompts=tabulation.FEW_PROMPTS,
        caution=tabulation.CAUTION,
        n_examples=len(train),
        ids_made=ROW_NUMBER in train,
        n_explored=len(explored),
        n_tasks=len(tasks),
        sweep=None if sweep is None else Sweep(Path(sweep)),
        labels=labels,
        chosen_by=[label for label in labels if not is_continuous(train[label])],
        sound_labels=sound_labels,
        top=top,
        config_text=config_text,
        environment=provenance.flat(environment or {}),
        artifacts=provenance.artifacts(runs, experiment),
        has_dag=runs is not None,
        statistics=charts.STATISTICS,
    )
    write_text(output, text)
    parts = ", ".join(
        [
            f"{several(len(train), 'example')} x {several(len(tasks), 'task')}",
            several(len(experiments), "model"),
            f"{several(len(explored), 'example')} to explore",
        ]
    )
    logger.info("report: %s, %.1f MB", parts, len(text.encode()) / 1e6)


def _asked(table: pd.DataFrame) -> pd.Series:
    """What is asked in each row; of a conversation all that is said before the last answer."""
    if "messages" not in table:
        return table["instruction"]
    asked = [row["instruction"] if is_plain(row["messages"]) else before(row) for row in table.to_dict("records")]
    return pd.Series(asked, index=table.index, dtype=object)


def _row_numbers(table: pd.DataFrame) -> list[int] | None:
    return table[ROW_NUMBER].tolist() if ROW_NUMBER in table else None


def _explored(
    models: Sequence[Findings], train: pd.DataFrame, tasks: pd.DataFrame, labels: Sequence[str]
) -> np.ndarray:
    """Positions of the examples that the explorer holds, ascending.

    All, while there are at most EXPLORED_EXAMPLES and they fit EXPLORED_BYTES; else the best and worst of each
    method, and of the others as many as fit, drawn by the digest of their ids.
    """
    extreme = {row for model in models for rows in (*model.best.values(), *model.worst.values()) for row in rows}
    digests = [hashlib.sha256(identity.encode("utf-8", "surrogatepass")).digest() for identity in train["id"]]
    order = sorted(range(len(train)), key=lambda row: (row not in extreme, digests[row]))
    cells = sum(len(columns) for model in models for columns in model.matrix_columns(tasks).values())
    numbers = sum(len(model.methods) for model in models)
    texts = sum(page.texts(train[name]).str.encode("utf-8", "replace").str.len() for name in (*TEXT_FIELDS, *labels))
    # 8/3: two bytes in base64; 30: a score, a rank, a place and a mean effect in JSON.
    cost = texts.to_numpy(float) * 1.05 + cells * 8 / 3 + numbers * 30
    fits = np.cumsum(cost[order]) <= EXPLORED_BYTES
    fits[EXPLORED_EXAMPLES:] = False
    fits[: len(extreme)] = True
    return np.sort(np.array(order, dtype=int)[fits])
