"""Checks that there are enough examples, and tokens, for a selection, before anything is measured."""

import logging

from icprobe.analysis import selecting
from icprobe.artifacts import write_json
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files, rule = snakemake.input, snakemake.params.rule
    ids = read_parquet(files.train, columns=["id"])["id"]
    lengths, values = selecting.lengths_of(files.lengths, ids), selecting.values_of(files.train, rule, ids)
    most = selecting.check(snakemake.wildcards.method, rule, ids, lengths, values)
    write_json(snakemake.output[0], {"most": most, "of": len(ids)})
    logging.info("at most %d of %d examples", most, len(ids))
    run.summary(most=most, of=len(ids))
