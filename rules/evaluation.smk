# Responses to the eval prompts, judged against the base model's, and the table of win rates.

from icprobe.judging import JUDGES


rule win_rates:
    input:
        each_model("tables/win_rates.csv"),
    localrule: True
    message:
        "{CONFIG.experiment}: win rates are in tables/win_rates.csv of each model"


rule generate_base:
    input:
        base="resources/models/{model}",
        prompts="results/{experiment}/data/eval.parquet",
    output:
        "results/{experiment}/{model}/responses/base.jsonl",
    log:
        "logs/{experiment}/generate_base/{model}.log",
    benchmark:
        "logs/{experiment}/generate_base/{model}.benchmark.tsv"
    threads: 64
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
    params:
        settings=slice_of(
            CONFIG.evaluation, "max_new_tokens", "batch_size", "dtype", "device"
        ),
        templates=slice_of(CONFIG.templates, "query"),
        generator="{model}",
        results="results/{experiment}",
        code=fingerprint("generate"),
    message:
        "Generating responses of {wildcards.model} itself"
    script:
        "../workflow/scripts/generate.py"


rule generate:
    input:
        base="resources/models/{model}",
        checkpoint="results/{experiment}/{model}/checkpoints/{method}/{bin}/seed-{seed}",
        prompts="results/{experiment}/data/eval.parquet",
    output:
        "results/{experiment}/{model}/responses/{method}/{bin}/seed-{seed}.jsonl",
    log:
        "logs/{experiment}/generate/{model}/{method}/{bin}/seed-{seed}.log",
    benchmark:
        "logs/{experiment}/generate/{model}/{method}/{bin}/seed-{seed}.benchmark.tsv"
    threads: 64
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
    params:
        settings=slice_of(
            CONFIG.evaluation, "max_new_tokens", "batch_size", "dtype", "device"
        ),
        templates=slice_of(CONFIG.templates, "query"),
        generator="{model}/{method}/{bin}/seed-{seed}",
        results="results/{experiment}",
        code=fingerprint("generate"),
    message:
        "Generating responses of {wildcards.model} fine-tuned on bin {wildcards.bin} of {wildcards.method}, "
        "seed {wildcards.seed}"
    script:
        "../workflow/scripts/generate.py"


rule judge:
    input:
        prompts="results/{experiment}/data/eval.parquet",
        base="results/{experiment}/{model}/responses/base.jsonl",
        responses="results/{experiment}/{model}/responses/{method}/{bin}/seed-{seed}.jsonl",
    output:
        "results/{experiment}/{model}/judgements/{method}/{bin}/seed-{seed}.jsonl",
    log:
        "logs/{experiment}/judge/{model}/{method}/{bin}/seed-{seed}.log",
    benchmark:
        "logs/{experiment}/judge/{model}/{method}/{bin}/seed-{seed}.benchmark.tsv"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        settings=CONFIG.evaluation.judge_settings,
        cache="results/{experiment}/.cache/llm_judge",
        templates=(
            package_files("templates/judge_*") if CONFIG.evaluation.judge == "llm" else []
        ),
        code=fingerprint("judge", JUDGES[CONFIG.evaluation.judge]),
    message:
        "Judging responses of {wildcards.model} fine-tuned on bin {wildcards.bin} of {wildcards.method}, "
        "seed {wildcards.seed}"
    script:
        "../workflow/scripts/judge.py"


rule tabulate_win_rates:
    input:
        lambda wildcards: of_fine_tuned(wildcards.model, "judgements", ".jsonl"),
    output:
        csv="results/{experiment}/{model}/tables/win_rates.csv",
        markdown="results/{experiment}/{model}/tables/win_rates.md",
    log:
        "logs/{experiment}/tabulate_win_rates/{model}.log",
    benchmark:
        "logs/{experiment}/tabulate_win_rates/{model}.benchmark.tsv"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        conditions=FINE_TUNED,
        code=fingerprint("win_rates"),
    message:
        "Tabulating win rates of {wildcards.model}"
    script:
        "../workflow/scripts/win_rates.py"
