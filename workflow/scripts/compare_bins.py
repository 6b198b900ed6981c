"""How much of each method's bins lies in ICP's, with chance beside it."""

import logging

from icprobe import artifacts
from icprobe.binning import overlaps
from icprobe.data import read_scores
from icprobe.jobs import job

with job(snakemake) as run:
    table = overlaps(read_scores(snakemake.params.methods, snakemake.input.scores), snakemake.params.bins)
    table.insert(0, "model", snakemake.wildcards.model)
    artifacts.write_csv(snakemake.output[0], table)
    for name, rows in table.groupby("bin", sort=False):
        logging.info("bin %s: %d examples", name, rows["n"].max())
    run.table("overlaps", table)
    run.summary(**{f"overlap/{row.method}/{row.bin}": row.overlap for row in table.itertuples()})
