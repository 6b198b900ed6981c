"""Win rates of the fine-tuned models."""

from icprobe import artifacts
from icprobe.figures import plotting
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    table = artifacts.read_csv(snakemake.input[0])
    plotting.save(
        plotting.win_rate_bars(table, colors=snakemake.params.colors),
        snakemake.output.figure,
        table,
        "Win rates",
        "win_rates",
    )
    run.figure("win_rates", snakemake.output.figure)
