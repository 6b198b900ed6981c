"""Values training examples from Python: the steps of the DAG up to the scores, in one process."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

import pandas as pd

from icprobe.analysis.statistics import aggregate
from icprobe.artifacts import temporary_directory
from icprobe.attribution import methods_of
from icprobe.attribution.combined import combine
from icprobe.attribution.contexts import check as check_contexts
from icprobe.attribution.external import attribution as external_attribution
from icprobe.attribution.fisher import fit
from icprobe.attribution.matrix import Inputs
from icprobe.attribution.shards import compute
from icprobe.config.types import slice_of
from icprobe.engine.batching import batches
from icprobe.engine.models import set_precision
from icprobe.engine.representations import mean_hidden_states
from icprobe.errors import ConfigError, DataError, several, shown
from icprobe.notebook.configuring import arguments_named, configured, mapping
from icprobe.notebook.models import Subject, arithmetic_kept, arithmetic_of, chance_kept, ready, source_of
from icprobe.notebook.scores import scores_table
from icprobe.notebook.training import trajectory
from icprobe.progress import lines_told
from icprobe.tables import checking, labels
from icprobe.tables.duplicates import duplicates, without
from icprobe.tables.fitting import choose_tasks, draw, fit_train, lengths
from icprobe.texts.chat import prompts_of
from icprobe.texts.completions import check_end, check_trainable, longest
from icprobe.workflow.checks import check_directories
from icprobe.workflow.plan import Plan

logger = logging.getLogger(__name__)

# A table, rows as mappings, a file, or a section of the configuration such as {"hub": "tatsu-lab/alpaca"}.
Rows = pd.DataFrame | Iterable[Mapping[str, Any]] | str | PathLike | Mapping[str, Any]


@overload
def value(
    train: Rows,
    tasks: Rows,
    *,
    model: Any,
    methods: Sequence[str] = ...,
    tokenizer: Any = ...,
    templates: Mapping[str, str] | None = ...,
    data: Mapping[str, Any] | None = ...,
    finetune: Mapping[str, Any] | None = ...,
    seed: int = ...,
    matrices: Literal[False] = ...,
    **attribution: Any,
) -> pd.DataFrame: ...
@overload
def value(
    train: Rows, tasks: Rows, *, model: Any, matrices: Literal[True], **settings: Any
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]: ...
@arguments_named("attribution")
def value(
    train: Rows,
    tasks: Rows,
    *,
    model: Any,
    methods: Sequence[str] = ("icp", "influence"),
    tokenizer: Any = None,
    templates: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
    finetune: Mapping[str, Any] | None = None,
    seed: int = 0,
    matrices: bool = False,
    **attribution: Any,
) -> pd.DataFrame | tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Values training examples: how much does each help the model with the tasks, by each method?

    - train, tasks: rows with `instruction` and `output`, and `id` and `input` where there are some: a DataFrame, a list
      of mappings, a file (JSON, JSONL, CSV, parquet), or a mapping as in the configuration's `data.train`, such as
      `{"hub": "tatsu-lab/alpaca"}` or `{"path": "mine.csv", "columns": {"output": "response"}}`.
    - model: a directory, a hub id, `"smollm2-135m-instruct"`, a mapping as in `model_sources`, or a transformers model
      in memory with its `tokenizer`. That one computes in its own dtype and on its own device, and is left as it was.
    - methods: their names, as in `attribution.methods`.
    - templates, data: keys of the sections of that name. Rows that `data` has dropped are told in a warning.
    - finetune: `{"max_length": …}`, where `train_loss` is `"response"`; for tracin and less the settings of their
      training, such as `{"learning_rate": 2e-4, "epochs": 1, "lora": {"rank": 16}}`.
    - seed: of all random draws but those of a training (`finetune["seeds"]`) and of `sample`, which have their own.
    - matrices: whether to return the attribution matrices, too.
    - attribution: keys of the section `attribution`, such as `dtype`, `device`, `memory_budget_gb`, `aggregators`,
      `one_step`, `combined`, `train_loss`, `reduction`, `task_likelihood`, `parameters`, `tracin`, `less`.

    Returns a table with a row for each example, in train's order: `id`, texts, labels (as texts, even those that are
    numbers: `pd.to_numeric` reads them), `n_query`, `n_target` (tokens), and for each method `score_icp` and `rank_icp`
    (1 is the best). With `matrices`: (that table, {method: `id`, then one column per task}). The numbers are those of
    `snakemake` with the same configuration. Raises IcprobeError for what cannot be used.
    """
    data, training = mapping("data", data), mapping("finetune", finetune)
    for name in ("train", "tasks"):
        if name in data:
            raise ConfigError(f"data.{name}: pass it as the argument {name}, a mapping such as {{'path': …}}.")
    if data.get("eval") is not None:
        raise ConfigError("data.eval: nothing is fine-tuned or judged here, so no prompts are read; leave it out.")
    config = configured(
        source_of(model),
        seed=seed,
        templates=templates,
        finetune=None if finetune is None else {"methods": [], "all_data": False, **training},
        data={**data, "train": _section("train", train), "tasks": _section("tasks", tasks)},
        attribution={**arithmetic_of(model), **attribution, "methods": _names(methods)},
    )
    plan = Plan(config, methods_of(config))
    check_directories(plan)
    # Before the model is prepared, which may take minutes: what is wrong with rows needs no model to be seen.
    candidates = _read("tasks", tasks, plan, ["domain"])
    rows = _read("train", train, plan, ["domain"], config.data.labels)
    _check_values(plan, rows, candidates)
    if how := slice_of(config.data, "deduplicate")["deduplicate"]:
        found = duplicates(rows, how)
        rows = without(rows, found)
        rows.attrs["duplicates"] = len(found)
    with lines_told(), arithmetic_kept(), chance_kept(), ready(model, tokenizer, plan) as subject:
        inputs = _inputs(plan, rows, candidates, subject)
        scores, kept = {}, {}
        for method, matrix in _with_combined(plan, inputs, _matrices(plan, inputs, subject)):
            scores[method] = aggregate(matrix, plan.aggregator(method), plan.methods[method].may_skip)
            if matrices:
                kept[method] = matrix
    in_order = config.attribution.methods
    table = scores_table(inputs.train, inputs.lengths, {method: scores[method] for method in in_order})
    return (table, {method: kept[method] for method in in_order}) if matrices else table


