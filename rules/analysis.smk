# From scores to tables and figures. No torch here; every figure also writes the numbers that it shows.

SCORES = expand("results/{{experiment}}/{{model}}/scores/{method}.parquet", method=CONFIG.attribution.methods)
LENGTHS = "results/{experiment}/{model}/data/lengths.parquet"
TABLES = ["tables/correlations.csv", "tables/label_aucs.csv"] + (["tables/overlaps.csv"] if CONFIG.bins else [])


wildcard_constraints:
    method_a=either(CONFIG.attribution.methods),
    method_b=either(CONFIG.attribution.methods),


rule correlate:
    message:
        "Correlating the scores of {wildcards.model}"
    input:
        scores=SCORES,
        lengths=LENGTHS,
    output:
        "results/{experiment}/{model}/tables/correlations.csv",
    params:
        methods=CONFIG.attribution.methods,
        settings=slice_of(CONFIG.analysis),
        seed=CONFIG.seed,
        code=fingerprint("correlate"),
    log:
        "logs/{experiment}/correlate/{model}.log",
    benchmark:
        "logs/{experiment}/correlate/{model}.benchmark.tsv"
    resources:
        mem_mb=4000,
        runtime=60,
    script:
        "../workflow/scripts/correlate.py"


rule compare_bins:
    localrule: True
    message:
        "Comparing the bins of {wildcards.model}"
    input:
        scores=SCORES,
    output:
        "results/{experiment}/{model}/tables/overlaps.csv",
    params:
        methods=CONFIG.attribution.methods,
        bins=CONFIG.bins,
        code=fingerprint("compare_bins"),
    log:
        "logs/{experiment}/compare_bins/{model}.log",
    benchmark:
        "logs/{experiment}/compare_bins/{model}.benchmark.tsv"
    resources:
        mem_mb=2000,
    script:
        "../workflow/scripts/compare_bins.py"


rule tell_labels:
    localrule: True
    message:
        "How well each method of {wildcards.model} tells good examples from others"
    input:
        scores=SCORES,
        train="results/{experiment}/data/train.parquet",
    output:
        "results/{experiment}/{model}/tables/label_aucs.csv",
    params:
        methods=CONFIG.attribution.methods,
        good={label: CONFIG.data.sound_labels.get(label, []) for label in CONFIG.data.labels},
        code=fingerprint("tell_labels"),
    log:
        "logs/{experiment}/tell_labels/{model}.log",
    benchmark:
        "logs/{experiment}/tell_labels/{model}.benchmark.tsv"
    resources:
        mem_mb=2000,
    script:
        "../workflow/scripts/tell_labels.py"


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
        figure=report(
            "results/{experiment}/{model}/figures/scatter/{method_a}--{method_b}.svg",
            category="{model}",
            subcategory="Scores against scores",
            labels={"figure": "{method_a} against {method_b}"},
        ),
        table="results/{experiment}/{model}/figures/scatter/{method_a}--{method_b}.csv",
    params:
        axis_labels=lambda w: {m: axis_labels()[m] for m in (w.method_a, w.method_b)},
        colors=CONFIG.figures.colors,
        labels=CONFIG.data.labels[:1],
        code=fingerprint("plot_scatter"),
    log:
        "logs/{experiment}/plot_scatter/{model}/{method_a}--{method_b}.log",
    benchmark:
        "logs/{experiment}/plot_scatter/{model}/{method_a}--{method_b}.benchmark.tsv"
    resources:
        mem_mb=2000,
    script:
        "../workflow/scripts/plot_scatter.py"


rule plot_distributions:
    localrule: True
    message:
        "Drawing the score distributions of {wildcards.model}"
    input:
        scores=SCORES,
    output:
        figure=report(
            "results/{experiment}/{model}/figures/distributions.svg",
            category="{model}",
            subcategory="Scores",
            labels={"figure": "distributions"},
        ),
        table="results/{experiment}/{model}/figures/distributions.csv",
    params:
        methods=CONFIG.attribution.methods,
        axis_labels=axis_labels(),
        colors=CONFIG.figures.colors,
        code=fingerprint("plot_distributions"),
    log:
        "logs/{experiment}/plot_distributions/{model}.log",
    benchmark:
        "logs/{experiment}/plot_distributions/{model}.benchmark.tsv"
    resources:
        mem_mb=2000,
    script:
        "../workflow/scripts/plot_distributions.py"


