"""One method's scores against another's."""

import pandas as pd

from icprobe import artifacts
from icprobe.analysis.statistics import kinds
from icprobe.figures import plotting
from icprobe.tables.parquet import read_scores
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    a, b = snakemake.wildcards.method_a, snakemake.wildcards.method_b
    params = snakemake.params
    scores = read_scores([a, b], [snakemake.input.a, snakemake.input.b])
    train = pd.read_parquet(snakemake.input.train).set_index("id")
    labels = kinds(train, params.labels)
    correlations = artifacts.read_csv(snakemake.input.correlations).query("domain == 'all'")
    figure = plotting.scatter(scores, a, b, labels, correlations, params.axis_labels, params.colors)
    table = pd.DataFrame(scores).assign(**({} if labels is None else {labels.name: labels})).reset_index()
    plotting.save(figure, snakemake.output.figure, table, f"{a} against {b}", "scatter")
    run.figure(f"scatter/{a}--{b}", snakemake.output.figure)
