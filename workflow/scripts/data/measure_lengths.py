"""Counts the tokens of each example's query and response, and checks that examples and tasks fit the context."""

import logging

from icprobe.tables import parquet
from icprobe.tables.fitting import fit_tasks, fit_train, lengths, unknown_lengths
from icprobe.tables.unread import tell_of_inputs
from icprobe.texts.chat import prompts_of
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    train = parquet.read_parquet(snakemake.input.train)
    if snakemake.input.model:
        from icprobe.texts.tokenizing import reader

        prompts, model = prompts_of(snakemake.params.templates), reader(snakemake.input.model)
        table = lengths(train, prompts, model)
        # Here and not where the tables are made, unless rows may be dropped or cut: so one model more touches no table.
        tasks = parquet.read_parquet(snakemake.input.tasks) if snakemake.input.tasks else train[:0]
        for rows, what in ((train, "examples"), (tasks, "tasks")):
            tell_of_inputs(rows, snakemake.params.templates, what)
        if len(tasks):
            fit_tasks(tasks, prompts, [model], "error")
        fit_train(train, tasks, prompts, [model], "error")
        total = int(table["n_query"].sum() + table["n_target"].sum())
        logging.info("%d examples, %d tokens, longest response %d", len(table), total, table["n_target"].max())
        run.summary(examples=len(table), tokens=total)
    else:
        table = unknown_lengths(train)
        logging.info("%d examples without texts or without a model: their lengths are unknown", len(table))
    parquet.write_parquet(table, snakemake.output[0])
