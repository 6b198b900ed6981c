# What the rules share: the validated configuration, and names made from it.

import functools
import json
import os
import re
import sys
from pathlib import Path

from snakemake.logging import logger

from icprobe import artifacts, cores, execution, fingerprints, masking
from icprobe.tables import checking
from icprobe.report import terminal_summary
from icprobe.evaluation import judges
from icprobe.report import provenance
from icprobe.config import modes
from icprobe.tracking import records
from icprobe.workflow import dry_run, work
from icprobe.attribution import METHODS, methods_of
from icprobe.analysis.binning import bin_name
from icprobe.config import load
from icprobe.errors import IcprobeError
from icprobe.workflow.resources import Sizes

# Before anything reads it: neither params, which Snakemake keeps, nor the report hold what opens a door.
os.environ.update({masking.VARIABLE: json.dumps(masking.hide(config))})
logger.addFilter(masking.of_record)

try:
    CONFIG = load(config, METHODS)
    METHODS = methods_of(CONFIG)
    # Read by the jobs, and by their W&B runs. No params: no result depends on them, so a change must rerun nothing.
    os.environ.update(
        {
            execution.VARIABLE: json.dumps(CONFIG.execution()),
            modes.VARIABLE: json.dumps({**CONFIG.wandb.model_dump(), "experiment": CONFIG.experiment}),
        }
    )
    TRACKED = modes.settings()["mode"] != "disabled"
except IcprobeError as error:
    sys.exit(str(error))


# The environment's word on W&B, for jobs on other machines.
envvars:
    *(name for name in modes.ENVIRONMENT if name in os.environ),


def local_files(table):
    """The files that a table of the configuration is read from, as inputs; none for what lies elsewhere."""
    if table is None:
        return []
    path = table.path or []
    return artifacts.matching([*([path] if isinstance(path, str) else path), *getattr(table, "subsets", {}).values()])


# External scores that are asked for, by their names as methods; judgements that exist already.
EXTERNAL = {m: CONFIG.attribution.external[m] for m in CONFIG.attribution.methods if m in CONFIG.attribution.external}
ANNOTATIONS = CONFIG.evaluation.annotations if CONFIG.evaluation.judge == "annotations" else {}

# Methods with a value for each task: their scores can be taken over the tasks of one domain.
PER_TASK = [m for m in CONFIG.attribution.methods if METHODS[m].per_task]

# The chain of the paper's argument, where nothing of it comes from elsewhere; and one_step's step sizes besides its own,
# by their names in paths.
CHAIN = all(m in CONFIG.attribution.methods and m not in EXTERNAL for m in ("icp", "one_step", "influence"))
OWN_STEP = CONFIG.attribution.one_step.learning_rate
STEPS = {str(eta): eta for eta in CONFIG.analysis.chain.learning_rates if CHAIN and eta != OWN_STEP}

# Tables that have no texts: the external scores whose rows, or columns, are numbered instead.
NAMED_BY = {table: None for table in ("train", "tasks") if getattr(CONFIG.data, table) is None}
for table in NAMED_BY:
    NAMED_BY[table] = next((m for m, s in EXTERNAL.items() if table == "train" or s.orientation != "scores"), None)

# Said here, for Snakemake would say it in five lines of its own words.
for key, named in {
    **{f"data.{table}": local_files(getattr(CONFIG.data, table)) for table in ("train", "tasks", "eval")},
    **{f"attribution.external.{method}": scores.files for method, scores in EXTERNAL.items()},
    **{f"evaluation.annotations.{name}": note.files for name, note in ANNOTATIONS.items()},
}.items():
    for file in named:
        if not os.path.isfile(file):
            sys.exit(f"config: {key}.path: {file}: no such file; correct the path")


SWEEP = CONFIG.figures.sweep
if SWEEP is None:
    tasks = CONFIG.data.tasks
    # What comes from elsewhere is not known before it is read.
    SWEEP = {"icp", "influence"} <= set(CONFIG.attribution.methods) and (
        len(CONFIG.models) > 1 or len(checking.domains(local_files(tasks), tasks.columns if tasks else {})) > 1
    )

# Heavy jobs compute with the cores that `--cores` gives, but with no more threads than OMP_NUM_THREADS says (which
# Snakemake sets anew for each job). On a cluster the profile's `set-threads` says it instead.
THREADS = cores.wanted()


