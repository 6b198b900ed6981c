"""Reads the training examples, checks every row, samples, and keeps what fits every model."""

import logging

from icprobe.tables import checking, parquet
from icprobe.tables.duplicates import read as read_duplicates
from icprobe.tables.duplicates import without
from icprobe.tables.fitting import draw, fit_train
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    prompts = prompts_of(params.templates)
    train = checking.read_table(params.source, extra=["domain"], labels=params.labels, on_empty=params.on_empty)
    empty = train.attrs["dropped_empty"]
    read = len(train) + empty
    from icprobe.texts.tokenizing import reader

    if turns := train.attrs["turns_left"]:
        logging.warning("%d turns at the end of conversations have no answer and are left away", turns)
    dropped = [read_duplicates(path) for path in snakemake.input.duplicates]
    for found in dropped:
        train = without(train, found)
    duplicates = sum(map(len, dropped))
    readers = [reader(path) for path in snakemake.input.models]
    train = draw(train, params.source["sample"], prompts, readers, "data.train.sample")
    train = fit_train(train, parquet.read_parquet(snakemake.input.tasks), prompts, readers, params.on_too_long)
    parquet.write_parquet(train, snakemake.output[0])
    too_long = train.attrs["too_long"]
    dropped = f"{empty} empty ones and {duplicates} duplicates dropped" if dropped else f"{empty} empty ones dropped"
    logging.info("%d rows read, %s, %d too long, %d kept", read, dropped, too_long, len(train))
    run.summary(read=read, dropped_empty=empty, duplicates=duplicates, too_long=too_long, examples=len(train))
