"""What is said of mistakes when Snakemake plans, before any job: files, libraries and columns that are not there."""

import os
from importlib.util import find_spec

from icprobe.config.sources import Table, local_files
from icprobe.errors import ConfigError, DataError
from icprobe.tables import checking, labels, reading
from icprobe.workflow.plan import Plan
from icprobe.workflow.work import chosen_rows

TABLES = ("train", "tasks", "eval")


def check(plan: Plan) -> None:
    """Raises ConfigError or DataError for the first thing that is missing."""
    check_files(plan)
    check_models(plan)
    check_directories(plan)
    check_libraries(plan)
    check_columns(plan)
    check_selections(plan)
    check_contexts(plan)


def check_files(plan: Plan) -> None:
    """Raises ConfigError for a local file that the configuration names and that is not there.

    Snakemake would say it in five lines of its own words.
    """
    for key, files in {
        **{f"data.{name}.path": local_files(getattr(plan.config.data, name)) for name in TABLES},
        **{f"attribution.external.{method}.path": scores.files for method, scores in plan.external.items()},
        **{f"evaluation.annotations.{name}.path": note.files for name, note in plan.annotations.items()},
        "templates.chat_template": [*filter(None, [plan.config.templates.chat_template])],
        "finetune.accelerate": [*filter(None, [plan.config.finetune.accelerate])],
        **{
            f"model_sources.{model}.corpus": plan.model_files(model)
            for model in plan.models_here
            if plan.config.model_sources[model].source == "random"
        },
    }.items():
        for file in files:
            if not os.path.isfile(file):
                raise ConfigError(f"config: {key}: {file}: no such file; correct the path")


def check_models(plan: Plan) -> None:
    """Raises ConfigError for a local model that is not there. Snakemake would first remove what was prepared of it."""
    for model in plan.models_here:
        source = plan.config.model_sources[model]
        if source.source == "local" and not os.path.isfile(os.path.join(source.path, "config.json")):
            told = "no config.json is in it; correct the path"
            if os.path.isfile(os.path.join(source.path, "adapter_config.json")):
                told = (
                    "it holds an adapter; merge that into its base (merge_and_unload), save the result, and name that"
                )
            elif not os.path.isdir(source.path):
                told = "no such directory; correct the path"
            raise ConfigError(f"config: model_sources.{model}.path: {source.path}: {told}")


def check_directories(plan: Plan) -> None:
    """Raises ConfigError for a checkpoint that is named and that is none of transformers' or peft's."""
    for folder in plan.config.attribution.tracin.directories if plan.along_training else []:
        whole, adapter = (os.path.isfile(os.path.join(folder, name)) for name in ("config.json", "adapter_config.json"))
        weights = adapter or (whole and any(name.endswith(".safetensors") for name in os.listdir(folder)))
        if not weights:
            raise ConfigError(
                f"config: attribution.tracin.directories: {folder}: neither adapter_config.json nor config.json with "
                "safetensors is there; name directories that peft or transformers has saved"
            )


def check_libraries(plan: Plan) -> None:
    """Raises ConfigError for models that are to be quantised where nothing is installed that could do it."""
    quantised = [model for model in plan.models_here if plan.config.quantization(model) != "none"]
    if quantised and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"config: model_sources.{quantised[0]}.load.quantization: bitsandbytes is not installed; "
            "pip install 'bitsandbytes>=0.50', or remove the key"
        )


def check_columns(plan: Plan) -> None:
    """Raises DataError or ConfigError for columns that local files lack, as far as their beginnings tell, and for
    good values of a label that no row has or that look misspelt, where that is one small file, read at every start.

    What rows further down lack is found out by the jobs that read all of them.
    """
    data = plan.config.data
    for name, needs_output in (("train", True), ("tasks", True), ("eval", False)):
        files = local_files(getattr(data, name))
        looked_at = [reading.columns_of(file) for file in files]
        if files and all(complete for _, complete in looked_at):
            names = list(dict.fromkeys(column for columns, _ in looked_at for column in columns))
            origin, table = ", ".join(files[:3]), getattr(data, name)
            columns, key = table.columns, f"data.{name}.columns"
            checking.check_columns(names, origin, columns, needs_output, key=key, asked=table.format)
            checking.check_labels(data.labels if name == "train" else [], names, origin, columns)
    for name, wanted in plan.sound_labels.items():
        labels.check_good(name, _values(plan, name), wanted)
    if data.in_domain and all(table is None or _is_small(table) for table in (data.tasks, data.train)):
        domains = _held(data.tasks, "domain")
        domains |= _values(plan, "domain") if domains else set()
        way = "Correct it, or leave it out ([] where no task is of the examples' domain)."
        for name in data.in_domain:
            labels.check_values("data.in_domain", "domain", domains, name, way, "data.tasks or data.train")


def _values(plan: Plan, column: str) -> set[str]:
    """What the examples hold in a column of labels, as far as is known without a job."""
    return _held(plan.config.data.train, column)


def _held(table: Table | None, column: str) -> set[str]:
    """What a table holds in a column of labels, where it is one small file; else nothing."""
    return checking.values(local_files(table), table.columns, column) if _is_small(table) else set()


def _is_small(table: Table | None) -> bool:
    files = local_files(table)
    # Numbers in several files may be read as others than in each.
    return len(files) == 1 and reading.is_small(files[0])


def check_selections(plan: Plan) -> None:
    """Raises ConfigError for a selection in which tasks take turns by a method that has no values for each task, and
    for a quota of a value that no row has, where that is one file small enough to be read at every start.
    """
    for name, selection in plan.config.selections.items():
        for value in selection.quota.shares if selection.quota else ():
            column, here = selection.quota.column, f"selections.{name}.quota.shares"
            labels.check_values(here, column, _values(plan, column), value, "Correct it, or leave it out.")
        if selection.per_task and selection.method not in plan.per_task:
            known = ", ".join(plan.per_task) or "none here"
            raise ConfigError(
                f"config: selections.{name}.per_task: {selection.method} has no value for each task; methods that do: "
                f"{known}"
            )


def check_contexts(plan: Plan) -> None:
    """Raises ConfigError for contexts of more examples or tasks than there are, as far as files tell.

    Of tables that lie elsewhere, or of whose rows some are dropped, `check_contexts` (the rule) says so.
    """
    settings, data = plan.config.attribution, plan.config.data
    for method, key, wanted, name, said in (
        ("icp_k_shot", "k", settings.icp_k_shot.k, "train", "examples"),
        ("icp_reverse", "tasks", settings.icp_reverse.tasks, "tasks", "tasks"),
    ):
        there = _most_rows(getattr(data, name)) if method in plan.long_contexts and wanted != "all" else None
        if there is not None and wanted > there:
            raise ConfigError(
                f"config: attribution.{method}.{key}: {wanted} {said} in contexts where there are {there}; take at "
                f"most {there}"
            )


def _most_rows(table: Table | None) -> int | None:
    """How many rows there are at most: as many as are drawn or chosen, or as the files hold, where these are small."""
    files, chosen = local_files(table), chosen_rows(table)
    if not files or not all(map(reading.is_small, files)):
        return chosen
    try:
        held = sum(len(reading.read_file(file)) for file in files)
    except DataError:  # `read_table` says what is wrong
        return chosen
    return held if chosen is None else min(held, chosen)
