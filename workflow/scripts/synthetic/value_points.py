"""The values of points of held-out linear functions by each method, and the model's errors against the best."""

import logging

from icprobe import artifacts
from icprobe.tables import parquet
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.synthetic.regressor import load
    from icprobe.synthetic.values import value_points

    settings = snakemake.params.settings
    values, learning = value_points(load(snakemake.input[0], settings), settings, snakemake.params.seed)
    parquet.write_parquet(values, snakemake.output.values)
    artifacts.write_csv(snakemake.output.learning, learning)
    last = learning[learning["n_context"] == settings["points"]]
    for row in last.itertuples():
        logging.info(
            "d = %d, noise %g: squared error %.3f after %d points; the best possible %.3f",
            *(row.dimension, row.noise, row.squared_error, row.n_context, row.optimal_squared_error),
        )
    run.table("learning", learning)
    run.summary(values=len(values))
