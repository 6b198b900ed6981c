"""The links of the chain icp ~ one_step ~ influence, over all tasks and each domain's, and which one is weak."""

import logging

import pandas as pd

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.chain import chain, weak_link
from icprobe.analysis.domains import ALL, task_domains
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    icp, influence = read_parquet(files.icp), read_parquet(files.influence)
    steps = {eta: read_parquet(path) for eta, path in zip(params.learning_rates, files.one_step, strict=True)}
    domains = task_domains(read_parquet(files.tasks))
    tables = []
    for domain, ids in {ALL: list(icp.columns.drop("id")), **domains}.items():
        columns = ["id", *ids]
        of_domain = {eta: matrix[columns] for eta, matrix in steps.items()}
        table = chain(
            icp[columns], influence[columns], of_domain, params.aggregators, seed=params.seed, **params.settings
        )
        tables.append(headline.named(table, snakemake.wildcards.model, domain))
    table = pd.concat(tables, ignore_index=True)
    sentence = weak_link(tables[0])
    if params.dtype != "float32":
        sentence += f" Influence was computed in {params.dtype}, whose rounding is part of that error."
    artifacts.write_csv(snakemake.output.table, table)
    artifacts.write_text(snakemake.output.sentence, sentence + "\n")
    logging.info("%s", sentence)
    run.table("chain", table)
    run.summary(weak_link=sentence, **headline.of_chain(table))
