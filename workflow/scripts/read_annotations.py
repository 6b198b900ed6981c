"""Judgements from annotations in AlpacaEval's form."""

import logging

from icprobe import data
from icprobe.annotations import read_annotations
from icprobe.jobs import job

with job(snakemake) as run:
    judgements = read_annotations(list(snakemake.input), snakemake.params.generator)
    data.write_jsonl(judgements, snakemake.output[0])
    unreadable = sum(row["preference"] is None for row in judgements)
    logging.info("%d judgements from %s, %d without a preference", len(judgements), snakemake.input, unreadable)
    run.summary(judgements=len(judgements), unreadable=unreadable)