def _section(name: str, rows: Rows) -> dict[str, Any]:
    """Makes the configuration's section of a table; that of rows in memory has the table's name for a path."""
    if isinstance(rows, Mapping):
        if rows and all(hasattr(split, "column_names") for split in rows.values()):  # a datasets.DatasetDict
            raise DataError(
                f"{name}: a {type(rows).__name__} holds splits ({', '.join(map(str, rows))}); choose one, such as "
                f"dataset[{str(next(iter(rows)))!r}]."
            )
        return {**rows, "path": _home(rows["path"])} if "path" in rows else dict(rows)
    return {"path": _home(rows) if isinstance(rows, str | PathLike) else name}


def _home(path: Any) -> Any:
    """Makes of `~` in a path the home directory, as a shell does."""
    return os.path.expanduser(path) if isinstance(path, str | PathLike) else path


def _names(methods: Sequence[str]) -> list[Any]:
    """The names of methods; whether there are such methods the configuration says."""
    listed = [methods] if isinstance(methods, str) else [*methods] if isinstance(methods, Iterable) else []
    if not listed:
        raise ConfigError(f"methods: name one at least, such as ['icp', 'influence'], not {shown(methods)}")
    return listed


def _check_values(plan: Plan, rows: pd.DataFrame, candidates: pd.DataFrame) -> None:
    """Raises ConfigError for values of `data.sound_labels` or `data.in_domain` that rows lack, as the DAG does.

    Nothing else is done with these here.
    """
    labels.check_sound_labels(rows, plan.sound_labels)
    domains = {one for table in (candidates, rows) if "domain" in table for one in table["domain"].dropna()}
    for name in plan.config.data.in_domain or [] if "domain" in candidates else []:
        way = "Correct it, or leave it out."
        labels.check_values("data.in_domain", "domain", domains, name, way, "data.tasks or data.train")


def _read(name: str, rows: Rows, plan: Plan, extra: Sequence[str], labels: Sequence[str] = ()) -> pd.DataFrame:
    """Reads and checks the rows of a table as the DAG does."""
    source = slice_of(getattr(plan.config.data, name))
    if not isinstance(rows, str | PathLike | Mapping):
        source["rows"] = rows
    return checking.read_table(source, extra=extra, labels=labels, on_empty=plan.config.data.on_empty)


def _inputs(plan: Plan, rows: pd.DataFrame, candidates: pd.DataFrame, subject: Subject) -> Inputs:
    """Chooses the tasks, draws the examples, fits both to the model's context, and counts the examples' tokens."""
    data, prompts, readers = plan.config.data, prompts_of(plan.text_settings()), [subject.reader]

    def hidden_states(texts: list[str]) -> Any:
        return mean_hidden_states(subject.load("float32"), subject.capabilities, subject.reader.tokenizer, texts)

    how = data.tasks.select, plan.config.seed, prompts, readers, data.on_too_long
    tasks = choose_tasks(candidates, *how, hidden_states)
    _tell_left_out("tasks", candidates, tasks, data.on_too_long)
    train = draw(rows, slice_of(data.train)["sample"], prompts, readers, "data.train.sample")
    train = fit_train(train, tasks, prompts, readers, data.on_too_long)
    _tell_left_out("train", rows, train, data.on_too_long)
    tokens = lengths(train, prompts, subject.reader)
    if any(map(plan.takes_loss, plan.computed)):
        check_end(subject.reader.tokenizer, tokens)
        check_trainable(tokens, longest(plan.config.finetune.max_length, subject.reader.max_positions))
    for method in plan.long_contexts:
        settings = slice_of(getattr(plan.config.attribution, method))
        check_contexts(method, settings, train, tasks, tokens, prompts, subject.reader, plan.config.seed)
    return Inputs(
        train=train,
        tasks=tasks,
        lengths=tokens,
        prompts=prompts,
        tokenizer=subject.reader.tokenizer,
        capabilities=subject.capabilities,
        seed=plan.config.seed,
    )


