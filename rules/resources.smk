# What each job asks of a machine, rule by rule: memory, run time, and a GPU where the configuration says `cuda`. The
# formulas are in icprobe.workflow.resources; partition, account and CPUs come from the profile. Resources are no params: another
# estimate reruns nothing.

from icprobe.workflow import estimating, sharing
from icprobe.workflow.resources import TORCH_MB, Needs, directives
from icprobe.workflow.work import rows_there

# A job that an executor has sent elsewhere has its own GPUs.
directives = functools.partial(directives, in_turn=not workflow.remote_exec, told=estimating.asked())
SIZES = estimating.sizes(CONFIG)

# Heavy jobs on one machine at a time: as many as icprobe.workflow.sharing says. A job in a process of its own is one.
IS_JOB = workflow.subprocess_exec or workflow.remote_exec
AT_ONCE = 1 if IS_JOB else sharing.heavy_at_once(workflow.global_resources, PLAN, SIZES)

# Heavy jobs share the cores that `--cores` gives, but with no more threads than OMP_NUM_THREADS says (which Snakemake
# sets anew for each job). On a cluster the profile's `set-threads` says it instead.
THREADS = cores.wanted(AT_ONCE, workflow._cores)

DEVICE = CONFIG.attribution.device
OF_TRAIN = directives(lambda w, input: SIZES.tables(rows_there(local_files(CONFIG.data.train), SIZES.examples)))
OF_MATRIX = directives(lambda w, input: SIZES.matrix())
OF_EXTERNAL = directives(lambda w, input: Needs(1000 + 4e-6 * sum(map(os.path.getsize, input.scores))))
OF_RESPONSES = directives(lambda w, input: SIZES.tables(SIZES.prompts))
LIGHT = directives(lambda w, input: Needs(1000 + 1e-3 * SIZES.examples))

RESOURCES = {
    "prepare_model": directives(lambda w, input: SIZES.prepare_model(w.model)),
    "measure_rates": directives(lambda w, input: SIZES.measure_rates(w.model), DEVICE),
    "check_parameters": directives(lambda w, input: Needs(TORCH_MB)),
    "fetch_gguf": directives(lambda w, input: SIZES.prepare_model(w.quantised)),
    "select_tasks": directives(
        lambda w, input: SIZES.select_tasks(rows_there(local_files(CONFIG.data.tasks), SIZES.tasks)),
        "auto" if PLAN.model_decides("tasks") else "cpu",
    ),
    # Twice as many texts, and what is known of them.
    "find_duplicates": directives(
        lambda w, input: SIZES.tables(2 * rows_there(local_files(CONFIG.data.train), SIZES.examples))
    ),
    "prepare_train": OF_TRAIN,
    "measure_lengths": OF_TRAIN,
    "prepare_eval": OF_RESPONSES,
    "measure_prompts": OF_RESPONSES,
    "name_rows": OF_EXTERNAL,
    "attribute": directives(lambda w, input: SIZES.attribute(w.model, w.method, w.scatteritem), DEVICE),
    "embed_examples": directives(lambda w, input: SIZES.attribute(w.model, "embedding", "1-of-1"), DEVICE),
    "attribute_without_model": directives(lambda w, input: SIZES.without_model(w.method)),
    "attribute_influence": directives(lambda w, input: SIZES.attribute(w.model, "influence", w.scatteritem), DEVICE),
    **dict.fromkeys(
        ("sum_covariances", "sum_eigenvalues"),
        directives(lambda w, input: SIZES.sum_fisher(w.model, w.part), DEVICE),
    ),
    "attribute_ekfac": directives(lambda w, input: SIZES.attribute(w.model, "influence_ekfac", w.scatteritem), DEVICE),
    "fisher_bases": directives(lambda w, input: SIZES.fisher_bases(w.model)),
    "fisher_eigenvalues": directives(lambda w, input: Needs(TORCH_MB + 4e-6 * SIZES.parameters(w.model))),
    "attribute_step": directives(lambda w, input: SIZES.attribute(w.model, "one_step", w.scatteritem), DEVICE),
    "chain": directives(lambda w, input: SIZES.chain()),
    "read_external": OF_EXTERNAL,
    "gather_attributions": directives(lambda w, input: Needs(1000)),  # of any matrix, a part at a time
    "combine": directives(lambda w, input: SIZES.combine()),
    "score": OF_MATRIX,
    "correlate": directives(lambda w, input: SIZES.correlate()),
    "tell_labels": directives(lambda w, input: SIZES.tell_labels()),
    "subset": OF_TRAIN,
    "fine_tune": directives(
        lambda w, input: SIZES.fine_tune(w.model, SIZES.subset(w.model, w.method, w.bin), CONFIG.finetune.processes),
        CONFIG.finetune.device,
        CONFIG.finetune.processes,
    ),
    "train_trajectory": directives(lambda w, input: SIZES.fine_tune(w.model, SIZES.examples), CONFIG.finetune.device),
    "generate": directives(lambda w, input: SIZES.generate(w.model), CONFIG.evaluation.device),
    "generate_base": directives(lambda w, input: SIZES.generate(w.model), CONFIG.evaluation.device),
    "measure_outcomes": directives(
        lambda w, input: SIZES.measure_outcomes(w.model, 1 + len(PLAN.held_out)), CONFIG.evaluation.device
    ),
    "retrain": directives(
        lambda w, input: SIZES.retrain(w.model, w.part, PLAN.truth_sets(w.part, SIZES.tasks)), CONFIG.finetune.device
    ),
    "take_base_responses": OF_RESPONSES,
    "judge": OF_RESPONSES,
    "train_regressor": directives(lambda w, input: SIZES.train_regressor()),
    "value_points": directives(lambda w, input: SIZES.correlate_points()),
    "correlate_points": directives(lambda w, input: SIZES.correlate_points()),
    "report": directives(lambda w, input: SIZES.report()),
}
