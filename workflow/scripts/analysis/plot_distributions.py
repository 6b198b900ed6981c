"""How each method's scores are distributed."""

import pandas as pd

from icprobe.figures import plotting
from icprobe.tables.parquet import read_scores
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    scores = read_scores(snakemake.params.methods, snakemake.input.scores)
    figure = plotting.distributions(scores, snakemake.params.axis_labels, snakemake.params.colors)
    plotting.save(
        figure,
        snakemake.output.figure,
        pd.DataFrame(scores).reset_index(),
        "Distributions of the scores",
        "distributions",
    )
    run.figure("distributions", snakemake.output.figure)
