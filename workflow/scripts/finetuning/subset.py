"""The examples of one bin, best fitting first, as JSONL that trainers take: prompts and completions, and messages."""

import logging

import pandas as pd

from icprobe.analysis.binning import borders, members
from icprobe.formatting import bin_of, number
from icprobe.tables import checking
from icprobe.texts.chat import prompts_of
from icprobe.tracking import runs
from icprobe.training import subsets
from icprobe.workflow.jobs import job

logger = logging.getLogger(__name__)

with job(snakemake) as run:
    examples = pd.read_parquet(snakemake.input.examples).set_index("id", drop=False)
    if snakemake.wildcards.method == "all":
        chosen, score = examples.index, {}
    else:
        scores, bin = pd.read_parquet(snakemake.input.scores), bin_of(snakemake.wildcards.bin)
        # Of thresholds alone: the icp scores, which say how many examples they take.
        reference = pd.read_parquet(snakemake.input.reference) if snakemake.input.reference else None
        chosen = members(scores, bin, reference)
        score = scores.set_index("id")["score"].to_dict()
    prompts = prompts_of(snakemake.params.templates)
    subsets.write_subset(examples, chosen, score, prompts, snakemake.output.subset, snakemake.output.messages)
    logger.info("%d of %d examples are in the bin", len(chosen), len(examples))
    if score and len(chosen):
        known = {"icp": reference, snakemake.wildcards.method: scores}
        by_id = {name: table.set_index("id")["score"] for name, table in known.items() if table is not None}
        end = borders(by_id, [bin]).set_index("method").loc[snakemake.wildcards.method]
        if end["n_tied_inside"] < end["n_tied"]:
            how = "by mean effect, then by id" if "mean_effect" in scores else "by id"
            of = (end["n_tied_inside"], end["n_tied"], number(end["border"]), how)
            logger.warning("%d of %d examples with the score %s are in the bin, %s", *of)
    run.summary(examples=len(chosen), of=len(examples))
    shown = examples.loc[chosen[: runs.TABLE_ROWS], ["id", *checking.TEXTS]]
    # Not "examples": W&B keeps a table under its name in the summary, in the place of the number.
    run.table("members", shown.assign(score=[score.get(name) for name in shown["id"]]))
    if score and reference is not None and len(chosen):
        shared = set(chosen) & set(members(reference, bin, reference))
        run.summary(overlap=len(shared) / len(chosen))
