"""The figures of one group, one after another; what they read is read once."""

import logging

from icprobe import figures
from icprobe.figures.drawing import Inputs, save
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    inputs = Inputs(snakemake.input, snakemake.params)
    for (name, *pair), path in zip(snakemake.params.figures, snakemake.output.figures, strict=True):
        drawn = figures.draw(name, inputs, *pair)
        save(drawn.figure, path, drawn.table, drawn.title, name)
        run.figure(figures.stem(name, *pair), path)
        for finding in drawn.findings:
            logging.info("%s", finding)
        if drawn.findings:
            run.table(f"{name}_table", drawn.table)  # not its own name: that is the figure's
