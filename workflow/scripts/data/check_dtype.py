"""Checks that a model can be used in the dtype of the attributions, before anything is measured."""

import json
from pathlib import Path

from icprobe.artifacts import write_json
from icprobe.engine.dtypes import refuse_dtype
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    dtype = snakemake.params.dtype
    refuse_dtype(json.loads(Path(snakemake.input.manifest).read_text(encoding="utf-8")), dtype)
    write_json(snakemake.output[0], {"dtype": dtype})
    run.summary(dtype=dtype)
