"""Checks that a model can be used in the dtype of attributions, training or responses, before anything is computed."""

from icprobe.artifacts import write_json
from icprobe.engine.capabilities import Capabilities
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    dtype = snakemake.params.dtype
    Capabilities.of(snakemake.input.model).check_dtype(dtype, snakemake.wildcards.get("section", "attribution"))
    write_json(snakemake.output[0], {"dtype": dtype})
    run.summary(dtype=dtype)
