"""Where everything lies: the pattern of every path under results/, logs/ and resources/models/, spelt here alone.

A pattern holds Snakemake's wildcards, so that a rule takes it as it is; elsewhere `LENGTHS.format(experiment="demo",
model="pythia")` fills them. Functions make the patterns of which one part is often a plain word: `scores("icp")`.
"""

RESULTS, LOGS = "results", "logs"
SELECTED = "selected"  # stands for a bin, in tables too, where a selection's name stands for a method

# --- models, shared by experiments ------------------------------------------------------------------------------

# Another source is another directory, so that experiments that mean different models by one name make nothing of each
# other's anew; source: a digest. The name alone is a link to the directory that was prepared last.
MODEL_NAME = "resources/models/{model}"
MODEL = MODEL_NAME + "-{source}"
GGUF = "resources/models/{quantised}-{source}.gguf"


def manifest(directory: str) -> str:
    """The file beside a directory that says what is in it."""
    return f"{directory}.manifest.json"


# --- of an experiment -------------------------------------------------------------------------------------------

EXPERIMENT = RESULTS + "/{experiment}"
REPORT = EXPERIMENT + "/report.html"
SCORES_REPORT = EXPERIMENT + "/scores.html"
TRUTH_REPORT = EXPERIMENT + "/truth.html"
ESTIMATE = EXPERIMENT + "/estimate.csv"
JUDGE_ANSWERS = EXPERIMENT + "/.cache/llm_judge"
RETRAININGS = EXPERIMENT + "/.cache/retrainings"
EXPORT = EXPERIMENT + "/export"  # selections as a data set for others
EXPORT_CARD, EXPORT_TABLE = EXPORT + "/README.md", EXPORT + "/data/{name}.parquet"
PUBLISHED = EXPERIMENT + "/published.json"
BLOCKS = EXPERIMENT + "/.cache/attributions"
# Below an experiment's folder, wherever that is: W&B's runs, and what jobs have not finished.
WANDB, PARTIAL = "wandb", ".partial"
FOLDERS = ("data", "export", "figures", "synthetic", WANDB)  # beside those of the models


def data(table: str) -> str:
    """A checked table: "train", "tasks" or "eval"."""
    return f"{EXPERIMENT}/data/{table}.parquet"


TRAIN, TASKS, EVAL = map(data, ("train", "tasks", "eval"))
EVAL_CHECKED = EXPERIMENT + "/data/eval.checked.json"
REPEATED = EXPERIMENT + "/data/repeated.csv"
DUPLICATES = EXPERIMENT + "/data/duplicates.csv"
LABELS_CHECKED = EXPERIMENT + "/data/labels.checked.json"
BINS_CHECKED = EXPERIMENT + "/data/bins.checked.json"


def synthetic(file: str) -> str:
    """A file of the check on linear regression, such as "values.parquet"."""
    return f"{EXPERIMENT}/synthetic/{file}"


TRANSFORMER = synthetic("transformer")


def figure_of_all(file: str) -> str:
    """A figure over all models, such as "sweep.svg"."""
    return f"{EXPERIMENT}/figures/{file}"


# --- of one of its models ---------------------------------------------------------------------------------------

