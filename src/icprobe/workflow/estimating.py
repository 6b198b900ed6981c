"""`snakemake estimate`: what is still to be done, and what it takes, as a table, before anything of it has begun.

The job of rule `estimate` lets Snakemake plan the experiment (a dry run of its own, with this invocation's
configuration, threads and resources), whose jobs tell what stands behind the resources that they ask for; there these
rest on counted sizes and measured rates (`measured.Measured`).
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import LogRecord
from pathlib import Path
from typing import Any

import pandas as pd
from snakemake_interface_logger_plugins.common import LogEvent
from tabulate import tabulate

from icprobe import artifacts, paths
from icprobe.analysis import frontier
from icprobe.attribution.cosines import COSINES
from icprobe.config import Config
from icprobe.config.estimate import Prices
from icprobe.config.types import slice_of
from icprobe.errors import ConfigError, reason, several
from icprobe.formatting import parse_bin, rough_duration
from icprobe.workflow.gpus import GPUS_IF_ANY
from icprobe.workflow.plan import Plan
from icprobe.workflow.resources import BYTES, MILLISECONDS, Sizes

VARIABLE = "ICPROBE_ESTIMATE"  # in the dry run: the file that its jobs are told to
ARGUMENTS = "ICPROBE_ARGUMENTS"  # of the `snakemake` that was called, for its dry run
ARITHMETIC = ("dtype", "device", "tf32", "batch_tokens", "train_loss", "reduction", "task_likelihood", "parameters")
MANY_CORES = 1_000_000  # as good as a cluster: no rule's threads are cut
COLUMNS = ["rule", "jobs", "hours", "mem_mb", "disk_gb", "cpu_hours", "gpu_hours"]
TOTAL = "total"
HEADERS = {"jobs": "jobs", "time": "time", "mem_mb": "memory, MB", "disk_gb": "disk, GB", "gpu_hours": "GPU hours"}


# --- what is measured -------------------------------------------------------------------------------------------


def kinds(plan: Plan) -> list[str]:
    """The kinds of work (`frontier.work`, and of fine-tuned models) whose rates an experiment's jobs depend on."""
    found: list[str] = []
    for method in filter(lambda name: plan.methods[name].needs_model, plan.computed):
        known = frontier.work("influence" if plan.methods[method].fits_fisher else method, *[1.0] * 6)
        found += ["read"] if known is None else known
    trains = bool(plan.fine_tuned or plan.truth_parts or (plan.along_training and not plan.checkpoint_files))
    found += ["train"] if trains else []
    found += ["ask"] if plan.held_out or plan.truth_parts else []
    writes = plan.judged and not plan.annotations and plan.config.evaluation.engine == "transformers"
    return [*dict.fromkeys(found + (["decode"] if writes else []))]


def contractions(plan: Plan) -> list[str]:
    """What the gradients of a pair are contracted to, in the pass of influence and its kin."""
    return [*dict.fromkeys(COSINES.get(method, method) for method in plan.together or ["influence"])]


def settings(plan: Plan) -> dict[str, Any]:
    """What of the configuration the rates depend on, by sections, as `measuring.Sample` takes it."""
    config = plan.config
    of_evaluation = ("dtype", "device", "max_new_tokens", "batch_size")
    return {
        "attribution": slice_of(config.attribution, *ARITHMETIC),
        "finetune": slice_of(config.finetune),
        "evaluation": slice_of(config.evaluation, *of_evaluation),
        "influence": {"contractions": contractions(plan)},
    }


# --- the dry run ------------------------------------------------------------------------------------------------


def asked() -> bool:
    """Whether this is the dry run of a job of `estimate`."""
    return VARIABLE in os.environ


def sizes(config: Config) -> Sizes:
    """The sizes that resources follow from: supposed ones, or in that dry run the counted and measured."""
    if not asked():
        return Sizes.of(config)
    from icprobe.workflow.measured import Measured  # pyarrow is not for everyone's start

    return Measured.of(config)


def keep_arguments(workflow: Any) -> None:
    """Keeps in the environment, for jobs, what the dry run has to be told: of the `snakemake` that was called alone."""
    os.environ.setdefault(ARGUMENTS, json.dumps(arguments(workflow)))


