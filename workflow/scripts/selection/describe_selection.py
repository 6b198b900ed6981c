"""How a selection is loaded into trainers, and what every method says of its examples, beside its files."""

import logging

import pyarrow.parquet as pq

from icprobe import artifacts, jsonl
from icprobe.paths import SELECTED
from icprobe.training import cards
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files, made, params, wildcards = snakemake.input, snakemake.output, snakemake.params, snakemake.wildcards
    ids, of = [row["id"] for row in jsonl.read(files.subset)], pq.read_metadata(files.scores).num_rows
    title, names = wildcards.method, (wildcards.experiment, wildcards.model, SELECTED)
    card = cards.card(title, params.selection, params.baseline, len(ids), of, *names)
    artifacts.write_text(made.card, card)
    artifacts.write_json(made.info, cards.dataset_info(title, SELECTED))
    jsonl.write(cards.scores_of(ids, files.scores), made.scores)
    logging.info("%d of %d examples are described", len(ids), of)
    run.summary(examples=len(ids), of=of)
