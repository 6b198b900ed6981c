# From scores to fine-tuned models: one subset per method × bin, one checkpoint per subset × seed.


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
        code=fingerprint("finetuning/subset"),
    log:
        "logs/{experiment}/subset/{model}/{method}/{bin}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/subset/{model}/{method}/{bin}.benchmark.tsv"
    threads: 1
    resources:
        **RESOURCES["subset"],
    script:
        "../workflow/scripts/finetuning/subset.py"


rule fine_tune:
    message:
        "Fine-tuning {wildcards.model} on bin {wildcards.bin} of {wildcards.method}, seed {wildcards.seed}"
    input:
        base=model_of,
        base_manifest=manifest_of,
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
        ),
        templates=text_settings("query", "target"),
        results=lambda w: f"results/{w.experiment}",
        code=fingerprint("finetuning/fine_tune"),
    log:
        "logs/{experiment}/fine_tune/{model}/{method}/{bin}/seed-{seed}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/fine_tune/{model}/{method}/{bin}/seed-{seed}.benchmark.tsv"
    threads: THREADS
    resources:
        **RESOURCES["fine_tune"],
        heavy=1,
    script:
        "../workflow/scripts/finetuning/fine_tune.py"
