# What every rule file uses: the validated configuration, and names made from it.

import json
import os
import re
import sys
from pathlib import Path

from icprobe import artifacts
from icprobe.attribution import METHODS
from icprobe.binning import bin_name
from icprobe.config import load
from icprobe.errors import IcprobeError

try:
    CONFIG = load(config, METHODS)
except IcprobeError as error:
    sys.exit(str(error))

# Said here, for Snakemake would say it in five lines of its own words.
for table in ("train", "tasks", "eval"):
    if (file := getattr(CONFIG.data, table).path) and not os.path.isfile(file):
        sys.exit(f"config: data.{table}.path: {file}: no such file; correct the path")

# Read by the jobs' W&B runs. No param: no result depends on it, so a change must rerun nothing.
os.environ["ICPROBE_TRACKING"] = json.dumps({**CONFIG.wandb.model_dump(), "experiment": CONFIG.experiment})


def either(names):
    """Alternation that matches exactly these names."""
    return "|".join(map(re.escape, names))


def fingerprint(script, *modules):
    """Digest of a rule's script and all package code that it reaches; `modules` are those that it imports by name."""
    return artifacts.fingerprint(os.path.join(workflow.basedir, "workflow", "scripts", f"{script}.py"), modules)


def results(*parts):
    """A path under results/{experiment}/."""
    return os.path.join("results", CONFIG.experiment, *parts)


def each_model(*parts):
    """The same path of every model of the experiment."""
    return [results(model, *parts) for model in CONFIG.models]


def local_file(table):
    """The file that a table of the configuration is read from, as an input; none for a hub data set."""
    return [table.path] if table.path else []


def contents(files):
    """Digest of each file that a user brings, its size if it is large.

    By time alone, one that is older than what was made from the file before it would pass for unchanged.
    """
    size = os.path.getsize
    return {file: artifacts.file_digest(file) if size(file) < 2e8 else size(file) for file in files}


def package_files(pattern):
    """Digests of files of the package that are no modules, such as templates: no fingerprint of code covers them."""
    return [artifacts.file_digest(path) for path in sorted(artifacts.PACKAGE.glob(pattern))]


def slice_of(section, *keys):
    """Some keys of a section of the configuration, as plain values: what a rule gives its job as params."""
    return section.model_dump(mode="json", include=set(keys) or None)


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


def shard_files(method):
    """Shards of a method's matrix."""
    pattern = f"results/{{{{experiment}}}}/{{{{model}}}}/attributions/{method}/{{scatteritem}}.parquet"
    if not METHODS[method].whole:
        return gather.shards(pattern)
    return [pattern.replace("{scatteritem}", "1-of-1").replace("{{", "{").replace("}}", "}")]


def axis_labels():
    """What each method's score is, with its unit, for axes."""

    def label(method):
        if not METHODS[method].per_task:
            return f"{method} ({METHODS[method].unit})"
        if CONFIG.attribution.aggregators.get(method, "mean") == "fraction_positive":
            return f"{method} (share of tasks helped)"
        return f"{method} (mean over tasks, {METHODS[method].unit})"

    return {method: label(method) for method in CONFIG.attribution.methods}


def scatter_pairs():
    """Pairs of methods to draw against each other."""
    if CONFIG.figures.scatter != "all":
        return [tuple(pair) for pair in CONFIG.figures.scatter]
    methods = CONFIG.attribution.methods
    return [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]


def analysis_figures():
    """Figures of one model that need no fine-tuning."""
    names = ["distributions", "heat_map", "lengths"] + (["overlaps"] if CONFIG.bins else [])
    return [f"figures/{name}.svg" for name in names] + [f"figures/scatter/{a}--{b}.svg" for a, b in scatter_pairs()]


def evaluation_tables():
    """Tables of one model that need fine-tuned models; none where nothing is fine-tuned."""
    return ["tables/win_rates.csv"] if FINE_TUNED else []


def evaluation_figures():
    """Figures of one model that need fine-tuned models; none where nothing is fine-tuned."""
    return ["figures/win_rates.svg"] if FINE_TUNED else []
