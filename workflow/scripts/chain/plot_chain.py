"""Correlations of the chain's links, and the error of one_step/η against influence, by step size."""

from icprobe import artifacts
from icprobe.figures import plotting, plotting_sweeps
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    table = artifacts.read_csv(snakemake.input[0]).query("domain == 'all' and level in ('element', 'example')")
    figure = plotting_sweeps.chain_curves(table, snakemake.params.colors)
    plotting.save(figure, snakemake.output.figure, table, "The chain icp, one_step, influence", "chain")
    run.figure("chain", snakemake.output.figure)