rule plot_lengths:
    localrule: True
    message:
        "Drawing scores against response length for {wildcards.model}"
    input:
        scores=SCORES,
        lengths=LENGTHS,
    output:
        figure=report(
            "results/{experiment}/{model}/figures/lengths.svg",
            category="{model}",
            subcategory="Scores",
            labels={"figure": "against response length"},
        ),
        table="results/{experiment}/{model}/figures/lengths.csv",
    params:
        methods=CONFIG.attribution.methods,
        axis_labels=axis_labels(),
        colors=CONFIG.figures.colors,
        code=fingerprint("plot_lengths"),
    log:
        "logs/{experiment}/plot_lengths/{model}.log",
    benchmark:
        "logs/{experiment}/plot_lengths/{model}.benchmark.tsv"
    resources:
        mem_mb=2000,
    script:
        "../workflow/scripts/plot_lengths.py"


rule plot_heat_map:
    localrule: True
    message:
        "Drawing the correlations of {wildcards.model}"
    input:
        "results/{experiment}/{model}/tables/correlations.csv",
    output:
        figure=report(
            "results/{experiment}/{model}/figures/heat_map.svg",
            category="{model}",
            subcategory="Agreement of the methods",
            labels={"figure": "correlations"},
        ),
        table="results/{experiment}/{model}/figures/heat_map.csv",
    params:
        methods=CONFIG.attribution.methods,
        code=fingerprint("plot_heat_map"),
    log:
        "logs/{experiment}/plot_heat_map/{model}.log",
    benchmark:
        "logs/{experiment}/plot_heat_map/{model}.benchmark.tsv"
    resources:
        mem_mb=2000,
    script:
        "../workflow/scripts/plot_heat_map.py"


rule plot_overlaps:
    localrule: True
    message:
        "Drawing the overlap of bins for {wildcards.model}"
    input:
        "results/{experiment}/{model}/tables/overlaps.csv",
    output:
        figure=report(
            "results/{experiment}/{model}/figures/overlaps.svg",
            category="{model}",
            subcategory="Agreement of the methods",
            labels={"figure": "overlap of bins"},
        ),
        table="results/{experiment}/{model}/figures/overlaps.csv",
    params:
        colors=CONFIG.figures.colors,
        code=fingerprint("plot_overlaps"),
    log:
        "logs/{experiment}/plot_overlaps/{model}.log",
    benchmark:
        "logs/{experiment}/plot_overlaps/{model}.benchmark.tsv"
    resources:
        mem_mb=2000,
    script:
        "../workflow/scripts/plot_overlaps.py"


rule plot_win_rates:
    localrule: True
    message:
        "Drawing the win rates of {wildcards.model}"
    input:
        "results/{experiment}/{model}/tables/win_rates.csv",
    output:
        figure=report(
            "results/{experiment}/{model}/figures/win_rates.svg",
            category="{model}",
            subcategory="Fine-tuned models",
            labels={"figure": "win rates"},
        ),
        table="results/{experiment}/{model}/figures/win_rates.csv",
    params:
        colors=CONFIG.figures.colors,
        code=fingerprint("plot_win_rates"),
    log:
        "logs/{experiment}/plot_win_rates/{model}.log",
    benchmark:
        "logs/{experiment}/plot_win_rates/{model}.benchmark.tsv"
    resources:
        mem_mb=2000,
    script:
        "../workflow/scripts/plot_win_rates.py"


rule analysis:
    localrule: True
    message:
        "{CONFIG.experiment}: all tables and figures of the scores are there"
    input:
        [each_model(path) for path in [*TABLES, *analysis_figures()]],
