# From scores to fine-tuned models: one subset per method × bin, one checkpoint per subset × seed.

# The models to fine-tune, as (method, bin, seed); a bin as its threshold.
FINE_TUNED = [
    (method, threshold, seed)
    for method, thresholds in [
        *((method, CONFIG.finetune_bins) for method in CONFIG.finetune.methods),
        *([("all", ["all"])] if CONFIG.finetune.all_data else []),
    ]
    for threshold in thresholds
    for seed in CONFIG.finetune.seeds
]


def of_fine_tuned(model, folder, suffix, conditions=FINE_TUNED):
    """The path of each fine-tuned model's checkpoint, responses or judgements; conditions: (method, bin, seed)."""
    return [
        results(
            model,
            folder,
            method,
            "all" if threshold == "all" else bin_name(threshold),
            f"seed-{seed}{suffix}",
        )
        for method, threshold, seed in conditions
    ]


rule checkpoints:
    localrule: True
    message:
        "{CONFIG.experiment}: all models are fine-tuned"
    input:
        [of_fine_tuned(model, "checkpoints", "") for model in CONFIG.models],


rule subset:
    localrule: True
    message:
        "Choosing bin {wildcards.bin} of {wildcards.method} on {wildcards.model}"
    input:
        examples="results/{experiment}/data/train.parquet",
        scores=lambda wildcards: (
            [] if wildcards.method == "all" else "results/{experiment}/{model}/scores/{method}.parquet"
        ),
        reference=lambda wildcards: (
            [] if wildcards.method == "all" else "results/{experiment}/{model}/scores/icp.parquet"
        ),
    output:
        "results/{experiment}/{model}/subsets/{method}/{bin}.jsonl",
    params:
        code=fingerprint("subset"),
    log:
        "logs/{experiment}/subset/{model}/{method}/{bin}.log",
    benchmark:
        "logs/{experiment}/subset/{model}/{method}/{bin}.benchmark.tsv"
    threads: 1
    resources:
        **RESOURCES["subset"],
    script:
        "../workflow/scripts/subset.py"


rule fine_tune:
    message:
        "Fine-tuning {wildcards.model} on bin {wildcards.bin} of {wildcards.method}, seed {wildcards.seed}"
    input:
        base=ancient(MODEL),
        base_manifest=manifest(MODEL),
        subset="results/{experiment}/{model}/subsets/{method}/{bin}.jsonl",
    output:
        checkpoint=directory(CHECKPOINT),
        manifest=manifest(CHECKPOINT),
    params:
        settings=slice_of(
            CONFIG.finetune,
            "learning_rate",
            "epochs",
            "batch_size",
            "accumulation",
            "scheduler",
            "warmup_ratio",
            "weight_decay",
            "max_length",
            "dtype",
            "device",
            "lora",
            "checkpoint_minutes",
        ),
        templates=slice_of(CONFIG.templates, "query", "target"),
        results="results/{experiment}",
        code=fingerprint("fine_tune"),
    log:
        "logs/{experiment}/fine_tune/{model}/{method}/{bin}/seed-{seed}.log",
    benchmark:
        "logs/{experiment}/fine_tune/{model}/{method}/{bin}/seed-{seed}.benchmark.tsv"
    threads: 64
    resources:
        **RESOURCES["fine_tune"],
    script:
        "../workflow/scripts/fine_tune.py"
