"""icprobe: what each training example is worth, measured in several ways and checked by fine-tuning.

`snakemake --cores 8 all` runs the experiment that config.yaml describes, the demo. `--configfile other.yaml` overrides
keys of it, or replaces it where that file brings data of its own.
"""

import gc
import sys

# Ten thousand jobs are millions of objects that all stay; to look through them for garbage so often as Python does by
# itself takes a twelfth of planning them.
gc.set_threshold(200_000, 20, 100)

try:
    from icprobe.config import stands_alone
except ModuleNotFoundError as error:
    if error.name != "icprobe":
        raise
    sys.exit(
        "icprobe: the package is not installed beside snakemake; `make install`, or pip install icprobe (docs/deploying.md)"
    )

# Before this line `config` holds what the command line gives.
if not stands_alone(config):

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/resources.smk"
include: "rules/drawing.smk"


# What another workflow that has this one as a module says, and its report, are its own.
if workflow.modifier.is_main_snakefile():
    # `snakemake -n --verbose` shows each job, too. Nothing is masked of thousands of records that nobody sees.
    brief = dry_run.Brief(lambda: workflow.dryrun and not workflow.output_settings.verbose, outlook)
    logger.filters.insert(logger.filters.index(masking.of_record), brief)
    logger.addFilter(log_filters.Suggestion(lambda: [rule.name for rule in workflow.rules if not rule.has_wildcards()]))
    logger.addFilter(log_filters.shorten_reason)

    report: "src/icprobe/figures/captions/workflow.rst"


wildcard_constraints:
    experiment=either([CONFIG.experiment]),
    model=either(CONFIG.models),
    method=either(PLAN.names_of_methods),
    bin=f"all|{SELECTED}|{BIN_NAME}",
    seed=r"\d+",
    scatteritem=r"\d+-of-\d+",


# Heavy jobs ask for one `heavy` each. On one machine they run one at a time, whatever its cores: they would share a GPU,
# and memory. Two run where models are small and there is room for both (icprobe.workflow.sharing). With `--resources
# gpu=4` there are four at a time, which take turns on the GPUs (icprobe.workflow.gpus). On a cluster each has a machine to
# itself, which is what `local` means.
resource_scopes:
    heavy="local",


# `--resources heavy=2` says otherwise.
if "heavy" not in workflow.global_resources:
    workflow.register_resource("heavy", AT_ONCE)


# A model's shards have the model's name: `--set-scatter pythia-1b-deduped=100`.
scattergather:
    **SIZES.shards,


include: "rules/models.smk"
include: "rules/data.smk"
include: "rules/checks.smk"
include: "rules/fisher.smk"
include: "rules/attribution.smk"
include: "rules/analysis.smk"
include: "rules/chain.smk"
include: "rules/figures.smk"
include: "rules/finetuning.smk"
include: "rules/trajectory.smk"
include: "rules/selection.smk"
include: "rules/evaluation.smk"
include: "rules/truth.smk"
include: "rules/truth_tables.smk"
include: "rules/frontier.smk"
include: "rules/report.smk"
include: "rules/synthetic.smk"
include: "rules/estimate.smk"


rule all:
    default_target: True
    localrule: True
    message:
        f"{CONFIG.experiment}: all results are there"
    input:
        paths.REPORT.format(experiment=CONFIG.experiment),
        # The report reads these too; named here, one that is removed comes back.
        [each_model(path) for path in [*TABLES, *SCORE_TABLES, *HELD_OUT_TABLES, *JUDGED_TABLES, *model_figures()]],
        sweep_figures(),
        [of_conditions(paths.CHECKPOINT, model, PLAN.unjudged) for model in CONFIG.models],
        # Where models are fine-tuned, theirs are made; `snakemake subsets` makes all.
        [] if PLAN.fine_tuned else SUBSETS,
        PUBLISHED,
        TRUTH if CONFIG.truth.in_all else [],
        REPEATED,
        SYNTHETIC if CONFIG.synthetic.in_all else [],


for rule in workflow.rules:
    signatures.remember(signatures.of_rule(rule))


# When this invocation began, by the clock that dates its logs; empty where no hook of ours ran first.
began = []


# Before any work: what is missing outside; where results and runs go; and what the workflow makes now, for `make sync` (not
# where options have taken jobs out of it).
onstart:
    began.append(artifacts.clock_of("."))
    require_outside()
    slow = dry_run.emulated(PLAN, PLACE.names(workflow.dag.needrun_jobs())) if workflow.local_exec else ""
    say("\n".join(filter(None, [destination.sentence(CONFIG.experiment), slow])))
    if TRACKED:
        jobs, last = PLACE.own(workflow.dag.jobs), PLACE.called("all")
        ends = [job for job in jobs if job.rule.name == last and workflow.dag.batch is None]
        # Of `snakemake all truth` only what `all` itself depends on.
        whole = {*workflow.dag.bfs(workflow.dag.dependencies, *ends)}
        made = [(job.rule.name, job.output) for job in jobs if job in whole]
        if made:
            # `snakemake subsets` makes more of them than `all` where models are fine-tuned.
            made.append((PLACE.called("subset"), SUBSETS))
            records.tell_present(CONFIG.experiment, made, whole=True)
        others = [(job.rule.name, job.output) for job in jobs if job not in whole]
        records.tell_present(CONFIG.experiment, others, whole=False)


# The last words, of runs that make a report: `all`, `truth`, `scores`. Dry runs, parts, and Snakemake within jobs have none.
onsuccess:
    made = PLACE.names(workflow.dag.jobs)
    if "estimate" in made:
        say(estimating.words(CONFIG, PLAN))
    # The report of all shows what that of the scores does.
    pages = {"report": paths.REPORT, "report_truth": paths.TRUTH_REPORT}
    shown = [page for rule, page in pages.items() if rule in made]
    if shown or "report_scores" in made:
        shown = shown or [paths.SCORES_REPORT]
        known = {str(path) for job in workflow.dag.jobs for path in job.output}
        given = {
            "reports": shown,
            "data_sets": PLAN.advisable,
            "baselines": PLAN.baselines,
            "own_run": modes.own_run,
        }
        say(terminal_summary.summary(CONFIG.experiment, CONFIG.models, TRACKED, made=known, **given))


onerror:
    jobs = [[(job.rule.name, job.wildcards_dict, job.log) for job in group] for group in failed_groups()]
    say(terminal_summary.failures(jobs, (*began, workflow.start_time.timestamp())[0]))


# As a module: Snakemake takes the hooks of the main Snakefile, which has these unless it says its own further down.
if PLACE.namespace and PLACE.is_first:
    PLACE.lend(onstart=onstart, onsuccess=onsuccess, onerror=onerror)
