"""CPU seconds of an experiment's light jobs: all that compute with no model, such as tables, figures and the report.

    python benchmarks/light_jobs.py --cores 2 [--configfile configs/tiny.yaml]

in the folder of a finished experiment. They are run again, one after another their results the same; what was computed
with a model is read where it lies. Each job's process says at its end what it and its children have used, from the
start of Python on; so does the process that writes W&B runs. Seconds of the processor are nearly those of a quiet
machine, whoever else is at work on it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# Rules that compute with a model or fetch one, targets, and what `all` does not make.
OTHERS = {
    *(
        "attribute",
        "attribute_influence",
        "attribute_ekfac",
        "attribute_step",
        "sum_covariances",
        "fisher_bases",
        "sum_eigenvalues",
        "embed_examples",
        "fetch_gguf",
        "fine_tune",
        "generate",
        "generate_base",
    ),
    *("measure_outcomes", "measure_prompts", "check_dtype", "check_section_dtype", "name_model", "prepare_model"),
    *("train_regressor", "value_points", "correlate_points", "plot_points"),
    *("all", "analysis", "attributions", "checkpoints", "models", "synthetic", "win_rates"),
    *("estimate", "export", "held_out", "measure_rates", "publish"),
    *("report_scores", "retrain", "scores", "subsets", "train_trajectory", "truth"),
}
# In each process of Python that Snakemake starts; those of jobs have its object `snakemake`, one follows the workflow.
AT_THE_END = """
import atexit, json, os, resource, sys

def tell():
    main = sys.modules["__main__"]
    rule = getattr(getattr(main, "snakemake", None), "rule", None)
    if getattr(main.__spec__, "name", None) == "icprobe.tracking.workflow_run":
        rule = "(W&B runs)"
    if rule:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        seconds = sum(one.ru_utime + one.ru_stime for one in used)
        with open(os.environ["LIGHT_JOBS"], "a") as file:
            file.write(json.dumps([rule, seconds]) + "\\n")

atexit.register(tell)
"""


def measure(arguments: list[str]) -> dict[str, list[float]]:
    """{rule: CPU seconds of each of its jobs}; arguments: those of Snakemake, such as a configuration."""
    snakemake = [sys.executable, "-m", "snakemake"]
    listed = subprocess.run([*snakemake, "--list-rules", *arguments], capture_output=True, text=True, check=True)
    light = [rule for rule in listed.stdout.split() if rule not in OTHERS]
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "jobs.jsonl")
        Path(folder, "sitecustomize.py").write_text(AT_THE_END, encoding="utf-8")
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run(
            [*snakemake, *arguments, "--forcerun", *light, "--allowed-rules", "all", *light, "--", "all"],
            env={**os.environ, "PYTHONPATH": path, "LIGHT_JOBS": str(told)},
            check=True,
        )
        found = defaultdict(list)
        for rule, seconds in map(json.loads, told.read_text(encoding="utf-8").splitlines()):
            found[rule].append(seconds)
    return dict(found)


def markdown(found: dict[str, list[float]]) -> str:
    """The table of docs/performance.md: rules, the dearest first."""
    rows = sorted(found.items(), key=lambda row: -sum(row[1]))
    jobs = sum(len(used) for rule, used in found.items() if rule[0] != "(")
    seconds = sum(map(sum, found.values()))
    lines = [f"| {rule} | {len(used)} | {sum(used):.1f} |" for rule, used in rows]
    return "\n".join(["| rule | jobs | CPU seconds |", "|---|---:|---:|", *lines, f"| all | {jobs} | {seconds:.1f} |"])


if __name__ == "__main__":
    print(markdown(measure(sys.argv[1:])))
