# From scores to tables. No torch here.

SCORES = [paths.scores(method) for method in CONFIG.attribution.methods]
# What the tables by domain of task are made from besides.
DOMAIN_INPUTS = dict(
    matrices=[paths.matrix(method) for method in PLAN.per_task],
    tasks=paths.TASKS,
)
TABLES = [f"tables/{name}" for name in PLAN.tables]
# Every example with all that is known of it; no input of the report, which has its own.
SCORE_TABLES = ["tables/scores.parquet", "tables/scores.csv"]


rule tabulate_scores:
    localrule: True
    message:
        "Putting the examples and scores of {wildcards.model} into one table"
    input:
        train=paths.TRAIN,
        lengths=paths.LENGTHS,
        scores=SCORES,
    output:
        parquet=paths.table("scores.parquet"),
        csv=paths.table("scores.csv"),
    params:
        methods=CONFIG.attribution.methods,
        code=fingerprint("analysis/tabulate_scores"),
    log:
        paths.log("tabulate_scores/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("tabulate_scores/{model}")
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/tabulate_scores.py"


rule correlate:
    message:
        "Correlating the scores of {wildcards.model}"
    input:
        **DOMAIN_INPUTS,
        scores=SCORES,
        lengths=paths.LENGTHS,
    output:
        table("correlations", "Agreement of the methods", "correlations"),
    params:
        methods=CONFIG.attribution.methods,
        domains=PLAN.domains,
        settings=slice_of(CONFIG.analysis, "resamples", "analytic_above"),
        seed=CONFIG.seed,
        code=fingerprint("analysis/correlate"),
    log:
        paths.log("correlate/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("correlate/{model}")
    resources:
        **RESOURCES["correlate"],
    script:
        "../workflow/scripts/analysis/correlate.py"


rule tabulate_bins:
    localrule: True
    message:
        "Finding the scores at which the bins of {wildcards.model} end"
    input:
        scores=SCORES,
        checked=BINS_CHECKED,
    output:
        table("bins", "Scores", "bins"),
    params:
        methods=CONFIG.attribution.methods,
        bins=CONFIG.bins,
        code=fingerprint("analysis/tabulate_bins"),
    log:
        paths.log("tabulate_bins/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("tabulate_bins/{model}")
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/tabulate_bins.py"


rule compare_bins:
    localrule: True
    message:
        "Comparing the bins of {wildcards.model}"
    input:
        **DOMAIN_INPUTS,
        scores=SCORES,
    output:
        table("overlaps", "Agreement of the methods", "overlap of bins"),
    params:
        methods=CONFIG.attribution.methods,
        domains=PLAN.domains,
        bins=CONFIG.bins,
        code=fingerprint("analysis/compare_bins"),
    log:
        paths.log("compare_bins/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("compare_bins/{model}")
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/compare_bins.py"


if PLAN.tail_patch:

    rule tail_patch:
        localrule: True
        message:
            "What one step on the best and the worst examples of each method does, {wildcards.model}"
        input:
            scores=[paths.scores(method) for method in PLAN.tail_patch],
            one_step=paths.matrix("one_step"),
            checked=BINS_CHECKED,
        output:
            table("tail_patch", "Fine-tuned models", "tail patch"),
        params:
            methods=PLAN.tail_patch,
            bins=CONFIG.bins,
            unit=METHODS["one_step"].unit,
            code=fingerprint("analysis/tail_patch"),
        log:
            paths.log("tail_patch/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("tail_patch/{model}")
        resources:
            **RESOURCES["score"],
        script:
            "../workflow/scripts/analysis/tail_patch.py"


rule tell_labels:
    localrule: True
    message:
        "How well each method of {wildcards.model} tells good examples from others"
    input:
        **DOMAIN_INPUTS,
        scores=SCORES,
        lengths=paths.LENGTHS,
        train=paths.TRAIN,
        checked=LABELS_CHECKED,
    output:
        aucs=table("label_aucs", "Sound examples and others", "AUC of labels"),
        differences=table("label_auc_differences", "Sound examples and others", "differences of AUCs"),
        correlations=table("label_correlations", "Sound examples and others", "correlations with labels"),
    params:
        methods=CONFIG.attribution.methods,
        domains=PLAN.domains,
        labels=CONFIG.data.labels,
        good=PLAN.sound_labels,
        baselines=PLAN.baselines,
        settings=slice_of(CONFIG.analysis, "resamples", "analytic_above"),
        seed=CONFIG.seed,
        code=fingerprint("analysis/tell_labels"),
    log:
        paths.log("tell_labels/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("tell_labels/{model}")
    resources:
        **RESOURCES["tell_labels"],
    script:
        "../workflow/scripts/analysis/tell_labels.py"
