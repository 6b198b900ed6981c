# How much likelier fine-tuning makes held-out answers; responses to the eval prompts, judged against the base model's, and the
# table of win rates.

from icprobe.evaluation.engines import ENGINES
from icprobe.evaluation.judges import JUDGES

HELD_OUT_TABLES = [f"tables/{name}" for name in PLAN.held_out_tables]
JUDGED_TABLES = [f"tables/{name}" for name in PLAN.judged_tables]


rule held_out:
    localrule: True
    message:
        f"{CONFIG.experiment}: held-out gains are in tables/held_out.csv of each model"
    input:
        [each_model(path) for path in HELD_OUT_TABLES],


if PLAN.held_out:
    HELD_OUT_SETS = {name: paths.data(name) for name in PLAN.held_out_sets}

    # One process for all models: of each one's seconds most would be those in which PyTorch starts.
    rule measure_outcomes:
        message:
            "Log-likelihoods of held-out answers by {wildcards.model} and its fine-tuned models"
        input:
            **HELD_OUT_SETS,
            base=model_of,
            base_manifest=manifest_of,
            checkpoints=ancient(tuned(paths.CHECKPOINT)),
            checkpoint_manifests=tuned(paths.manifest(paths.CHECKPOINT)),
        output:
            base=paths.BASE_OUTCOMES,
            tuned=tuned(paths.OUTCOMES),
        params:
            sets=PLAN.held_out_sets,
            # Training changes fine digits, which bfloat16 has not.
            settings={**slice_of(CONFIG.evaluation, "device"), "dtype": "float32"},
            templates=PLAN.text_settings("query", "target"),
            results=lambda w: paths.EXPERIMENT.format(experiment=w.experiment),
            code=fingerprint("evaluation/measure_outcomes"),
        log:
            paths.log("measure_outcomes/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("measure_outcomes/{model}")
        threads: THREADS
        resources:
            **RESOURCES["measure_outcomes"],
            heavy=1,
        script:
            "../workflow/scripts/evaluation/measure_outcomes.py"

    rule tabulate_held_out:
        localrule: True
        message:
            "Tabulating held-out gains of {wildcards.model}"
        input:
            **HELD_OUT_SETS,
            base=paths.BASE_OUTCOMES,
            tuned=tuned(paths.OUTCOMES),
        output:
            table=table("held_out", "Fine-tuned models", "held-out gain"),
            differences=table("held_out_differences", "Fine-tuned models", "differences in held-out gain"),
        params:
            sets=PLAN.held_out_sets,
            conditions=PLAN.held_out,
            code=fingerprint("evaluation/held_out"),
        log:
            paths.log("tabulate_held_out/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("tabulate_held_out/{model}")
        threads: 1
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/evaluation/held_out.py"


rule win_rates:
    localrule: True
    message:
        f"{CONFIG.experiment}: win rates are in tables/win_rates.csv of each model"
    input:
        expand(paths.table("win_rates.csv"), **EACH_MODEL),


# transformers has a script of its own, which reaches no code of another engine.
WRITES = "generate" if CONFIG.evaluation.engine == "transformers" else "write_responses"
WRITTEN_WITH = [ENGINES[CONFIG.evaluation.engine]] if CONFIG.evaluation.engine in ENGINES else []


if CONFIG.evaluation.base_responses == "generate":

    rule generate_base:
        localrule: responding.runs_already(CONFIG)
        message:
            "Generating responses of the base model {wildcards.model}"
        input:
            base=model_of,
            base_manifest=manifest_of,
            prompts=paths.EVAL,
            lengths=paths.PROMPT_LENGTHS,
            checked=section_dtype_checked("evaluation"),
        output:
            paths.BASE_RESPONSES,
        params:
            settings=lambda w: responding.settings(CONFIG, w.model),
            templates=PLAN.text_settings("query"),
            generator="{model}",
            results=lambda w: paths.EXPERIMENT.format(experiment=w.experiment),
            code=fingerprint(f"evaluation/{WRITES}", *WRITTEN_WITH),
        log:
            paths.log("generate_base/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("generate_base/{model}")
        threads: THREADS
        resources:
            **RESOURCES["generate_base"],
            heavy=1,
        script:
            f"../workflow/scripts/evaluation/{WRITES}.py"

else:

    rule take_base_responses:
        localrule: True
        message:
            "Taking the base responses that the eval table gives"
        input:
            prompts=paths.EVAL,
        output:
            paths.BASE_RESPONSES,
        params:
            generator="{model}",
            code=fingerprint("evaluation/take_base_responses"),
        log:
            paths.log("take_base_responses/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("take_base_responses/{model}")
        threads: 1
        resources:
            **RESOURCES["take_base_responses"],
        script:
            "../workflow/scripts/evaluation/take_base_responses.py"


rule generate:
    localrule: responding.runs_already(CONFIG)
    message:
        "Generating responses of {wildcards.model} fine-tuned on bin {wildcards.bin} of {wildcards.method}, "
        "seed {wildcards.seed}"
    input:
        base=model_of,
        base_manifest=manifest_of,
        checkpoint=ancient(paths.CHECKPOINT),
        checkpoint_manifest=paths.manifest(paths.CHECKPOINT),
        prompts=paths.EVAL,
        # Read by no one; what it holds was checked when it was made.
        lengths=paths.PROMPT_LENGTHS,
        checked=section_dtype_checked("evaluation"),
    output:
        paths.RESPONSES,
    params:
        settings=lambda w: responding.settings(CONFIG, w.model, w.method, w.bin, w.seed),
        templates=PLAN.text_settings("query"),
        generator="{model}/{method}/{bin}/seed-{seed}",
        results=lambda w: paths.EXPERIMENT.format(experiment=w.experiment),
        code=fingerprint(f"evaluation/{WRITES}", *WRITTEN_WITH),
    log:
        paths.log("generate/{model}/{method}/{bin}/seed-{seed}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("generate/{model}/{method}/{bin}/seed-{seed}")
    threads: THREADS
    resources:
        **RESOURCES["generate"],
        heavy=1,
    script:
        f"../workflow/scripts/evaluation/{WRITES}.py"


if PLAN.annotations:

    rule read_annotations:
        localrule: True
        message:
            "Reading the annotations {wildcards.method}, bin {wildcards.bin}, seed {wildcards.seed}"
        input:
            lambda w: PLAN.annotation(w.method, w.bin, w.seed).files,
        output:
            paths.JUDGEMENTS,
        params:
            generator=lambda w: PLAN.annotation(w.method, w.bin, w.seed).generator,
            contents=lambda wildcards, input: contents(input),
            code=fingerprint("evaluation/read_annotations"),
        log:
            paths.log("read_annotations/{model}/{method}/{bin}/seed-{seed}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("read_annotations/{model}/{method}/{bin}/seed-{seed}")
        threads: 1
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/evaluation/read_annotations.py"

elif CONFIG.evaluation.judge in JUDGES:

    # One judge job at a time asks: `concurrency` is then that of all, and what one job was answered the next one knows.
    workflow.register_resource("judging", 1)

    # A judge compares letters, or sends requests and waits; nodes of a cluster often reach no network.
    rule judge:
        localrule: True
        message:
            "Judging responses of {wildcards.model} fine-tuned on bin {wildcards.bin} of {wildcards.method}, "
            "seed {wildcards.seed}"
        input:
            prompts=paths.EVAL,
            checked=paths.EVAL_CHECKED,
            base=paths.BASE_RESPONSES,
            responses=paths.RESPONSES,
        output:
            paths.JUDGEMENTS,
        params:
            settings=CONFIG.evaluation.judge_settings,
            cache=paths.JUDGE_ANSWERS,
            templates=(package_files("evaluation/judges/templates/*") if CONFIG.evaluation.judge == "llm" else []),
            code=fingerprint("evaluation/judge", JUDGES[CONFIG.evaluation.judge]),
        log:
            paths.log("judge/{model}/{method}/{bin}/seed-{seed}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("judge/{model}/{method}/{bin}/seed-{seed}")
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
        lambda w: of_conditions(paths.JUDGEMENTS, w.model, PLAN.judged),
    output:
        csv=table("win_rates", "Fine-tuned models", "win rates"),
        markdown=paths.table("win_rates.md"),
        latex=paths.table("win_rates.tex"),
        differences=table("differences", "Fine-tuned models", "differences between methods"),
    params:
        conditions=PLAN.judged,
        code=fingerprint("evaluation/win_rates"),
    log:
        paths.log("tabulate_win_rates/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("tabulate_win_rates/{model}")
    threads: 1
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/evaluation/win_rates.py"
