"""The tables of held-out gains and of the differences between methods."""

import logging

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.evaluation.held_out import tabulate
from icprobe.tables.parquet import read_parquet
from icprobe.workflow.jobs import job

GROUPS = {"tasks": "domain", "eval": "subset"}

with job(snakemake) as run:
    files, params = snakemake.input, snakemake.params
    groups = {}
    for name in params.sets:
        rows = read_parquet(files.get(name))
        groups[name] = dict(zip(rows["id"], rows[GROUPS[name]], strict=True)) if GROUPS[name] in rows else {}
    tuned = {
        tuple(condition): read_parquet(path) for condition, path in zip(params.conditions, files.tuned, strict=True)
    }
    table, differences = tabulate(read_parquet(files.base), tuned, groups)
    for path, found in ((snakemake.output.table, table), (snakemake.output.differences, differences)):
        # As of win rates: a model is fine-tuned by scores over all tasks; the domains of its answers are subsets.
        artifacts.write_csv(path, headline.named(found, snakemake.wildcards.model))
    tested = differences["p_value_holm"]
    logging.info("%d of %d differences are significant (Holm, 5%%)", (tested < 0.05).sum(), tested.notna().sum())
    run.table("held_out", table)
    run.table("held_out_differences", differences)
    run.summary(**headline.of_held_out(table))
