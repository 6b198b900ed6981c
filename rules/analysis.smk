# From scores to tables and figures. No torch here; every figure also writes the numbers that it shows.

SCORES = expand("results/{{experiment}}/{{model}}/scores/{method}.parquet", method=CONFIG.attribution.methods)
# What the tables by domain of task are made from besides.
DOMAIN_INPUTS = dict(
    matrices=expand("results/{{experiment}}/{{model}}/attributions/{method}.parquet", method=PER_TASK),
    tasks="results/{experiment}/data/tasks.parquet",
)
LENGTHS = "results/{experiment}/{model}/data/lengths.parquet"
TABLES = ["tables/correlations.csv", "tables/label_aucs.csv"]
TABLES += ["tables/overlaps.csv"] if CONFIG.bins else []
TABLES += ["tables/chain.csv", "tables/weak_link.txt"] if CHAIN else []


wildcard_constraints:
    method_a=either(CONFIG.attribution.methods),
    method_b=either(CONFIG.attribution.methods),


rule correlate:
    message:
        "Correlating the scores of {wildcards.model}"
    input:
        **DOMAIN_INPUTS,
        scores=SCORES,
        lengths=LENGTHS,
    output:
        table("correlations", "Agreement of the methods", "correlations"),
    params:
        methods=CONFIG.attribution.methods,
        domains=domain_params(),
        settings=slice_of(CONFIG.analysis, "resamples", "analytic_above"),
        seed=CONFIG.seed,
        code=fingerprint("analysis/correlate"),
    log:
        "logs/{experiment}/correlate/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/correlate/{model}.benchmark.tsv"
    resources:
        **RESOURCES["correlate"],
    script:
        "../workflow/scripts/analysis/correlate.py"


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
        domains=domain_params(),
        bins=CONFIG.bins,
        code=fingerprint("analysis/compare_bins"),
    log:
        "logs/{experiment}/compare_bins/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/compare_bins/{model}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/compare_bins.py"


rule tell_labels:
    localrule: True
    message:
        "How well each method of {wildcards.model} tells good examples from others"
    input:
        **DOMAIN_INPUTS,
        scores=SCORES,
        train="results/{experiment}/data/train.parquet",
        checked=LABELS_CHECKED,
    output:
        table("label_aucs", "Sound examples and others", "AUC of labels"),
    params:
        methods=CONFIG.attribution.methods,
        domains=domain_params(),
        good=GOOD,
        code=fingerprint("analysis/tell_labels"),
    log:
        "logs/{experiment}/tell_labels/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/tell_labels/{model}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/tell_labels.py"


rule plot_scatter:
    localrule: True
    message:
        "Drawing {wildcards.method_a} against {wildcards.method_b} for {wildcards.model}"
    input:
        a="results/{experiment}/{model}/scores/{method_a}.parquet",
        b="results/{experiment}/{model}/scores/{method_b}.parquet",
        correlations="results/{experiment}/{model}/tables/correlations.csv",
        train="results/{experiment}/data/train.parquet",
    output:
        **figure("scatter/{method_a}--{method_b}", "Scores against scores", "{method_a} against {method_b}"),
    params:
        axis_labels=lambda w: {m: axis_labels()[m] for m in (w.method_a, w.method_b)},
        colors=CONFIG.figures.colors,
        labels=CONFIG.data.labels,
        caption=package_files("figures/captions/scatter.rst"),
        code=fingerprint("analysis/plot_scatter"),
    log:
        "logs/{experiment}/plot_scatter/{model}/{method_a}--{method_b}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/plot_scatter/{model}/{method_a}--{method_b}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/plot_scatter.py"