OF_MODEL = EXPERIMENT + "/{model}"
LENGTHS = OF_MODEL + "/data/lengths.parquet"
LEARNT = OF_MODEL + "/data/learnt.parquet"
PROMPT_LENGTHS = OF_MODEL + "/data/prompt_lengths.parquet"
DTYPE_CHECKED = OF_MODEL + "/data/dtype.checked.json"
SECTION_DTYPE_CHECKED = OF_MODEL + "/data/{section}.dtype.checked.json"
CONTEXTS_CHECKED = OF_MODEL + "/data/contexts.{method}.checked.json"
RESPONSES_CHECKED = OF_MODEL + "/data/responses.checked.json"
PARAMETERS_CHECKED = OF_MODEL + "/data/parameters.checked.json"
EMBEDDINGS = OF_MODEL + "/data/embeddings.npy"
SELECTION_CHECKED = OF_MODEL + "/data/selection.{method}.checked.json"
RATES = OF_MODEL + "/data/rates.json"
LOSSES_CHECKED = OF_MODEL + "/data/losses.checked.json"
SUBSET = OF_MODEL + "/subsets/{method}/{bin}.jsonl"
# Beside a selection: how it is loaded, for readers and for LLaMA-Factory, and what all methods say of its examples.
CARD = OF_MODEL + "/subsets/{method}/README.md"
DATASET_INFO = OF_MODEL + "/subsets/{method}/dataset_info.json"
SELECTED_SCORES = OF_MODEL + f"/subsets/{{method}}/{SELECTED}.scores.jsonl"
MESSAGES = OF_MODEL + "/subsets/{method}/{bin}.messages.jsonl"
TRAJECTORY = OF_MODEL + "/trajectory"
CHECKPOINT = OF_MODEL + "/checkpoints/{method}/{bin}/seed-{seed}"
BASE_RESPONSES = OF_MODEL + "/responses/base.jsonl"
RESPONSES = OF_MODEL + "/responses/{method}/{bin}/seed-{seed}.jsonl"
BASE_OUTCOMES = OF_MODEL + "/outcomes/base.parquet"
OUTCOMES = OF_MODEL + "/outcomes/{method}/{bin}/seed-{seed}.parquet"
JUDGEMENTS = OF_MODEL + "/judgements/{method}/{bin}/seed-{seed}.jsonl"
SETS = OF_MODEL + "/truth/{part}.parquet"
RETRAINED = OF_MODEL + "/truth/{part}/{chunk}.parquet"
# What stands for a method in paths of one_step's matrices at the step sizes of the chain.
STEP = "one_step/learning_rate-{learning_rate}"


def truth_outcomes(part: str) -> str:
    """What models that were trained anew say of the answers; part: "subsets", "removals" or "left_out"."""
    return f"{OF_MODEL}/truth/{'outcomes' if part == 'subsets' else part + '_outcomes'}.parquet"


def fisher(what: str) -> str:
    """A folder of what the Fisher matrix of the examples is made of: "covariances" or "sums", of a part of the examples
    "{part}", "bases" or "eigenvalues".
    """
    return f"{OF_MODEL}/fisher/{what}" + ("/{part}" if what in ("covariances", "sums") else "")


def shard(method: str = "{method}") -> str:
    """One shard of a method's attribution matrix."""
    return f"{OF_MODEL}/attributions/{method}/{{scatteritem}}.parquet"


def matrix(method: str = "{method}") -> str:
    """A method's attribution matrix."""
    return f"{OF_MODEL}/attributions/{method}.parquet"


def scores(method: str = "{method}") -> str:
    """A method's scores."""
    return f"{OF_MODEL}/scores/{method}.parquet"


def table(file: str) -> str:
    """A table, such as "correlations.csv"."""
    return f"{OF_MODEL}/tables/{file}"


def figure(file: str) -> str:
    """A figure, its form for papers, or its numbers: "lengths.svg", "lengths.pdf", "lengths.csv"."""
    return f"{OF_MODEL}/figures/{file}"


# --- logs -------------------------------------------------------------------------------------------------------

# Beside a job's log, by their suffixes: what Snakemake measured of it, and with what it computed.
BENCHMARK, ENVIRONMENT = ".benchmark.tsv", ".environment.json"


def log(job: str, experiment: str = "{experiment}") -> str:
    """A job's log; job: its rule and wildcards, such as "score/{model}/{method}".

    experiment: its name, where it is no wildcard; "models" for jobs that make models.
    """
    return f"{LOGS}/{experiment}/{job}.log"


def benchmark(job: str, experiment: str = "{experiment}") -> str:
    """What Snakemake measured of a job, beside its log."""
    return f"{LOGS}/{experiment}/{job}{BENCHMARK}"
