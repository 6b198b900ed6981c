# Responses to the eval prompts, judged against the base model's, and the table of win rates.

from icprobe.evaluation.judges import JUDGES


rule win_rates:
    localrule: True
    message:
        "{CONFIG.experiment}: win rates are in tables/win_rates.csv of each model"
    input:
        each_model("tables/win_rates.csv"),


if CONFIG.evaluation.base_responses == "generate":

    rule generate_base:
        message:
            "Generating responses of {wildcards.model} itself"
        input:
            base=model_of,
            base_manifest=manifest_of,
            prompts="results/{experiment}/data/eval.parquet",
            lengths="results/{experiment}/{model}/data/prompt_lengths.parquet",
        output:
            "results/{experiment}/{model}/responses/base.jsonl",
        params:
            settings=slice_of(CONFIG.evaluation, "max_new_tokens", "batch_size", "dtype", "device"),
            templates=text_settings("query"),
            generator="{model}",
            results=lambda w: f"results/{w.experiment}",
            code=fingerprint("evaluation/generate"),
        log:
            "logs/{experiment}/generate_base/{model}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/generate_base/{model}.benchmark.tsv"
        threads: THREADS
        resources:
            **RESOURCES["generate_base"],
            heavy=1,
        script:
            "../workflow/scripts/evaluation/generate.py"

else:

    rule take_base_responses:
        localrule: True
        message:
            "Taking the base responses that the eval table gives"
        input:
            prompts="results/{experiment}/data/eval.parquet",
        output:
            "results/{experiment}/{model}/responses/base.jsonl",
        params:
            generator="{model}",
            code=fingerprint("evaluation/take_base_responses"),
        log:
            "logs/{experiment}/take_base_responses/{model}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/take_base_responses/{model}.benchmark.tsv"
        threads: 1
        resources:
            **RESOURCES["take_base_responses"],
        script:
            "../workflow/scripts/evaluation/take_base_responses.py"


rule generate:
    message:
        "Generating responses of {wildcards.model} fine-tuned on bin {wildcards.bin} of {wildcards.method}, "
        "seed {wildcards.seed}"
    input:
        base=model_of,
        base_manifest=manifest_of,
        checkpoint=ancient(CHECKPOINT),
        checkpoint_manifest=manifest(CHECKPOINT),
        prompts="results/{experiment}/data/eval.parquet",
        # Read by no one; what it holds was checked when it was made.
        lengths="results/{experiment}/{model}/data/prompt_lengths.parquet",
    output:
        "results/{experiment}/{model}/responses/{method}/{bin}/seed-{seed}.jsonl",
    params:
        settings=slice_of(CONFIG.evaluation, "max_new_tokens", "batch_size", "dtype", "device"),
        templates=text_settings("query"),
        generator="{model}/{method}/{bin}/seed-{seed}",
        results=lambda w: f"results/{w.experiment}",
        code=fingerprint("evaluation/generate"),
    log:
        "logs/{experiment}/generate/{model}/{method}/{bin}/seed-{seed}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/generate/{model}/{method}/{bin}/seed-{seed}.benchmark.tsv"
    threads: THREADS
    resources:
        **RESOURCES["generate"],
        heavy=1,
    script:
        "../workflow/scripts/evaluation/generate.py"


if ANNOTATIONS:

    rule read_annotations:
        localrule: True
        message:
            "Reading the annotations {wildcards.method}, bin {wildcards.bin}, seed {wildcards.seed}"
        input:
            lambda wildcards: annotation_of(wildcards).files,
        output:
            "results/{experiment}/{model}/judgements/{method}/{bin}/seed-{seed}.jsonl",
        params:
            generator=lambda wildcards: annotation_of(wildcards).generator,
            contents=lambda wildcards, input: contents(input),
            code=fingerprint("evaluation/read_annotations"),
        log:
            "logs/{experiment}/read_annotations/{model}/{method}/{bin}/seed-{seed}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/read_annotations/{model}/{method}/{bin}/seed-{seed}.benchmark.tsv"
        threads: 1
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/evaluation/read_annotations.py"

else:

    # One judge job at a time asks: `concurrency` is then that of all, and what one job was answered the next one knows.
    workflow.register_resource("judging", 1)

    # A judge compares letters, or sends requests and waits; nodes of a cluster often reach no network.
    rule judge:
        localrule: True
        message:
            "Judging responses of {wildcards.model} fine-tuned on bin {wildcards.bin} of {wildcards.method}, "
            "seed {wildcards.seed}"
        input:
            prompts="results/{experiment}/data/eval.parquet",
            checked=PROMPTS_CHECKED,
            base="results/{experiment}/{model}/responses/base.jsonl",
            responses="results/{experiment}/{model}/responses/{method}/{bin}/seed-{seed}.jsonl",
        output:
            "results/{experiment}/{model}/judgements/{method}/{bin}/seed-{seed}.jsonl",
        params:
            settings=CONFIG.evaluation.judge_settings,
            cache="results/{experiment}/.cache/llm_judge",
            templates=(package_files("evaluation/judges/templates/*") if CONFIG.evaluation.judge == "llm" else []),
            code=fingerprint("evaluation/judge", JUDGES[CONFIG.evaluation.judge]),
        log:
            "logs/{experiment}/judge/{model}/{method}/{bin}/seed-{seed}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/judge/{model}/{method}/{bin}/seed-{seed}.benchmark.tsv"
        threads: 1
        resources:
            **RESOURCES["judge"],
            judging=int(CONFIG.evaluation.judge == "llm"),
        script:
            "../workflow/scripts/evaluation/judge.py"


rule tabulate_win_rates:
    localrule: True
    message:
        "Tabulating win rates of {wildcards.model}"
    input:
        lambda wildcards: of_fine_tuned(wildcards.model, "judgements", ".jsonl", JUDGED),
    output:
        csv=table("win_rates", "Fine-tuned models", "win rates"),
        markdown="results/{experiment}/{model}/tables/win_rates.md",
        latex="results/{experiment}/{model}/tables/win_rates.tex",
        differences=table("differences", "Fine-tuned models", "differences between methods"),
    params:
        conditions=JUDGED,
        code=fingerprint("evaluation/win_rates"),
    log:
        "logs/{experiment}/tabulate_win_rates/{model}.log",
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        "logs/{experiment}/tabulate_win_rates/{model}.benchmark.tsv"
    threads: 1
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/evaluation/win_rates.py"
