"""Checks that the examples' labels have the values that mark good ones, before anything is measured."""

import logging

from icprobe.artifacts import write_json
from icprobe.tables import checking, labels
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    params = snakemake.params
    # All rows, not the sample: one without a good example is no mistake.
    table = checking.read_table(params.source, labels=params.labels, on_empty=params.on_empty)
    counts = labels.check_sound_labels(table, params.good)
    for remark in labels.check_unmarked(table, params.labels, [*params.good, *params.unmarked]):
        logging.warning("%s", remark)
    write_json(snakemake.output[0], counts)
    told = ", ".join(f"{n} by {label}" for label, n in counts.items()) or "no label has good values"
    logging.info("good examples among %d rows: %s", len(table), told)
    run.summary(**{f"good/{label}": count for label, count in counts.items()})
