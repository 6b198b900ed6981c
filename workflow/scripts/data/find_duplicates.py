"""Lists the training examples that repeat an earlier one, exactly or nearly; they are dropped."""

import logging

from icprobe import artifacts
from icprobe.tables import checking
from icprobe.tables.duplicates import duplicates, remark
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    train = checking.read_table(params.source, on_empty=params.on_empty)
    found = duplicates(train, params.deduplicate)
    artifacts.write_csv(snakemake.output[0], found)
    logging.info("%s, of %d", remark(len(found), params.deduplicate), len(train))
    run.summary(duplicates=len(found), of=len(train))
