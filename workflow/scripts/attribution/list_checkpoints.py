"""The checkpoints that are given: where they lie, the learning rates there, and what is in them."""

import logging

from icprobe.artifacts import file_digest, write_json
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    pairs = zip(params.directories, params.learning_rates, strict=True)
    listed = [{"directory": directory, "learning_rate": rate} for directory, rate in pairs]
    # By these what is computed along them is known: of large files, too, all bytes.
    digests = {file: file_digest(file) for file in snakemake.input.files}
    write_json(snakemake.output[0], {"checkpoints": listed, "contents": digests})
    for one in listed:
        logging.info("%s: learning rate %g", one["directory"], one["learning_rate"])
    run.summary(checkpoints=len(listed))
