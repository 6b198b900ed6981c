"""Rank correlations of all pairs of methods: plain below the diagonal, given response length above it."""

from icprobe import artifacts
from icprobe.figures import plotting
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    table = artifacts.read_csv(snakemake.input[0]).query("domain == 'all'")
    partial = "spearman_partial_length" if "spearman_partial_length" in set(table["statistic"]) else None
    figure = plotting.heat_map(table, "spearman", snakemake.params.methods, above=partial)
    shown = table[table["statistic"].isin(["spearman", "spearman_partial_length"])]
    plotting.save(figure, snakemake.output.figure, shown, "Correlations of the methods", "heat_map")
    run.figure("correlations", snakemake.output.figure)
