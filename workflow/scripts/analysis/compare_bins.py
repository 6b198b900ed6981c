"""How much of each method's bins lies in ICP's, with chance beside it."""

import logging

from icprobe import artifacts
from icprobe.analysis import headline
from icprobe.analysis.binning import overlaps
from icprobe.analysis.domains import by_domain, score_tables
from icprobe.workflow.jobs import job


def overlaps_of(tables):
    scores = {method: table["score"] for method, table in tables.items()}
    effects = {method: table["mean_effect"] for method, table in tables.items() if "mean_effect" in table}
    return overlaps(scores, snakemake.params.bins, mean_effects=effects)


with job(snakemake) as run:
    params, files = snakemake.params, snakemake.input
    sets = score_tables(params.methods, files.scores, files.matrices, files.tasks, **params.domains)
    # Published icp scores may be over all tasks alone: then no domain has bins.
    binned = ((domain, found) for domain, found in sets if "icp" in found)
    table = by_domain(snakemake.wildcards.model, binned, overlaps_of)
    artifacts.write_csv(snakemake.output[0], table)
    for name, rows in headline.over_all_tasks(table).groupby("bin", sort=False):
        logging.info("bin %s: %d examples", name, rows["n"].max())
    run.table("overlaps", table)
    run.summary(**headline.of_overlaps(table))
