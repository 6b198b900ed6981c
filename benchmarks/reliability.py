"""How reliable trainings are, by epochs and the like: a table of reliability against minutes, for docs/truth.md.

    python benchmarks/reliability.py --subsets 24 epochs=1 epochs=2 epochs=2,batch_size=16 lora.init_seed=null

Each setting changes keys of `finetune` in configs/truth.yaml and is an experiment of its own, results/truth-NAME, which
holds the trainings of the same random subsets with two seeds each. Trainings that are there are not repeated. Of the
reliability of one seed, the mean over tasks stands with its 95% interval; minutes are those of one training, as its
jobs' benchmark files have them (of a job that was resumed, its last run: run it in one go).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from icprobe import paths
from icprobe.analysis.agreement import Jackknife, ceiling, reliability
from icprobe.analysis.predictions import outcomes_of

SEEDS = [0, 1]


def changed(setting: str) -> dict[str, Any]:
    """The section `finetune` of "epochs=2,lora.rank=8"."""
    section: dict[str, Any] = {}
    for pair in setting.split(","):
        key, _, value = pair.partition("=")
        inner = section
        for name in key.split(".")[:-1]:
            inner = inner.setdefault(name, {})
        inner[key.split(".")[-1]] = yaml.safe_load(value)
    return section


def measure(setting: str, base: str, subsets: int, arguments: list[str]) -> str:
    """Train as the setting says, and return its row of the table."""
    experiment = "truth-" + "".join(letter if letter.isalnum() else "-" for letter in setting)
    configuration = {
        "experiment": experiment,
        "finetune": changed(setting),
        "truth": {"subsets": subsets, "seeds": SEEDS, "removals": [], "leave_one_out": 0},
    }
    layers = [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in ("config.yaml", base)]
    model = next(layer["models"][0] for layer in reversed(layers) if "models" in layer)
    names = {"experiment": experiment, "model": model}
    outcomes = paths.truth_outcomes("subsets").format(**names)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(configuration, file)
        file.flush()
        command = ["snakemake", outcomes, "--configfile", base, file.name, *arguments]
        subprocess.run([sys.executable, "-m", *command], check=True, stdout=sys.stderr)
    table = pd.read_parquet(outcomes)
    values, _ = outcomes_of(table, "tasks", list(dict.fromkeys(table["subset"])))
    rows = Jackknife.over(len(values))
    value, low, high = rows.interval(reliability(values, rows).mean(axis=1))
    jobs = Path(paths.benchmark(f"retrain/{model}/subsets/x", experiment)).parent.glob("*.benchmark.tsv")
    seconds = sum(pd.read_csv(job, sep="\t")["s"].sum() for job in jobs)
    minutes = seconds / 60 / (len(values) * len(SEEDS))
    return f"| {setting} | {minutes:.1f} | {value:.2f} [{low:.2f}, {high:.2f}] | {ceiling(value, len(SEEDS)):.2f} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--configfile", default="configs/truth.yaml")
    parser.add_argument("--subsets", type=int, default=24)
    parser.add_argument("--snakemake", default="--cores 2", help="its options, such as '--cores 2 --resources heavy=2'")
    known = parser.parse_args()
    rows = [measure(one, known.configfile, known.subsets, known.snakemake.split()) for one in known.settings]
    print("| finetune | minutes a training | reliability of one seed | ceiling of the mean of two |")
    print("|---|---:|---:|---:|")
    print("\n".join(rows))