def arguments(workflow: Any) -> list[str]:
    """Snakemake's arguments for this workflow's configuration, cores, threads and resources, as its jobs get them."""
    from snakemake.spawn_jobs import SpawnedJobArgsFactory

    made = SpawnedJobArgsFactory(workflow)
    given = {name: found.value for name, found in workflow.global_resources.items() if not name.startswith("_")}
    parts = [
        made.get_configfiles_arg(),
        made.workflow_property_to_arg("config_settings.config_args", flag="--config"),
        made.workflow_property_to_arg("resource_settings.overwrite_scatter", flag="--set-scatter"),
        *made.get_set_resources_args(),
    ]
    resources = ["--resources", *(f"{name}={n}" for name, n in given.items())] if given else []
    cores = ["--cores", str(workflow._cores or MANY_CORES)]
    return ["--snakefile", str(workflow.main_snakefile), *cores, *resources, *shlex.split(" ".join(parts))]


def require_files(workflow: Any) -> None:
    """Raises ConfigError where what is finished lies in a storage of its own: the dry run would not see it."""
    if workflow.storage_settings.default_storage_provider:
        raise ConfigError(
            "estimate: results lie in a storage of their own (default-storage-provider), which an estimate does not "
            "read; estimate without that profile, or on a machine like the cluster's with estimate.rate"
        )


class Told:
    """A filter of Snakemake's log that in the dry run writes its jobs to the file that was asked for; all records pass.

    jobs: those that would run, asked for when Snakemake has planned; it says so again at its end, when none is left.
    """

    def __init__(self, jobs: Callable[[], Iterable[Any]]) -> None:
        self._jobs, self._told = jobs, False

    def __call__(self, record: LogRecord) -> bool:
        """Always true."""
        if getattr(record, "event", None) == LogEvent.RUN_INFO and asked() and not self._told:
            self._told = True
            told = [_job(job) for job in self._jobs() if job.output]
            artifacts.write_json(os.environ[VARIABLE], told)
        return True


def _job(job: Any) -> dict[str, Any]:
    """What the table needs of one of Snakemake's jobs."""
    asks = job.resources
    return {
        "rule": job.rule.name,
        "model": job.wildcards_dict.get("model"),
        "threads": job.threads,
        "mem_mb": asks["mem_mb"],
        "heavy": bool(asks.get("heavy")),
        "gpus": asks.get("gpu", 0),
        "gpus_if_any": asks.get(GPUS_IF_ANY, 0),
        "seconds": asks[MILLISECONDS] / 1000,
        "disk": asks[BYTES],
    }


