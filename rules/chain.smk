# The chain of the paper's argument, icp ~ one_step ~ influence: one_step at several step sizes, and the table.
#
# Each step size is a job of its own, so that one more repeats none of the others. What they could share, the example's
# backward pass, is a fifth of the work for 12 tasks and a thirtieth for 100; the rest is the tasks' likelihoods.

STEP = "results/{experiment}/{model}/attributions/one_step/learning_rate-{learning_rate}"


wildcard_constraints:
    learning_rate=either(STEPS),


if CHAIN:

    rule attribute_step:
        message:
            "one_step of {wildcards.model} at step size {wildcards.learning_rate}, shard {wildcards.scatteritem}"
        input:
            **ATTRIBUTION_INPUTS,
            model=model_of,
            manifest=manifest_of,
        output:
            matrix=f"{STEP}/{{scatteritem}}.parquet",
        params:
            methods=["one_step"],
            module=METHODS["one_step"].module,
            per_task=True,
            settings=lambda w: attribution_settings("one_step") | {"learning_rate": STEPS[w.learning_rate]},
            execution=METHODS["one_step"].execution,
            templates=text_settings(),
            seed=None,
            code=fingerprint("attribution/attribute", METHODS["one_step"].module),
        log:
            "logs/{experiment}/attribute_step/{model}/{learning_rate}/{scatteritem}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/attribute_step/{model}/{learning_rate}/{scatteritem}.benchmark.tsv"
        threads: THREADS
        resources:
            **RESOURCES["attribute_step"],
            heavy=1,
        script:
            "../workflow/scripts/attribution/attribute.py"

    rule gather_steps:
        localrule: True
        message:
            "Gathering one_step attributions of {wildcards.model} at step size {wildcards.learning_rate}"
        input:
            shards=lambda w: shard_files(w.model, f"one_step/learning_rate-{w.learning_rate}", "one_step"),
            train="results/{experiment}/data/train.parquet",
        output:
            f"{STEP}.parquet",
        params:
            code=fingerprint("attribution/gather_attributions"),
        log:
            "logs/{experiment}/gather_steps/{model}/{learning_rate}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/gather_steps/{model}/{learning_rate}.benchmark.tsv"
        resources:
            **RESOURCES["gather_attributions"],
        script:
            "../workflow/scripts/attribution/gather_attributions.py"

    rule chain:
        message:
            "Following the chain icp ~ one_step ~ influence of {wildcards.model}"
        input:
            icp="results/{experiment}/{model}/attributions/icp.parquet",
            influence="results/{experiment}/{model}/attributions/influence.parquet",
            one_step=[
                "results/{experiment}/{model}/attributions/one_step.parquet",
                *(f"{STEP}.parquet".replace("{learning_rate}", name) for name in STEPS),
            ],
            tasks="results/{experiment}/data/tasks.parquet",
        output:
            table=table("chain", "Agreement of the methods", "the chain icp, one_step, influence"),
            sentence="results/{experiment}/{model}/tables/weak_link.txt",
        params:
            learning_rates=[OWN_STEP, *STEPS.values()],
            aggregators={m: CONFIG.attribution.aggregators.get(m, "mean") for m in ("icp", "influence", "one_step")},
            settings=slice_of(CONFIG.analysis, "resamples", "analytic_above"),
            seed=CONFIG.seed,
            dtype=CONFIG.attribution.dtype,
            code=fingerprint("chain/chain"),
        log:
            "logs/{experiment}/chain/{model}.log",
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            "logs/{experiment}/chain/{model}.benchmark.tsv"
        resources:
            **RESOURCES["chain"],
        script:
            "../workflow/scripts/chain/chain.py"