def either(names):
    """Alternation that matches exactly these names; of none, one that matches nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


@functools.cache
def fingerprint(script, *modules):
    """Digest of a rule's script and all package code that it reaches; `modules` are those that it imports by name.

    Kept: the params of thousands of shards ask for the same one.
    """
    return fingerprints.fingerprint(os.path.join(workflow.basedir, "workflow", "scripts", f"{script}.py"), modules)


def results(*parts):
    """A path under results/{experiment}/."""
    return os.path.join("results", CONFIG.experiment, *parts)


def each_model(*parts):
    """The same path of every model of the experiment."""
    return [results(model, *parts) for model in CONFIG.models]


def domain_params():
    """How scores over the tasks of one domain are made, as `icprobe.analysis.domains.score_sets` takes it."""
    return dict(
        aggregators={m: CONFIG.attribution.aggregators.get(m, "mean") for m in PER_TASK},
        without_tasks=[m for m in CONFIG.attribution.methods if not METHODS[m].needs_model and m not in EXTERNAL],
        may_skip=[m for m in PER_TASK if METHODS[m].may_skip],
    )


def external_files(method):
    """The files of a set of external scores, as inputs; none for a method that is computed here."""
    return EXTERNAL[method].files if method in EXTERNAL else []


def is_here(model):
    """Whether a model can be run; of one whose source is `external` only what others computed is known."""
    return CONFIG.model_sources[model].source != "external"


# A directory and its manifest beside it. Snakemake knows a directory by its time alone, the manifest by its content: so
# jobs read the directory whatever its time, and the manifest says whether it has changed.
MODELS = {model: CONFIG.model_directory(model) for model in CONFIG.model_sources}
CHECKPOINT = "results/{experiment}/{model}/checkpoints/{method}/{bin}/seed-{seed}"


def manifest(directory):
    """The file beside a directory that says what is in it."""
    return f"{directory}.manifest.json"


def model_of(wildcards):
    """The directory of a job's model, as an input."""
    return ancient(MODELS[wildcards.model])


def manifest_of(wildcards):
    """What is in it, as an input."""
    return manifest(MODELS[wildcards.model])


def models_here():
    """The directories of the models that can be run."""
    return [MODELS[model] for model in CONFIG.models if is_here(model)]


def contents(files):
    """Digest of each file that a user brings, its size if it is large.

    By time alone, one that is older than what was made from the file before it would pass for unchanged.
    """
    size = os.path.getsize
    return {file: artifacts.file_digest(file) if size(file) < 2e8 else size(file) for file in files}


def package_files(pattern):
    """Digests of files of the package that are no modules, such as templates: no fingerprint of code covers them."""
    found = sorted(artifacts.PACKAGE.glob(pattern))
    if not found:
        raise WorkflowError(f"{pattern}: the package has no such file")
    return [artifacts.file_digest(path) for path in found]


def slice_of(section, *keys):
    """Some keys of a section of the configuration, as plain values: what a rule gives its job as params."""
    if section is None:
        return None
    return section.model_dump(mode="json", include=set(keys) or None)


def text_settings(*templates):
    """How rows become texts and tokens: these templates (all, where none is named), what control tokens in rows are."""
    return {**slice_of(CONFIG.templates, *templates), "special_tokens": CONFIG.data.special_tokens}


def each_model_and_method(pattern):
    """The same path of every model and method."""
    return [path.format(method=m) for m in CONFIG.attribution.methods for path in each_model(pattern)]


def model_files(model):
    """The local files that a model is made from, as inputs: a random model's corpus, a local model's directory."""
    source = CONFIG.model_sources[model]
    if source.source == "local":
        return sorted(str(file) for file in Path(source.path).glob("*") if file.is_file())
    return [source.corpus] if source.source == "random" else []


def attribution_settings(method):
    """The keys of the configuration that a method's job uses."""
    settings = slice_of(CONFIG.attribution, *METHODS[method].settings) if METHODS[method].settings else {}
    fixed = {"dtype": METHODS[method].dtype} if METHODS[method].dtype else {}
    # Settings of one method alone lie one level lower, under its name.
    own = settings.pop(method, {})
    return {**settings, **own, **fixed}


def shard_files(model, folder, method):
    """Shards of a method's matrix, in a folder of the attributions."""
    pattern = results(model, "attributions", folder, "{scatteritem}.parquet")
    return [pattern.format(scatteritem="1-of-1")] if METHODS[method].whole else getattr(gather, model)(pattern)


def annotated_methods():
    """The methods under whose names judgements that exist already stand in the tables."""
    return [note.method or name for name, note in ANNOTATIONS.items()]


def axis_labels():
    """What each method's score is, with its unit, for axes."""

    def label(method):
        if not METHODS[method].per_task:
            return f"{method} ({METHODS[method].unit})"
        if CONFIG.attribution.aggregators.get(method, "mean") == "fraction_positive":
            return f"{method} (share of tasks helped)"
        return f"{method} (mean over tasks, {METHODS[method].unit})"

    return {method: label(method) for method in CONFIG.attribution.methods}


def marked(path, subcategory, what, kind, caption):
    """A figure or table of one model, marked for `snakemake --report`."""
    return report(
        path,
        category="{model}",
        subcategory=subcategory,
        labels={"what": what, "kind": kind},
        caption=f"../src/icprobe/figures/captions/{caption}.rst",
    )


def figure(name, subcategory, what):
    """What is made where something is drawn: the figure, the same for papers, and the numbers that it shows."""
    stem = f"results/{{experiment}}/{{model}}/figures/{name}"
    drawn = marked(f"{stem}.svg", subcategory, what, "figure", name.split("/")[0])
    return {"figure": drawn, "pdf": f"{stem}.pdf", "table": f"{stem}.csv"}


