# From scores to tables. No torch here.

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
    output:
        table("label_aucs", "Sound examples and others", "AUC of labels"),
    params:
        methods=CONFIG.attribution.methods,
        domains=domain_params(),
        # A label without good values marks no one side of an AUC.
        good={label: good for label, good in CONFIG.data.sound_labels.items() if label in CONFIG.data.labels},
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
