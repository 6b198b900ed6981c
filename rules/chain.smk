# The chain of the paper's argument, icp ~ one_step ~ influence: one_step at several step sizes, and the table.
#
# Each step size is a job of its own, so that one more repeats none of the others. What they could share, the example's
# backward pass, is a fifth of the work for 12 tasks and a thirtieth for 100; the rest is the tasks' likelihoods.


wildcard_constraints:
    learning_rate=either(PLAN.step_sizes),


if PLAN.chain:

    rule attribute_step:
        message:
            "one_step of {wildcards.model} at step size {wildcards.learning_rate}, shard {wildcards.scatteritem}"
        input:
            **ATTRIBUTION_INPUTS,
            model=model_of,
            manifest=manifest_of,
            losses=lambda w: losses_checked(w, "one_step"),
            parameters=lambda w: parameters_checked(w, "one_step"),
        output:
            matrix=paths.shard(paths.STEP),
        params:
            methods=["one_step"],
            module=METHODS["one_step"].module,
            per_task=True,
            by_itself=METHODS["one_step"].reads,
            settings=lambda w: PLAN.method_settings("one_step") | {"learning_rate": PLAN.step_sizes[w.learning_rate]},
            execution=METHODS["one_step"].execution,
            templates=PLAN.text_settings(),
            seed=None,
            code=fingerprint("attribution/attribute", METHODS["one_step"].module),
        log:
            paths.log("attribute_step/{model}/{learning_rate}/{scatteritem}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("attribute_step/{model}/{learning_rate}/{scatteritem}")
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
            shards=lambda w: shard_files(w.model, "one_step", paths.STEP.format(learning_rate=w.learning_rate)),
            train=paths.TRAIN,
        output:
            paths.matrix(paths.STEP),
        params:
            code=fingerprint("attribution/gather_attributions"),
        log:
            paths.log("gather_steps/{model}/{learning_rate}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("gather_steps/{model}/{learning_rate}")
        resources:
            **RESOURCES["gather_attributions"],
        script:
            "../workflow/scripts/attribution/gather_attributions.py"

    rule chain:
        message:
            "Following the chain icp ~ one_step ~ influence of {wildcards.model}"
        input:
            icp=paths.matrix("icp"),
            influence=paths.matrix("influence"),
            one_step=[
                paths.matrix("one_step"),
                *(paths.matrix(paths.STEP.format(learning_rate=size)) for size in PLAN.step_sizes),
            ],
            tasks=paths.TASKS,
        output:
            table=table("chain", "Agreement of the methods", "the chain icp, one_step, influence"),
            sentence=paths.table("weak_link.txt"),
        params:
            learning_rates=[CONFIG.attribution.one_step.learning_rate, *PLAN.step_sizes.values()],
            aggregators={m: PLAN.aggregator(m) for m in ("icp", "influence", "one_step")},
            settings=slice_of(CONFIG.analysis, "resamples", "analytic_above"),
            seed=CONFIG.seed,
            dtype=CONFIG.attribution.dtype,
            code=fingerprint("chain/chain"),
        log:
            paths.log("chain/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("chain/{model}")
        resources:
            **RESOURCES["chain"],
        script:
            "../workflow/scripts/chain/chain.py"
