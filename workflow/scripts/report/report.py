"""The HTML report of one experiment."""

import json
import logging
from pathlib import Path

import pandas as pd

from icprobe import artifacts, paths
from icprobe.report import build
from icprobe.report.findings import ModelInputs
from icprobe.report.provenance import RuleRun
from icprobe.report.sentences import theta
from icprobe.tables.duplicates import read, remark
from icprobe.tracking import environment
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    models = {}
    for model in params.models:
        of_model = {"experiment": params.experiment, "model": model}
        folder = Path(paths.OF_MODEL.format(**of_model))
        tables = {Path(name).stem: folder / name for name in params.tables}
        models[model] = ModelInputs(
            scores={m: paths.scores(m).format(**of_model) for m in params.methods},
            attributions={m: paths.matrix(m).format(**of_model) for m in params.methods},
            lengths=paths.LENGTHS.format(**of_model),
            figures=[folder / name for name in params.figures],
            **tables,
        )
    manifests = [json.loads(Path(path).read_text(encoding="utf-8")) for path in snakemake.input.manifests]
    chosen = [json.loads(Path(path).read_text(encoding="utf-8")) for path in snakemake.input.chosen]
    build.build(
        snakemake.output[0],
        params.experiment,
        params.config_text,
        models,
        pd.read_parquet(snakemake.input.train),
        pd.read_parquet(snakemake.input.tasks),
        params.labels,
        params.sound_labels,
        params.examples,
        environment.of_results(snakemake.input, [log for rule in params.rules.values() for log in rule["logs"]]),
        [
            RuleRun(name, seconds, megabytes, rule["needs"], rule["makes"], rule["message"])
            for name, rule in params.rules.items()
            for seconds, megabytes in [*map(environment.measured, rule["logs"])] or [(None, None)]
        ],
        next(iter(snakemake.input.sweep), None),
        params.colors,
        params.asked,
        [*params.objective, *map(theta, params.models_here, manifests, chosen or [None] * len(manifests))],
        params.selections,
        *(remark(len(read(path)), params.deduplicate) for path in snakemake.input.duplicates),
        baselines=params.baselines,
        repeated=next((artifacts.read_csv(path) for path in snakemake.input.repeated), None),
    )
    size = Path(snakemake.output[0]).stat().st_size / 1e6
    logging.info("%s, %.1f MB: open it in a browser, no network is needed", snakemake.output[0], size)
    run.summary(megabytes=size)
