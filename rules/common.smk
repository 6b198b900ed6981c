# What the rules share: the validated configuration, what it implies (`PLAN`), and names made from both.

import functools
import json
import os
import platform
import re
import sys
import time

from snakemake.logging import logger

from icprobe import artifacts, cores, execution, fingerprints, masking, paths
from icprobe.attribution import METHODS, methods_of
from icprobe.config import load
from icprobe.config.files import check_keys
from icprobe.config.selections import OF_LENGTHS, RULES, in_words
from icprobe.config.sources import local_files
from icprobe.config.types import slice_of
from icprobe.errors import ConfigError, IcprobeError
from icprobe.evaluation import judges
from icprobe.fingerprints import contents, package_files
from icprobe.formatting import BIN_NAME
from icprobe.paths import SELECTED
from icprobe.report import provenance, terminal_summary
from icprobe.tracking import destination, modes, records
from icprobe.workflow import checks, dry_run, exporting, log_filters, modules, responding, sharing, signatures, work
from icprobe.workflow.clusters import require_controller
from icprobe.workflow.plan import Plan, bin_folder

# Before anything reads it: neither params, which Snakemake keeps, nor the report hold what opens a door.
os.environ.update({masking.VARIABLE: json.dumps(masking.hide(config))})
logger.addFilter(masking.of_record)

# Where this file is: on disk, or in the repository at the tag that a module names.
HERE = workflow.current_basedir

try:
    PLACE = modules.place_of(workflow, version="0.1.0")
    check_keys(workflow.configfiles)
    CONFIG = load(config, METHODS)
    METHODS = methods_of(CONFIG)
    PLAN = Plan(CONFIG, METHODS)
    # Read by the jobs, and by their W&B runs. No params: no result depends on them, so a change must rerun nothing.
    os.environ.update(
        {
            execution.VARIABLE: json.dumps(CONFIG.execution()),
            modes.VARIABLE: json.dumps({**CONFIG.wandb.model_dump(), "experiment": CONFIG.experiment}),
        }
    )
    TRACKED = modes.settings()["mode"] != "disabled"
    checks.check(PLAN)
    responding.check(PLAN)
except IcprobeError as error:
    sys.exit(str(error))


# The environment's word on W&B, for jobs on other machines.
envvars:
    *(name for name in modes.ENVIRONMENT if name in os.environ),


def either(names):
    """Alternation that matches exactly these names; of none, one that matches nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


@functools.cache
def fingerprint(script, *modules):
    """Digest of a rule's script and all package code that it reaches; `modules` are those that it imports by name.

    Kept: the params of thousands of shards ask for the same one.
    """
    source = HERE.join(f"../workflow/scripts/{script}.py")
    here = source.get_path_or_uri(secret_free=True)
    return fingerprints.fingerprint(here if os.path.exists(here) else workflow.sourcecache.get_path(source), modules)


# --- paths --------------------------------------------------------------------------------------------------------

EACH_MODEL = {"experiment": CONFIG.experiment, "model": CONFIG.models}

# A directory and its manifest beside it. Snakemake knows a directory by its time alone, the manifest by its content: so
# jobs read the directory whatever its time, and the manifest says whether it has changed.
MODELS = {model: CONFIG.model_directory(model) for model in CONFIG.model_sources}


def results(*parts):
    """A path under results/{experiment}/."""
    return os.path.join(paths.EXPERIMENT.format(experiment=CONFIG.experiment), *parts)


def each_model(*parts):
    """The same path of every model of the experiment."""
    return [results(model, *parts) for model in CONFIG.models]


def each_model_and_method(pattern):
    """A pattern's paths of every model and method."""
    return expand(pattern, method=CONFIG.attribution.methods, **EACH_MODEL)


def model_of(wildcards):
    """The directory of a job's model, as an input."""
    return ancient(MODELS[wildcards.model])


def manifest_of(wildcards):
    """What is in it, as an input."""
    return paths.manifest(MODELS[wildcards.model])


def readers(table):
    """Inputs: the models that decide which rows a table has."""
    read = [MODELS[model] for model in PLAN.readers(table)]
    return {"models": ancient(read), "manifests": [*map(paths.manifest, read)]}


def shard_files(model, method, folder=None):
    """Shards of a method's matrix; folder: what stands for the method in their paths, where it is not its name."""
    pattern = paths.shard(folder or method).format(
        experiment=CONFIG.experiment, model=model, scatteritem="{scatteritem}"
    )
    return [pattern.format(scatteritem="1-of-1")] if METHODS[method].whole else getattr(gather, model)(pattern)


