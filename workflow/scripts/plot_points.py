"""The figures of the synthetic check: correlations against noise and dimension, and the learning curves."""

import pandas as pd

from icprobe import plotting, synthetic_figures
from icprobe.jobs import job

with job(snakemake) as run:
    titles, colors = snakemake.params.titles, snakemake.params.colors
    learning, table = pd.read_csv(snakemake.input.learning), pd.read_csv(snakemake.input.correlations)
    for name, title in titles.items():
        if name == "learning":
            figure, shown = synthetic_figures.learning(learning, colors), learning
        else:
            figure, shown = synthetic_figures.correlations(table, name, colors=colors)
        plotting.save(figure, snakemake.output[name], shown, title, f"synthetic_{name}")
        run.figure(name, snakemake.output[name])