def table(name, subcategory, what):
    """The output of a rule that writes a table."""
    path = f"results/{{experiment}}/{{model}}/tables/{name}.csv"
    return marked(path, subcategory, what, "table", f"{name}_table")


def scatter_pairs():
    """Pairs of methods to draw against each other."""
    if CONFIG.figures.scatter != "all":
        return [tuple(pair) for pair in CONFIG.figures.scatter]
    methods = CONFIG.attribution.methods
    return [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]


def analysis_figures():
    """Figures of one model that need no fine-tuning."""
    names = ["distributions", "heat_map"] + (["overlaps"] if CONFIG.bins else []) + (["chain"] if CHAIN else [])
    if CONFIG.data.train and any(map(is_here, CONFIG.models)):
        names.append("lengths")
    return [f"figures/{name}.svg" for name in names] + [f"figures/scatter/{a}--{b}.svg" for a, b in scatter_pairs()]


def sweep_figures():
    """Figures over all models and domains; none where there is one of each."""
    return [results("figures/sweep.svg")] if SWEEP else []


def evaluation_tables():
    """Tables of one model that need judgements; none where nothing is judged."""
    return ["tables/win_rates.csv", "tables/differences.csv"] if JUDGED else []


def evaluation_figures():
    """Figures of one model that need judgements; none where nothing is judged."""
    return ["figures/win_rates.svg"] if JUDGED else []


def say(text):
    """Last words on the terminal and in Snakemake's log; none with `--quiet all`."""
    if text:
        logger.info(f"\n{text}\n")


def failed_jobs():
    """The jobs that failed in this invocation, those within groups too."""
    return [job for one in workflow.scheduler.failed for job in (one.jobs if one.is_group() else [one])]


def planned():
    """The jobs that would run, as (rule, time limit in minutes, memory in MB)."""
    jobs = [job for job in workflow.dag.needrun_jobs() if job.output]
    return [(job.rule.name, job.resources["runtime"], job.resources["mem_mb"]) for job in jobs]


def sizes_of(config):
    """How large the experiment is, by what was there before it began."""
    tables = {name: getattr(config.data, name) for name in ("train", "tasks", "eval")}
    examples, tasks, prompts = (work.rows(table, local_files(table)) for table in tables.values())
    shards = {model: work.shards(config, model, examples, tasks) for model in config.models}
    return Sizes(config, examples, tasks, prompts, shards)


def rows_of(files, otherwise):
    """Rows in files that may not be there yet."""
    return work.file_rows(filter(os.path.isfile, files)) or otherwise


def models_read(first):
    """Inputs: the models that decide which rows a table has; first: the first model's tokens count rows anyway.

    Where a row that is too long is an error, no model decides: `measure_lengths` and `measure_prompts` refuse it, each
    for its own model, so that one model more makes no table anew, and nothing of the models before it.
    """
    read = models_here() if CONFIG.data.on_too_long != "error" else models_here()[: int(first)]
    return {"models": ancient(read), "manifests": list(map(manifest, read))}


# The models to fine-tune, as (method, bin, seed); a bin as its threshold.
FINE_TUNED = [
    (method, threshold, seed)
    for method, thresholds in [
        *((method, CONFIG.finetune_bins) for method in CONFIG.finetune.methods),
        *([("all", ["all"])] if CONFIG.finetune.all_data else []),
    ]
    for threshold in thresholds
    for seed in CONFIG.finetune.seeds
]


def of_fine_tuned(model, folder, suffix, conditions=FINE_TUNED):
    """The path of each fine-tuned model's checkpoint, responses or judgements; conditions: (method, bin, seed)."""
    return [
        results(
            model,
            folder,
            method,
            "all" if threshold == "all" else bin_name(threshold),
            f"seed-{seed}{suffix}",
        )
        for method, threshold, seed in conditions
    ]


# What stands in the table of win rates, as (method, bin, seed): the fine-tuned models, or what others have judged.
JUDGED = [(note.method or name, note.bin, note.seed) for name, note in ANNOTATIONS.items()] or FINE_TUNED


def require_key():
    """Ends the workflow with one sentence where the judge's key is not in the environment."""
    try:
        judges.key(CONFIG.evaluation.llm.key_variable if CONFIG.evaluation.judge == "llm" else None)
    except IcprobeError as error:
        sys.exit(str(error))


def annotation_of(wildcards):
    """The annotations that make the judgements of these wildcards."""
    for note, (method, threshold, seed) in zip(ANNOTATIONS.values(), JUDGED):
        name = "all" if threshold == "all" else bin_name(threshold)
        if (method, name, str(seed)) == (wildcards.method, wildcards.bin, wildcards.seed):
            return note
    raise WorkflowError(f"there are no annotations of {wildcards.method}, {wildcards.bin}, seed {wildcards.seed}")
