"""Examples and tasks of scores that come without texts: their ids, and empty texts."""

import logging

import pandas as pd

from icprobe.attribution.external import rows
from icprobe.tables import checking, parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    for number, (table, method) in enumerate(params.methods.items()):
        ids = rows(method, params.sources[table])[table == "tasks"] if method else []
        if table == "tasks":
            checking.check_tasks(ids)
        frame = pd.DataFrame({"id": pd.Series(ids, dtype=str), **dict.fromkeys(checking.TEXTS, "")})
        parquet.write_parquet(frame, snakemake.output[number])
        logging.info("%s: %d rows, numbered by %s", table, len(frame), method)
        run.summary(**{table: len(frame)})
