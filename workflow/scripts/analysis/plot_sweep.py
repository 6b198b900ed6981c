"""icp against influence by model and by domain of task."""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.analysis.domains import sweep_table
from icprobe.figures import plotting, plotting_sweeps
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    correlations = pd.concat([artifacts.read_csv(path) for path in files.correlations], ignore_index=True)
    table = sweep_table(correlations, read_parquet(files.tasks), read_parquet(files.train), params.in_domain)
    figure = plotting_sweeps.sweep_points(table, params.colors)
    plotting.save(figure, snakemake.output.figure, table, "icp against influence by model and by domain", "sweep")
    for row in table.itertuples():
        text = f"{row.domain} {f'({row.kind}, ' if row.kind else '('}{row.n_tasks} tasks)"
        logging.info(
            "%s, %s: Spearman(icp, influence) = %.3f [%.3f, %.3f]", row.model, text, row.value, row.low, row.high
        )
    run.table("sweep", table)
    run.figure("sweep", snakemake.output.figure)
