"""Overlap of each method's bins with ICP's."""

from icprobe import artifacts
from icprobe.figures import plotting
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    table = artifacts.read_csv(snakemake.input[0]).query("domain == 'all'")
    plotting.save(
        plotting.overlap_curve(table, snakemake.params.colors),
        snakemake.output.figure,
        table,
        "Overlap of the bins",
        "overlaps",
    )
    run.figure("overlaps", snakemake.output.figure)
