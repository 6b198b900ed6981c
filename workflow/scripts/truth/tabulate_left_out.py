"""How well each method predicts what single examples give to models that are trained on all."""

import logging

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.domains import task_domains
from icprobe.analysis.lds import tabulate
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    files, params = snakemake.input, snakemake.params
    table, _ = tabulate(
        read_parquet(files.sets),
        read_parquet(files.outcomes),
        dict(zip(params.methods, files.attributions, strict=True)),
        params.per_task,
        read_parquet(files.lengths),
        task_domains(read_parquet(files.tasks)),
        reference="all",
        seed=params.seed,
    )
    table = table.rename(columns={"n_subsets": "n_examples"})
    table.insert(0, "model", snakemake.wildcards.model)
    artifacts.write_csv(snakemake.output[0], table)
    for row in headline.of_set(table).itertuples():
        logging.info("%s: %.3f (%.3f to %.3f); ceiling %.3f", row.method, row.lds, row.low, row.high, row.ceiling)
    run.table("leave_one_out", table)
    run.summary(**headline.of_lds(table, "leave_one_out"))
