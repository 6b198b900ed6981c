"""Checks that the model can read a method's contexts, before any of them is read."""

import logging

from icprobe.artifacts import write_json
from icprobe.tables import parquet
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    # transformers reads the environment that the job sets when it is imported.
    from icprobe.attribution.contexts import check
    from icprobe.texts.tokenizing import reader

    files, params, method = snakemake.input, snakemake.params, snakemake.wildcards.method
    tables = [parquet.read_parquet(file) for file in (files.train, files.tasks, files.lengths)]
    found = check(method, params.settings, *tables, prompts_of(params.templates), reader(files.model), params.seed)
    write_json(snakemake.output[0], found)
    logging.info("%s: %d contexts that the model can read; about %d tokens", method, found["contexts"], found["tokens"])
    run.summary(**found)
