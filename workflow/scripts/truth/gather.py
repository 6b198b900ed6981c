"""Puts the chunks of retrained models' outcomes into one table."""

import pandas as pd

from icprobe.tables import parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    table = pd.concat([parquet.read_parquet(path) for path in snakemake.input], ignore_index=True)
    parquet.write_parquet(table, snakemake.output[0])
    run.summary(trainings=len(table[["subset", "seed"]].drop_duplicates()))
