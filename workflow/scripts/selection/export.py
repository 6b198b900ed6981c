"""A folder of all selections with a card, as a data set that others can load."""

import logging
from pathlib import Path

import pandas as pd

import icprobe
from icprobe.artifacts import write_text
from icprobe.tables.parquet import read_parquet, write_parquet
from icprobe.tracking.environment import commit
from icprobe.training.publishing import card, rows
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    listed, columns, in_json = [], [], False
    for number, (name, model, chosen) in enumerate(params.data_sets):
        table = rows(files.subsets[number], files.messages[number], files.scores[params.models.index(model)])
        columns += [column for column in table if column not in columns]
        in_json |= isinstance(table["messages"].iloc[0], str)
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
        in_json,
    )
    write_text(snakemake.output.card, told)
    logging.info("load it: datasets.load_dataset(%r, %r)", str(Path(snakemake.output.card).parent), listed[0][0])
    run.summary(data_sets=len(listed))
