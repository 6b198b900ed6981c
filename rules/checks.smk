# What a method needs of every example or context, checked before anything is measured.


# A rule of its own: what the gradients are of is nothing to those who read the lengths alone.
rule check_losses:
    localrule: True
    message:
        "Checking that every example has a loss in fine-tuning, for {wildcards.model}"
    input:
        lengths=paths.LENGTHS,
        model=model_of,
        manifest=manifest_of,
    output:
        paths.LOSSES_CHECKED,
    params:
        max_length=CONFIG.finetune.max_length,
        asked_by="truth" if PLAN.truth_parts else "attribution.train_loss: response",
        code=fingerprint("data/check_losses"),
    log:
        paths.log("check_losses/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("check_losses/{model}")
    # Before all else that could run.
    priority: 3
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/data/check_losses.py"


# A rule of its own, for each method: what stands in its contexts is nothing to the others.
rule check_contexts:
    localrule: True
    message:
        "Checking that {wildcards.model} can read the contexts of {wildcards.method}"
    input:
        train=paths.TRAIN,
        tasks=paths.TASKS,
        lengths=paths.LENGTHS,
        model=model_of,
        manifest=manifest_of,
    output:
        paths.CONTEXTS_CHECKED,
    wildcard_constraints:
        method=either(PLAN.long_contexts),
    params:
        settings=lambda w: slice_of(getattr(CONFIG.attribution, w.method)),
        templates=PLAN.text_settings(),
        seed=CONFIG.seed,
        code=fingerprint("data/check_contexts"),
    log:
        paths.log("check_contexts/{model}/{method}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("check_contexts/{model}/{method}")
    # Before all else that could run.
    priority: 3
    resources:
        **RESOURCES["measure_lengths"],
    script:
        "../workflow/scripts/data/check_contexts.py"


# Likewise, for ifd.
rule check_responses:
    localrule: True
    message:
        "Checking that {wildcards.model} has a token to count of every response"
    input:
        train=paths.TRAIN,
        model=model_of,
        manifest=manifest_of,
    output:
        paths.RESPONSES_CHECKED,
    params:
        templates=PLAN.text_settings(),
        code=fingerprint("data/check_responses"),
    log:
        paths.log("check_responses/{model}"),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("check_responses/{model}")
    # Before all else that could run.
    priority: 3
    resources:
        **RESOURCES["measure_lengths"],
    script:
        "../workflow/scripts/data/check_responses.py"
