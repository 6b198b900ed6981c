"""Checks that a model has the linear layers that gradients are to be taken over, before any is taken."""

import logging
from dataclasses import asdict

from icprobe.artifacts import write_json
from icprobe.workflow.jobs import job

with job(snakemake) as run:
    from icprobe.engine.capabilities import Capabilities
    from icprobe.engine.gradients import coverage
    from icprobe.engine.skeleton import skeleton

    directory, parameters = snakemake.input.model, snakemake.params.parameters
    found = coverage(skeleton(directory), Capabilities.of(directory), parameters)
    write_json(snakemake.output[0], {"parameters": parameters, **asdict(found)})
    logging.info("%s", found.sentence(parameters))
    run.summary(layers=found.layers, share=found.share)