rule plot_distributions:
    localrule: True
    message:
        "Drawing the score distributions of {wildcards.model}"
    input:
        scores=SCORES,
    output:
        **figure("distributions", "Scores", "distributions"),
    params:
        methods=CONFIG.attribution.methods,
        axis_labels=axis_labels(),
        colors=CONFIG.figures.colors,
        caption=package_files("figures/captions/distributions.rst"),
        code=fingerprint("analysis/plot_distributions"),
    log:
        "logs/{experiment}/plot_distributions/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/plot_distributions/{model}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/plot_distributions.py"


rule plot_lengths:
    localrule: True
    message:
        "Drawing scores against response length for {wildcards.model}"
    input:
        scores=SCORES,
        lengths=LENGTHS,
    output:
        **figure("lengths", "Scores", "against response length"),
    params:
        methods=CONFIG.attribution.methods,
        axis_labels=axis_labels(),
        colors=CONFIG.figures.colors,
        caption=package_files("figures/captions/lengths.rst"),
        code=fingerprint("analysis/plot_lengths"),
    log:
        "logs/{experiment}/plot_lengths/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/plot_lengths/{model}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/plot_lengths.py"


rule plot_heat_map:
    localrule: True
    message:
        "Drawing the correlations of {wildcards.model}"
    input:
        "results/{experiment}/{model}/tables/correlations.csv",
    output:
        **figure("heat_map", "Agreement of the methods", "correlations"),
    params:
        methods=CONFIG.attribution.methods,
        caption=package_files("figures/captions/heat_map.rst"),
        code=fingerprint("analysis/plot_heat_map"),
    log:
        "logs/{experiment}/plot_heat_map/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/plot_heat_map/{model}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/plot_heat_map.py"


rule plot_overlaps:
    localrule: True
    message:
        "Drawing the overlap of bins for {wildcards.model}"
    input:
        "results/{experiment}/{model}/tables/overlaps.csv",
    output:
        **figure("overlaps", "Agreement of the methods", "overlap of bins"),
    params:
        colors=CONFIG.figures.colors,
        caption=package_files("figures/captions/overlaps.rst"),
        code=fingerprint("analysis/plot_overlaps"),
    log:
        "logs/{experiment}/plot_overlaps/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/plot_overlaps/{model}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/plot_overlaps.py"


if SWEEP:

    rule plot_sweep:
        localrule: True
        message:
            "Drawing icp against influence by model and by domain of task"
        input:
            correlations=each_model("tables/correlations.csv"),
            tasks="results/{experiment}/data/tasks.parquet",
            train="results/{experiment}/data/train.parquet",
        output:
            figure=report(
                "results/{experiment}/figures/sweep.svg",
                category="All models",
                labels={"what": "icp against influence by model and domain", "kind": "figure"},
                caption="../src/icprobe/figures/captions/sweep.rst",
            ),
            pdf="results/{experiment}/figures/sweep.pdf",
            table="results/{experiment}/figures/sweep.csv",
        params:
            in_domain=CONFIG.data.in_domain,
            colors=CONFIG.figures.colors,
            caption=package_files("figures/captions/sweep.rst"),
            code=fingerprint("analysis/plot_sweep"),
        log:
            "logs/{experiment}/plot_sweep.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/plot_sweep.benchmark.tsv"
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/analysis/plot_sweep.py"


rule plot_win_rates:
    localrule: True
    message:
        "Drawing the win rates of {wildcards.model}"
    input:
        "results/{experiment}/{model}/tables/win_rates.csv",
    output:
        **figure("win_rates", "Fine-tuned models", "win rates"),
    params:
        colors=CONFIG.figures.colors,
        caption=package_files("figures/captions/win_rates.rst"),
        code=fingerprint("analysis/plot_win_rates"),
    log:
        "logs/{experiment}/plot_win_rates/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/plot_win_rates/{model}.benchmark.tsv"
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/analysis/plot_win_rates.py"


rule analysis:
    localrule: True
    message:
        "{CONFIG.experiment}: all tables and figures of the scores are there"
    input:
        [each_model(path) for path in [*TABLES, *analysis_figures()]],
        sweep_figures(),
