"""A model under its name alone: a link to the directory that the name and its source have."""

from icprobe.artifacts import link
from icprobe.workflow.jobs import job

with job(snakemake):
    link(snakemake.output[0], snakemake.input.model)
