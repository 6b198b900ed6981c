"""Reads the task file, checks it and chooses the tasks."""

import logging

from icprobe.tables import checking, parquet
from icprobe.tables.fitting import choose_tasks
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    candidates = checking.read_table(params.source, extra=["domain"], on_empty=params.on_empty)
    empty = candidates.attrs["dropped_empty"]
    if turns := candidates.attrs["turns_left"]:
        logging.warning("%d turns at the end of tasks' conversations have no answer and are left away", turns)
    from icprobe.texts.tokenizing import reader

    def hidden_states(texts):
        from icprobe.engine.capabilities import Capabilities
        from icprobe.engine.models import load_model
        from icprobe.engine.representations import mean_hidden_states
        from icprobe.texts.tokenizing import load_tokenizer

        directory = snakemake.input.models[0]
        return mean_hidden_states(load_model(directory), Capabilities.of(directory), load_tokenizer(directory), texts)

    readers = [reader(path) for path in snakemake.input.models]
    how = params.source["select"], params.seed, prompts_of(params.templates), readers, params.on_too_long
    tasks = choose_tasks(candidates, *how, hidden_states)
    parquet.write_parquet(tasks, snakemake.output[0])
    too_long = tasks.attrs["too_long"]
    logging.info(
        "%d candidates, %d tasks chosen (%d too long, %d empty ones dropped)",
        len(candidates),
        len(tasks),
        too_long,
        empty,
    )
    run.summary(candidates=len(candidates), tasks=len(tasks), too_long=too_long, empty=empty)
