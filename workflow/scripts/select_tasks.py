"""Reads the task file, checks it and chooses the tasks."""

import logging

from icprobe import data
from icprobe.fitting import fit_tasks
from icprobe.jobs import job
from icprobe.prompts import Prompts

with job(snakemake) as run:
    params = snakemake.params
    prompts = Prompts(params.templates)
    candidates = data.read_table(params.source, extra=["domain"], on_empty=params.on_empty)

    def hidden_states():
        from icprobe.models import load_model
        from icprobe.representations import mean_hidden_states
        from icprobe.tokenizing import load_tokenizer

        directory = snakemake.input.models[0]
        texts = [prompts.document(row) for row in data.records(candidates)]
        return mean_hidden_states(load_model(directory), load_tokenizer(directory), texts)

    chosen = data.select_tasks(candidates, params.source["select"], params.seed, hidden_states)
    from icprobe.tokenizing import reader

    readers = [reader(path) for path in snakemake.input.models]
    tasks = fit_tasks(chosen, prompts, readers, params.on_too_long)
    data.write_parquet(tasks, snakemake.output[0])
    logging.info("%d candidates, %d tasks chosen (%d too long)", len(candidates), len(tasks), tasks.attrs["too_long"])
    run.summary(candidates=len(candidates), tasks=len(tasks), too_long=tasks.attrs["too_long"])