def of_conditions(pattern, model, conditions, experiment=CONFIG.experiment):
    """A pattern's path of each fine-tuned model; conditions: (method, bin, seed)."""
    return [
        pattern.format(experiment=experiment, model=model, method=method, bin=bin_folder(threshold), seed=seed)
        for method, threshold, seed in conditions
    ]


def attribution_logs(model, method):
    """The logs of the jobs that made a method's matrix, beside which are their seconds; none of external scores.

    Of a combined method those of all that it rests on, once each; none where others computed some of it.
    """
    if method in PLAN.combined:
        parts = PLAN.made_of(method)
        own = [paths.log(f"combine/{model}/{part}", CONFIG.experiment) for part in parts if part in PLAN.combined]
        of_parts = [attribution_logs(model, part) for part in parts if part not in PLAN.combined]
        return [*dict.fromkeys(log for logs in of_parts for log in logs), *own] if all(of_parts) else []
    if method not in PLAN.computed:
        return []
    if method in PLAN.together:
        job = "attribute_influence/{model}/{item}"
    elif method in PLAN.swept:
        job = "attribute_ekfac/{model}/{item}"
    elif METHODS[method].needs_model:
        job = "attribute/{model}/{method}/{item}"
    else:
        job = "attribute_without_model/{model}/{method}/{item}"
    jobs = [job.format(model=model, method=method, item=Path(shard).stem) for shard in shard_files(model, method)]
    if METHODS[method].fits_fisher:
        parts = [Path(part).name for part in fisher_parts("sums", model)]
        jobs += [f"{rule}/{model}/{part}" for rule in ("sum_covariances", "sum_eigenvalues") for part in parts]
        jobs += [f"{rule}/{model}" for rule in ("fisher_bases", "fisher_eigenvalues")]
    return [paths.log(job, CONFIG.experiment) for job in jobs]


def retrained_chunks(part, model):
    """The chunks of a part's trainings: "subsets", "removals" or "left_out"."""
    n = SIZES.retraining_chunks(model, part, PLAN.truth_sets(part, SIZES.tasks))
    pattern = paths.RETRAINED.replace("{part}", part)
    return [pattern.replace("{chunk}", f"{i}-of-{n}") for i in range(1, n + 1)]


def tuned(pattern):
    """A pattern's path of each fine-tuned model whose held-out answers are looked at, of whichever model."""
    return of_conditions(pattern, "{model}", PLAN.held_out, "{experiment}")


def dtype_checked(wildcards, settings):
    """That the model can be used in the dtype of a method's settings, as an input; of float32 every model is sure."""
    if settings["dtype"] == "float32":
        return []
    return paths.DTYPE_CHECKED.format(experiment=wildcards.experiment, model=wildcards.model)


def section_dtype_checked(section):
    """That the model can be used in the dtype of "finetune" or "evaluation", as an input."""
    known = getattr(CONFIG, section).dtype == "float32"
    return [] if known else paths.SECTION_DTYPE_CHECKED.replace("{section}", section)


def losses_checked(wildcards, method):
    """That every example has the loss whose gradient the method takes, as an input of which nothing is read; in a whole
    document all have.
    """
    if not PLAN.takes_loss(method):
        return []
    return ancient(paths.LOSSES_CHECKED.format(experiment=wildcards.experiment, model=wildcards.model))


def contexts_checked(wildcards):
    """That the model can read the method's contexts, as an input, where they hold more than one example and one task."""
    return paths.CONTEXTS_CHECKED if wildcards.method in PLAN.long_contexts else []


def responses_checked(wildcards):
    """That of every response some token counts, as an input of ifd, which divides by what it says alone."""
    return paths.RESPONSES_CHECKED if wildcards.method == "ifd" else []


def parameters_checked(wildcards, method):
    """That the model has the layers whose gradients the method takes, as an input; all layers every model has."""
    if not PLAN.chooses_parameters(method):
        return []
    return paths.PARAMETERS_CHECKED.format(experiment=wildcards.experiment, model=wildcards.model)


def chosen_by(wildcards):
    """The selection that a data set is, or is a baseline of."""
    return CONFIG.selections[PLAN.data_sets[wildcards.method].selection]


EXPORTED = exporting.exported(CONFIG)


def data_set_file(pattern, model, name):
    """The file of a selection or baseline of a model."""
    return pattern.format(experiment=CONFIG.experiment, model=model, method=name, bin=SELECTED)


