"""The figures of the synthetic check: correlations against noise and dimension, and the learning curves."""

from icprobe import artifacts
from icprobe.figures.drawing import save
from icprobe.synthetic import figures
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    titles, colors = snakemake.params.titles, snakemake.params.colors
    learning, table = artifacts.read_csv(snakemake.input.learning), artifacts.read_csv(snakemake.input.correlations)
    for name, title in titles.items():
        if name == "learning":
            figure, shown = figures.learning(learning, colors), learning
        else:
            figure, shown = figures.correlations(table, name, colors=colors)
        save(figure, snakemake.output[name], shown, title, f"synthetic_{name}")
        run.figure(name, snakemake.output[name])
