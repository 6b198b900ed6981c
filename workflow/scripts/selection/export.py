"""A folder of all selections with a card, as a data set that others can load."""

import logging
from pathlib import Path

import pandas as pd

import icprobe
from icprobe.artifacts import write_text
from icprobe.tables.parquet import read_parquet, write_parquet
from icprobe.tracking.environment import commit
from icprobe.training.publishing import are_plain, card, rows
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    listed, columns, plain = [], [], are_plain(files.messages)
    for number, (name, model, chosen) in enumerate(params.data_sets):
        of_model = files.scores[params.models.index(model)]
        table = rows(files.subsets[number], files.messages[number], of_model, plain)
        columns += [column for column in table if column not in columns]
        write_parquet(table, snakemake.output.tables[number])
        listed.append((name, model, f"{len(table):,}", chosen))
        logging.info("%s: %d rows", name, len(table))
    facts = {
        **params.facts,
        "chosen from": f"{len(read_parquet(files.scores[0], columns=['id'])):,} examples",
        "icprobe": f"{icprobe.__version__}, commit {commit()}",
    }
    told = card(
        params.title,
        pd.DataFrame(listed, columns=["name", "model", "rows", "chosen by"]),
        columns,
        params.asks,
        facts,
        params.licence,
        params.hub,
        not plain,
    )
    write_text(snakemake.output.card, told)
    logging.info("load it: datasets.load_dataset(%r, %r)", str(Path(snakemake.output.card).parent), listed[0][0])
    run.summary(data_sets=len(listed))