def fisher_of(wildcards):
    """The Fisher matrix that the method's gradients are multiplied with, as inputs; of other methods none."""
    if wildcards.method not in PLAN.fits_fisher:
        return []
    return [ancient(paths.fisher(what)) for what in ("bases", "eigenvalues")]


def read_of_model(wildcards):
    """Inputs of a shard of a method beside the texts: the model, that it can do what the method wants, and what the method
    rests on; what is not read has no name.

    One function of all: ten thousand shards ask it, and each call costs Snakemake more than what it says.
    """
    method, fisher = wildcards.method, fisher_of(wildcards)
    read = {
        "model": model_of(wildcards),
        "manifest": manifest_of(wildcards),
        "checked": dtype_checked(wildcards, PLAN.method_settings(method)),
        "losses": losses_checked(wildcards, method),
        "contexts": contexts_checked(wildcards),
        "responses": responses_checked(wildcards),
        "parameters": parameters_checked(wildcards, method),
        "fisher": fisher,
        "fisher_manifests": [paths.manifest(folder) for folder in fisher],
    }
    read = {name: files for name, files in read.items() if files}
    if method in PLAN.along_training:  # its checkpoints have their name where they are given elsewhere, too
        read["trajectory"] = paths.manifest(paths.TRAJECTORY)
        read["checkpoints"] = [] if PLAN.checkpoint_files else ancient(paths.TRAJECTORY)
    return read


def fisher_parts(what, model):
    """What is there of each part of the examples, as inputs: "covariances" or "sums"."""
    n = SIZES.fisher_parts(model)
    return [paths.fisher(what).replace("{part}", f"{i}-of-{n}") for i in range(1, n + 1)]


# --- figures and tables -------------------------------------------------------------------------------------------


def marked(path, subcategory, what, kind, caption, category="{model}"):
    """A figure or table, of one model or of all, marked for `snakemake --report`."""
    return report(
        path,
        category=category,
        subcategory=subcategory,
        labels={"what": what, "kind": kind},
        caption=f"../src/icprobe/figures/captions/{caption}.rst",
    )


def table(name, subcategory, what):
    """The output of a rule that writes a table."""
    return marked(paths.table(f"{name}.csv"), subcategory, what, "table", f"{name}_table")


# --- hooks --------------------------------------------------------------------------------------------------------


def say(text):
    """Last words on the terminal and in Snakemake's log; none with `--quiet all`."""
    if text:
        logger.info(f"\n{text}\n")


def failed_groups():
    """The jobs that failed in this invocation, each by itself or with those of its group."""
    return [list(one.jobs) if one.is_group() else [one] for one in workflow.scheduler.failed]


def outlook():
    """What a dry run says of the jobs that would run: their work, and where results and runs would go."""
    jobs = [job for job in workflow.dag.needrun_jobs() if job.output]
    told = [
        (job.rule.name, job.resources["runtime"], job.resources["mem_mb"], bool(job.resources.get("heavy")))
        for job in jobs
    ]
    unknown = dry_run.unknown_sizes(m for m in CONFIG.models if told and work.known_parameters(CONFIG, m) is None)
    here = dry_run.CORES if sharing.takes_gpu(CONFIG) else cores.usable()
    sentences = [dry_run.work(told, here), unknown, dry_run.emulated(PLAN, PLACE.names(jobs))]
    return "\n".join(filter(None, [*sentences, destination.sentence(CONFIG.experiment, ask=False)]))


def require_outside():
    """Ends the workflow with one sentence where what it needs is absent: the cluster's controller, the key of the judge or
    of the endpoint that writes responses, the command that starts it, and trainings to hold methods against.
    """
    try:
        asked = PLACE.names(workflow.dag.jobs)
        if "truth" in asked and not PLAN.truth_parts:
            raise ConfigError(
                "truth: nothing says what to train again; write truth: {subsets: 64} into the configuration"
            )
        if "estimate" in asked:
            estimating.require_files(workflow)
        if not all(job.is_local for job in workflow.dag.needrun_jobs()):
            require_controller(workflow.executor_plugin.name)
        ours = PLACE.own(workflow.dag.needrun_jobs())
        writers = [job for job in ours if PLACE.name(job.rule.name) in ("generate", "generate_base")]
        if writers:
            responding.require(CONFIG, here=workflow.local_exec or all(job.is_local for job in writers))
        # A job that finds all its answers at hand needs no key.
        if {"generate", "judge"} <= PLACE.names(ours):
            judges.key(CONFIG.evaluation.llm.key_variable if CONFIG.evaluation.judge == "llm" else None)
    except IcprobeError as error:
        sys.exit(str(error))