def planned(targets: Sequence[str]) -> list[dict[str, Any]]:
    """The jobs that these targets need, without those that are finished, as Snakemake plans them now.

    Raises ConfigError where it cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "jobs.json"
        command = [sys.executable, "-m", "snakemake", *targets, "--dry-run", "--nolock", "--nocolor"]
        ended = subprocess.run(
            [*command, *json.loads(os.environ[ARGUMENTS])],
            env=os.environ | {VARIABLE: str(told)},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if ended.returncode:
            lines = (ended.stdout + ended.stderr).strip().splitlines()
            why = reason(Exception(" ".join(lines[-3:])))
            raise ConfigError(f"estimate: Snakemake cannot plan {', '.join(targets)}: {why}")
        return artifacts.read_json(told) if told.exists() else []  # it says nothing where nothing is to be done


# --- the table --------------------------------------------------------------------------------------------------


def table(jobs: Iterable[Mapping[str, Any]], sizes: Any, prices: Prices) -> pd.DataFrame:
    """A row for each rule, those that take longest first, and the total: COLUMNS, and `money` where prices are given.

    jobs: as `planned` gives them. sizes: a `Measured`. hours: of all jobs of the rule, one after another; mem_mb: the
    most that one of them asks for; disk_gb: what they leave, of what is large (10^9 bytes).
    """
    rows = []
    for job in jobs:
        hours = (sizes.start(job["model"], job["heavy"]) + job["seconds"]) / 3600
        gpus = job["gpus"] or (job["gpus_if_any"] if sizes.has_gpu(job["model"]) else 0)
        costs = hours * job["threads"], hours * gpus
        rows.append((job["rule"], 1, hours, job["mem_mb"], job["disk"] / 1e9, *costs))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    how = {name: "max" if name == "mem_mb" else "sum" for name in COLUMNS[1:]}
    made = (
        frame.groupby("rule", as_index=False, sort=False).agg(how).sort_values("hours", ascending=False, kind="stable")
    )
    total = {"rule": TOTAL, **{name: getattr(made[name], how)() for name, how in how.items()}}
    made = pd.concat([made, pd.DataFrame([total])], ignore_index=True) if rows else frame
    if prices.cpu_hour is not None or prices.gpu_hour is not None:
        made["money"] = made["cpu_hours"] * (prices.cpu_hour or 0) + made["gpu_hours"] * (prices.gpu_hour or 0)
    return made


def words(config: Config, plan: Plan) -> str:
    """The estimate for the terminal, from its table: the rules, and what it rests on."""
    from icprobe.workflow.measured import Measured

    path = paths.ESTIMATE.format(experiment=config.experiment)
    found, what = artifacts.read_csv(path), " ".join(dict.fromkeys(config.estimate.targets))
    if found.empty:
        return f"Nothing is left to be done for {what}."
    total = found.iloc[-1]
    shown = found.assign(
        time=[rough_duration(3600 * hours) for hours in found["hours"]],
        mem_mb=[f"{n:,.0f}" for n in found["mem_mb"]],
        disk_gb=[f"{n:.2f}" if n >= 0.005 else "" for n in found["disk_gb"]],
        gpu_hours=[f"{n:.2f}" if n else "" for n in found["gpu_hours"]],
    )
    columns = [name for name in HEADERS if name != "gpu_hours" or total["gpu_hours"]]
    if "money" in found:
        shown["money"] = [f"{n:,.2f}" for n in found["money"]]
        columns.append("money")
    text = tabulate(
        shown[["rule", *columns]],
        headers=["rule", *(HEADERS.get(name, name) for name in columns)],
        tablefmt="simple",
        showindex=False,
        disable_numparse=True,
        colalign=["left", *["right"] * len(columns)],
    )
    sentences = [
        f"About {rough_duration(3600 * total['hours'])} of work in {several(int(total['jobs']), 'job')}, one after "
        f"another, for {what}; jobs that are finished are left out.",
        *_grounds(config, plan, Measured.of(config)),
        f"Estimate: {path}",
    ]
    return "\n".join([text, "", *sentences])


def _grounds(config: Config, plan: Plan, sizes: Any) -> list[str]:
    """What an estimate rests on, in sentences."""
    found = []
    if config.estimate.rate is not None:
        found.append(f"Every job is supposed to do {config.estimate.rate:.3g} operations a second (estimate.rate).")
        devices = {config.attribution.device, config.finetune.device, config.evaluation.device}
        if config.estimate.prices.gpu_hour is not None and "auto" in devices:
            found.append(
                "GPU hours are those of jobs with device: cuda; whether device: auto finds a GPU nobody has looked."
            )
    elif any(told["rates"] for told in sizes.told.values()):
        found.append(
            "Rates are measured, on this machine as it was then; other work on it moves times by a third or more."
        )
    of_icp = [bin for bin in config.finetune_bins if parse_bin(bin).is_threshold] if config.finetune_methods else []
    if of_icp and any(sizes.icp_scores(model) is None for model in plan.models_here):
        found.append(
            f"How many examples the bins {', '.join(of_icp)} hold is known when icp has scored them; here the scores "
            "are taken to be spread evenly from 0 to 1."
        )
    if plan.judged and not plan.annotations and config.evaluation.engine != "transformers":
        found.append(f"How fast {config.evaluation.engine} writes responses is not measured, but supposed.")
    if config.finetune.processes > 1 and plan.fine_tuned:
        found.append(f"A training in {config.finetune.processes} processes is reckoned as if it were one.")
    return found
