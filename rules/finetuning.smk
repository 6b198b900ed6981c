# From scores to fine-tuned models: one subset per method × bin, one checkpoint per subset × seed.

SUBSETS = [
    path.format(experiment=CONFIG.experiment, model=model, method=method, bin=bin_folder(bin))
    for path in (paths.SUBSET, paths.MESSAGES)
    for model in CONFIG.models
    for method, bin in PLAN.subsets
]

PUBLISHED = expand([paths.CARD, paths.DATASET_INFO, paths.SELECTED_SCORES], method=PLAN.data_sets, **EACH_MODEL)


# What a training depends upon.
TRAINING = slice_of(
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
)


rule checkpoints:
    localrule: True
    message:
        f"{CONFIG.experiment}: all models are fine-tuned"
    input:
        [of_conditions(paths.CHECKPOINT, model, PLAN.fine_tuned) for model in CONFIG.models],


rule subsets:
    localrule: True
    message:
        f"{CONFIG.experiment}: all subsets are there"
    input:
        SUBSETS,
        PUBLISHED,


rule subset:
    localrule: True
    message:
        "Choosing bin {wildcards.bin} of {wildcards.method} on {wildcards.model}"
    input:
        examples=lambda wildcards: PLAN.checked_bin(wildcards.bin) and paths.TRAIN,
        scores=lambda wildcards: ([] if wildcards.method == "all" else paths.scores()),
        reference=lambda wildcards: paths.scores("icp") if PLAN.by_icp(wildcards.bin) else [],
        checked=BINS_CHECKED,
    output:
        subset=paths.SUBSET,
        messages=paths.MESSAGES,
    wildcard_constraints:
        method=either([*CONFIG.attribution.methods, "all"]),
        bin=f"all|{BIN_NAME}",
    params:
        templates=PLAN.text_settings("query", "target"),
        code=fingerprint("finetuning/subset"),
    log:
        paths.log("subset/{model}/{method}/{bin}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("subset/{model}/{method}/{bin}")
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
        subset=paths.SUBSET,
        accelerate=CONFIG.finetune.accelerate or [],
        checked=section_dtype_checked("finetune"),
    output:
        checkpoint=directory(paths.CHECKPOINT),
        manifest=paths.manifest(paths.CHECKPOINT),
    params:
        # A file that is older than what was made from the one before it is another, too.
        **({"contents": contents([CONFIG.finetune.accelerate])} if CONFIG.finetune.accelerate else {}),
        settings={**TRAINING, **slice_of(CONFIG.finetune, "processes", "accelerate")},
        templates=PLAN.text_settings("query", "target"),
        results=lambda w: paths.EXPERIMENT.format(experiment=w.experiment),
        code=fingerprint("finetuning/fine_tune"),
    log:
        paths.log("fine_tune/{model}/{method}/{bin}/seed-{seed}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("fine_tune/{model}/{method}/{bin}/seed-{seed}")
    threads: THREADS
    resources:
        **RESOURCES["fine_tune"],
        heavy=1,
    script:
        "../workflow/scripts/finetuning/fine_tune.py"
