"""A figure of the synthetic check: correlations against noise or dimension, or the transformer's learning curves."""

import pandas as pd

from icprobe import plotting, synthetic_figures
from icprobe.jobs import job

with job(snakemake) as run:
    name, colors = snakemake.wildcards.figure, snakemake.params.colors
    table = pd.read_csv(snakemake.input[0])
    if name == "learning":
        figure, shown = synthetic_figures.learning(table, colors), table
    else:
        figure, shown = synthetic_figures.correlations(table, name, colors=colors)
    plotting.save(figure, snakemake.output.figure, shown)
    run.figure(name, snakemake.output.figure)
