# The checkpoints along which tracin takes gradients: of a training of its own, or those that are given.

if PLAN.along_training and not PLAN.checkpoint_files:

    rule train_trajectory:
        message:
            "Fine-tuning {wildcards.model} on all examples, with checkpoints on the way"
        input:
            train=paths.TRAIN,
            base=model_of,
            base_manifest=manifest_of,
            checked=section_dtype_checked("finetune"),
        output:
            trajectory=directory(paths.TRAJECTORY),
            manifest=paths.manifest(paths.TRAJECTORY),
        params:
            settings=TRAINING,
            seed=CONFIG.finetune.seeds[0],
            checkpoints=CONFIG.attribution.tracin.checkpoints,
            templates=PLAN.text_settings("query", "target"),
            results=lambda w: paths.EXPERIMENT.format(experiment=w.experiment),
            code=fingerprint("attribution/train_trajectory"),
        log:
            paths.log("train_trajectory/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("train_trajectory/{model}")
        threads: THREADS
        resources:
            **RESOURCES["train_trajectory"],
            heavy=1,
        script:
            "../workflow/scripts/attribution/train_trajectory.py"


if PLAN.checkpoint_files:

    rule list_checkpoints:
        localrule: True
        message:
            "Listing the checkpoints of {wildcards.model} that are given"
        input:
            files=PLAN.checkpoint_files,
            base=model_of,
            base_manifest=manifest_of,
        output:
            paths.manifest(paths.TRAJECTORY),
        params:
            directories=CONFIG.attribution.tracin.directories,
            learning_rates=CONFIG.attribution.tracin.learning_rates,
            contents=contents(PLAN.checkpoint_files),
            code=fingerprint("attribution/list_checkpoints"),
        log:
            paths.log("list_checkpoints/{model}"),
        conda:
            "../envs/icprobe.yaml"
        benchmark:
            paths.benchmark("list_checkpoints/{model}")
        resources:
            **LIGHT,
        script:
            "../workflow/scripts/attribution/list_checkpoints.py"
