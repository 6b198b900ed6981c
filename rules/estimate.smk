# What an experiment is going to cost, before it is begun: `snakemake estimate`.

estimating.keep_arguments(workflow)
logger.addFilter(estimating.Told(lambda: PLACE.own(workflow.dag.needrun_jobs())))


if PLAN.models_here:

    # On the machine on which the jobs would run; another one, or other work on it, is another rate.
    rule measure_rates:
        localrule: CONFIG.estimate.rate is not None
        message:
            "Measuring how fast this machine computes with {wildcards.model}"
        input:
            model=model_of,
            manifest=manifest_of,
            train=paths.TRAIN,
            tasks=paths.TASKS if CONFIG.data.tasks else [],
            eval=paths.EVAL if PLAN.reads_eval else [],
            lengths=paths.LENGTHS,
            checked=[paths.DTYPE_CHECKED] if CONFIG.attribution.dtype != "float32" else [],
            losses=[ancient(paths.LOSSES_CHECKED)] if any(map(PLAN.takes_loss, PLAN.computed)) else [],
            parameters=[paths.PARAMETERS_CHECKED] if PLAN.parameters_chosen else [],
        output:
            paths.RATES,
        params:
            rate=CONFIG.estimate.rate,
            kinds=estimating.kinds(PLAN),
            settings=estimating.settings(PLAN),
            templates=PLAN.text_settings(),
            seed=CONFIG.seed,
            machine=platform.node(),
            code=fingerprint("estimate/measure_rates"),
        log:
            paths.log("measure_rates/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("measure_rates/{model}")
        threads: THREADS if CONFIG.estimate.rate is None else 1
        resources:
            **RESOURCES["measure_rates"],
            heavy=int(CONFIG.estimate.rate is None),
        script:
            "../workflow/scripts/estimate/measure_rates.py"


# Asked again it looks again: what is finished changes, and no file says so.
rule estimate:
    localrule: True
    message:
        f"Estimating what {CONFIG.experiment} takes"
    input:
        rates=expand(paths.RATES, experiment=CONFIG.experiment, model=PLAN.models_here),
        train=paths.TRAIN.format(experiment=CONFIG.experiment),
        lengths=expand(paths.LENGTHS, **EACH_MODEL),
    output:
        paths.ESTIMATE.format(experiment=CONFIG.experiment),
    params:
        asked=time.time(),
        targets=[*map(PLACE.called, CONFIG.estimate.targets)],
        code=fingerprint("estimate/estimate"),
    log:
        paths.log("estimate", CONFIG.experiment),
    conda:
        "../envs/icprobe.yaml"
    benchmark:
        paths.benchmark("estimate", CONFIG.experiment)
    threads: 1
    resources:
        **LIGHT,
    script:
        "../workflow/scripts/estimate/estimate.py"
