"""How far icp, influence and the closed form agree on the values of points, for each dimension and noise."""

import logging

from icprobe import artifacts
from icprobe.synthetic.closed_forms import correlations
from icprobe.tables import parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    values = parquet.read_parquet(snakemake.input[0])
    table = correlations(values, snakemake.params.resamples, snakemake.params.seed)
    artifacts.write_csv(snakemake.output[0], table)
    for row in table[table["statistic"] == "spearman"].itertuples():
        logging.info(
            "d = %d, noise %g: Spearman(%s, %s) = %.3f", row.dimension, row.noise, row.method_a, row.method_b, row.value
        )
    run.table("correlations", table)