def _tell_left_out(name: str, read: pd.DataFrame, kept: pd.DataFrame, on_too_long: str) -> None:
    """Warns of rows that were read and play no part, as the log of the workflow's job does; those cut are told of."""
    empty, repeated = read.attrs["dropped_empty"], read.attrs.get("duplicates", 0)
    too_long = kept.attrs["too_long"] if on_too_long == "drop" else 0
    counts = {"without an output": empty, "that repeat others": repeated, "too long": too_long}
    if told := [f"{count} {what}" for what, count in counts.items() if count]:
        n_read = several(len(read) + empty + repeated, "row")
        logger.warning("data.%s: %s read, %s dropped, %d kept", name, n_read, ", ".join(told), len(kept))
    if turns := read.attrs["turns_left"]:
        logger.warning("data.%s: %s without an answer left away", name, several(turns, "turn"))


def _matrices(plan: Plan, inputs: Inputs, subject: Subject) -> Iterator[tuple[str, pd.DataFrame]]:
    """Computes the attribution matrix of each method, in the order of the examples; a pass may give several."""
    ids, tasks = inputs.train["id"].tolist(), inputs.tasks["id"].tolist()
    tables = {"train": inputs.train, "tasks": inputs.tasks}
    column = checking.ROW_NUMBER
    numbers = {name: rows[column].tolist() for name, rows in tables.items() if column in rows}
    for method, scores in plan.external.items():
        yield method, external_attribution(method, slice_of(scores), ids, tasks, row_numbers=numbers)
    passes = [[method] for needs_model in (False, True) for method in plan.alone(needs_model)]
    passes += [shared for shared in (plan.together, plan.swept) if shared]
    # Those in the same dtype after each other, so that the model is loaded once.
    with temporary_directory() as trained:
        for methods in sorted(passes, key=lambda methods: plan.method_settings(methods[0]).get("dtype", "")):
            for method, table in _of_pass(plan, methods, inputs, subject, Path(trained)).items():
                yield method, table.set_index("id").loc[ids].reset_index()


def _with_combined(
    plan: Plan, inputs: Inputs, matrices: Iterator[tuple[str, pd.DataFrame]]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Passes on each method's matrix, then those of the methods that are computed from others' matrices."""
    parts = {member for how in plan.combined.values() for member in how.members}
    kept = {}
    for method, matrix in matrices:
        if method in parts:
            kept[method] = matrix
        yield method, matrix
    n_target = inputs.lengths.set_index("id")["n_target"]
    for method, how in plan.combined.items():
        kept[method] = combine(slice_of(how), ((member, kept[member]) for member in how.members), n_target)
        yield method, kept[method]


def _of_pass(
    plan: Plan, methods: list[str], inputs: Inputs, subject: Subject, trained: Path
) -> dict[str, pd.DataFrame]:
    """Computes the methods that share a pass, as one shard: {method: its rows, in (length, id) order}.

    trained: a folder for the training along which some go, which all passes share.
    """
    known, settings = plan.methods[methods[0]], plan.pass_settings(methods)
    if known.needs_model:
        tf32 = settings.pop("tf32")
        arithmetic = settings.pop("dtype"), settings.pop("device")
    settings |= {key: getattr(plan.config.attribution, key) for key in known.execution}
    with temporary_directory() as folder:
        partial = Path(folder, "pieces")
        if known.trained:
            along = trajectory(plan, inputs, subject.directory, trained, *arithmetic)
            inputs = replace(inputs, trajectory=along)
            set_precision(tf32)  # training has its own
        elif known.needs_model:
            set_precision(tf32)
            inputs = replace(inputs, model=subject.load(arithmetic[0]))
        if known.fits_fisher:
            settings["fisher"] = _fisher(plan, inputs, Path(folder, "fisher"), settings["memory_budget_gb"])
        return compute(
            known.module,
            methods,
            inputs,
            settings,
            shard=1,
            shards=1,
            batch_tokens=settings.get("batch_tokens", 1024),
            partial=partial,
            per_task=known.per_task,
        )


def _fisher(plan: Plan, inputs: Inputs, folder: Path, memory_budget_gb: float) -> list[Path]:
    """Fits the Fisher matrix of the examples in one part."""
    settings = plan.fisher_settings
    for arithmetic in ("dtype", "device", "tf32"):
        del settings[arithmetic]
    cut = batches(inputs.lengths, settings.pop("batch_tokens"))
    return fit(inputs, cut, folder, memory_budget_gb=memory_budget_gb, **settings)
