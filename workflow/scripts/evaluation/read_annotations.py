"""Judgements from annotations in AlpacaEval's form."""

import logging

from icprobe import jsonl
from icprobe.evaluation.judges.annotations import read_annotations
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    judgements = read_annotations(list(snakemake.input), snakemake.params.generator)
    jsonl.write(judgements, snakemake.output[0])
    unreadable = sum(row["preference"] is None for row in judgements)
    logging.info("%d judgements from %s, %d without a preference", len(judgements), snakemake.input, unreadable)
    run.summary(judgements=len(judgements), unreadable=unreadable)
