"""A figure of the synthetic check: correlations against noise or dimension, or the transformer's learning curves."""

import pandas as pd

from icprobe import plotting, synthetic_figures
from icprobe.jobs import job

with job(snakemake) as run:
    name, colors = snakemake.wildcards.figure, snakemake.params.colors
    table = pd.read_csv(snakemake.input[0])
    if name == "learning":
        figure, shown, title = synthetic_figures.learning(table, colors), table, "What the transformer has learned"
    else:
        figure, shown = synthetic_figures.correlations(table, name, colors=colors)
        title = f"Agreement on points of linear functions, against {name}"
    plotting.save(figure, snakemake.output.figure, shown, title, f"synthetic_{name}")
    run.figure(name, snakemake.output.figure)
