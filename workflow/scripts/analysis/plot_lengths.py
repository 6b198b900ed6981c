"""Each method's scores against response length."""

import pandas as pd

from icprobe.figures import plotting
from icprobe.tables.parquet import read_scores
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    scores = read_scores(snakemake.params.methods, snakemake.input.scores)
    n_target = pd.read_parquet(snakemake.input.lengths).set_index("id")["n_target"]
    table = pd.DataFrame(scores).assign(n_target=n_target)
    spearman = table.corr(method="spearman")["n_target"]
    figure = plotting.length_scatter(
        scores, n_target, snakemake.params.axis_labels, spearman.to_dict(), snakemake.params.colors
    )
    plotting.save(figure, snakemake.output.figure, table.reset_index(), "Scores against response length", "lengths")
    run.figure("lengths", snakemake.output.figure)
