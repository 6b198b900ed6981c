# The HTML reports, each one file that shows what was found, and how: of all, of the scores alone, and of retraining.

REPORT_INPUTS = dict(
    train=paths.TRAIN.format(experiment=CONFIG.experiment),
    tasks=paths.TASKS.format(experiment=CONFIG.experiment),
    lengths=expand(paths.LENGTHS, **EACH_MODEL),
    scores=each_model_and_method(paths.scores()),
    attributions=each_model_and_method(paths.matrix()),
    manifests=[paths.manifest(MODELS[model]) for model in PLAN.models_here] if PLAN.objective else [],
    duplicates=DUPLICATES,
    chosen=[each_model("data/parameters.checked.json")] if PLAN.parameters_chosen else [],
)
REPORT_PARAMS = dict(
    experiment=CONFIG.experiment,
    models=CONFIG.models,
    models_here=PLAN.models_here if PLAN.objective else [],
    methods=CONFIG.attribution.methods,
    labels=CONFIG.data.labels,
    sound_labels=CONFIG.data.sound_labels,
    examples=CONFIG.report.examples,
    colors=CONFIG.figures.colors,
    asked={method: [METHODS[method].asks, score_unit(method)] for method in CONFIG.attribution.methods},
    baselines=PLAN.baselines,
    objective=PLAN.objective,
    **slice_of(CONFIG.data, "deduplicate"),
    selections=in_words(CONFIG.selections),
    # W&B's options change no result, so they are no part of the record.
    config_text=lambda w: CONFIG.as_yaml(exclude={"wandb", "estimate"}),
    templates=package_files("report/templates/report.*"),
)

REPORT_TABLES = [*TABLES, *HELD_OUT_TABLES, *JUDGED_TABLES, *(TRUTH_TABLES if CONFIG.truth.in_all else [])]


rule report:
    localrule: True
    message:
        f"Writing the report of {CONFIG.experiment}"
    input:
        **REPORT_INPUTS,
        repeated=REPEATED,
        tables=[each_model(path) for path in REPORT_TABLES],
        figures=[each_model(path) for path in model_figures()],
        sweep=sweep_figures(),
    # No wildcards: it is a target, too.
    output:
        paths.REPORT.format(experiment=CONFIG.experiment),
    params:
        **REPORT_PARAMS,
        tables=REPORT_TABLES,
        figures=model_figures(),
        rules=lambda w: provenance.behind("report", workflow.dag, PLACE.name),
        code=fingerprint("report/report"),
    log:
        paths.log("report", CONFIG.experiment),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("report", CONFIG.experiment)
    resources:
        **RESOURCES["report"],
    script:
        "../workflow/scripts/report/report.py"


# The same page without tables and figures: what it has not is no section of it.
use rule report as report_scores with:
    localrule: True
    message:
        f"Writing the report of the scores of {CONFIG.experiment}"
    input:
        **REPORT_INPUTS,
        repeated=[],
        sweep=[],
    output:
        paths.SCORES_REPORT.format(experiment=CONFIG.experiment),
    params:
        **REPORT_PARAMS,
        tables=[],
        figures=[],
        rules=lambda w: provenance.behind("report_scores", workflow.dag, PLACE.name),
        code=fingerprint("report/report"),
    log:
        paths.log("report_scores", CONFIG.experiment),
    benchmark:
        paths.benchmark("report_scores", CONFIG.experiment)


if PLAN.truth_parts:

    # What `snakemake truth` shows where the report, which `all` makes, must not wait for retraining.
    use rule report as report_truth with:
        localrule: True
        message:
            f"Writing the report of what holds the methods of {CONFIG.experiment} against retraining"
        input:
            **REPORT_INPUTS,
            repeated=[],
            tables=[each_model(path) for path in [*TABLES, *TRUTH_TABLES]],
            figures=[each_model(path) for path in figure_files("truth")],
            sweep=[],
        output:
            paths.TRUTH_REPORT.format(experiment=CONFIG.experiment),
        params:
            **REPORT_PARAMS,
            tables=[*TABLES, *TRUTH_TABLES],
            figures=figure_files("truth"),
            rules=lambda w: provenance.behind("report_truth", workflow.dag, PLACE.name),
            code=fingerprint("report/report"),
        log:
            paths.log("report_truth", CONFIG.experiment),
        benchmark:
            paths.benchmark("report_truth", CONFIG.experiment)


rule scores:
    localrule: True
    message:
        f"{CONFIG.experiment}: every example's scores are in tables/scores.csv of each model, and in scores.html"
    input:
        [each_model(path) for path in SCORE_TABLES],
        paths.SCORES_REPORT.format(experiment=CONFIG.experiment),
