"""The registry of methods. Adding one is a file beside this one and a line here; everything later picks it up.

Each module offers `attribute(inputs, method, batches, **settings)`; see icprobe.attribution.matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from icprobe.errors import ConfigError

if TYPE_CHECKING:  # jobs import this package too, and would wait 0.2 s for the classes of the configuration
    from icprobe.config import Config
    from icprobe.config.combined import Combined


@dataclass(frozen=True)
class Method:
    """What the DAG has to know of a method.

    module: where its `attribute` is. unit: of the matrix's entries, for axes. asks: the question it puts to an
    example ("it"), in one sentence with its unit, for readers of the report who know no method. settings: keys of
    the configuration's `attribution` section that it uses. execution: those of them that change no bit of the
    matrix (`values.how`). per_token: those of them of which `mean` divides the matrix by a number of tokens, and so its
    unit. together: the methods whose matrices come out of the same pass. needs_model: its job reads a model beside
    tables and lengths. reads: the tables whose texts it depends on, "train" and "tasks". per_task: the matrix has a
    column for each task, not one named `score`. whole: it is one job, however many shards the others have, for it
    needs all examples or costs nothing. long_contexts: it reads several examples or tasks in one context, which must
    fit. trained: its gradients are taken at checkpoints of a training. adapters: over the adapters that are trained
    there, beside which their optimiser's state lies. fits_fisher: it needs the examples' Fisher matrix, which has jobs
    of its own. damping: of that, where it is not the configuration's own. seeded: it draws at random. dtype: fixed
    arithmetic, whatever the configuration says. may_skip: NaN means "not evaluated" rather than an error. by_itself:
    what it gives for an example and a task, or all tasks, depends on no other example: it is not computed twice.
    """

    module: str
    unit: str
    asks: str
    settings: tuple[str, ...] = ()
    execution: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    needs_model: bool = True
    reads: tuple[str, ...] = ("train", "tasks")
    per_task: bool = True
    whole: bool = False
    long_contexts: bool = False
    trained: bool = False
    adapters: bool = False
    fits_fisher: bool = False
    damping: float | None = None
    seeded: bool = False
    dtype: str | None = None
    may_skip: bool = False
    by_itself: bool = False


_ENGINE = ("dtype", "device", "tf32", "batch_tokens")
_BUDGET = ("memory_budget_gb",)
_TASK = ("task_likelihood",)
_OWN_LOSS = ("train_loss", "reduction", "parameters")
_LOSS = (*_OWN_LOSS, *_TASK)
_BOTH_SIDES = ("reduction", *_TASK)
_INFLUENCE = ("influence", "influence_log", "cosine")
_NO_TASK = {"reads": ("train",), "per_task": False}
_NO_MODEL = {"needs_model": False, "per_task": False, "whole": True}

METHODS: dict[str, Method] = {
    "icp": Method(
        "icprobe.attribution.icp",
        "nats",
        "In-context probing: is a task's answer likelier when the example stands before the task in the prompt? The "
        "effect on a task is the change of the answer's log-likelihood, in nats.",
        (*_ENGINE, *_TASK),
        per_token=_TASK,
        by_itself=True,
    ),
    "influence": Method(
        "icprobe.attribution.influence",
        "nats²",
        "Does training on it push the model's weights where training on a task would? "
        "The effect on a task is the inner product of the two loss gradients, in nats²: a gradient step of a small "
        "size η on the example raises the log-likelihood of the task's answer by about η times that.",
        (*_ENGINE, *_LOSS),
        _BUDGET,
        per_token=_BOTH_SIDES,
        together=_INFLUENCE,
        by_itself=True,
    ),
    "influence_log": Method(
        "icprobe.attribution.influence",
        "signed log",
        "What influence asks, by the formula of the paper's released code: the products of the gradients of each "
        "weight matrix go into a sum of signed logs, which has no unit: only its order says something.",
        (*_ENGINE, *_LOSS),
        _BUDGET,
        together=_INFLUENCE,
        by_itself=True,
    ),
    "cosine": Method(
        "icprobe.attribution.influence",
        "cosine",
        "What influence asks, whatever the lengths of the gradients: do they point in the same direction? The effect "
        "on a task is the cosine of the two loss gradients, from -1 to 1.",
        (*_ENGINE, *_LOSS),
        _BUDGET,
        together=_INFLUENCE,
        by_itself=True,
    ),
    "influence_ekfac": Method(
        "icprobe.attribution.influence_ekfac",
        "nats",
        "If the model stood at an optimum of training on all examples, and this one then counted more, would a task's "
        "answer be likelier? The effect on a task is the influence function with the Fisher matrix as curvature: the "
        "answer's gain in nats for a further copy of the example, times the number of examples.",
        (*_ENGINE, *_LOSS, "influence_ekfac"),
        _BUDGET,
        per_token=_BOTH_SIDES,
        fits_fisher=True,
        by_itself=True,
    ),
    "one_step": Method(
        "icprobe.attribution.one_step",
        "nats",
        "After one small step of fine-tuning on it, by how many nats of log-likelihood is a task's answer likelier?",
        (*_ENGINE[1:], *_LOSS, "one_step"),
        per_token=_TASK,
        dtype="float32",
        by_itself=True,
    ),
    "influence_mean": Method(
        "icprobe.attribution.influence_mean",
        "nats²",
        "Does training on it push the model's weights where training on all tasks together would? "
        "Its score is the inner product of its loss gradient and the mean of the tasks' gradients, in nats².",
        (*_ENGINE, *_LOSS),
        per_token=_BOTH_SIDES,
        per_task=False,
        by_itself=True,
    ),
    "self_influence": Method(
        "icprobe.attribution.self_influence",
        "nats²",
        "How far would training on it push the model's weights? Its score is minus the squared length of its own loss "
        "gradient, in nats²: the lowest scores are the rows that surprise the model most, often mislabelled ones. It "
        "knows no task.",
        (*_ENGINE, *_OWN_LOSS),
        per_token=("reduction", "reduction"),
        **_NO_TASK,
        by_itself=True,
    ),
    "tracin": Method(
        "icprobe.attribution.tracin",
        "nats",
        "What influence asks, along a training: by how much would steps on it have made a task's answer likelier at "
        "several checkpoints of the model's fine-tuning? The effect on a task is the sum over the checkpoints of the "
        "learning rate there times the inner product of the two loss gradients: to first order, in nats.",
        (*_ENGINE, *_LOSS),
        _BUDGET,
        per_token=_TASK,
        trained=True,
        by_itself=True,
    ),
    "less": Method(
        "icprobe.attribution.less",
        "learning rate × cosine",
        "Does a step of the optimiser on it go where a step on a task would, along a training of adapters? The effect "
        "on a task is the sum over several checkpoints of the learning rate there times the cosine of Adam's step on "
        "the example and the task's gradient, both over the adapters' weights.",
        (*_ENGINE, *_OWN_LOSS, "less"),  # a cosine does not change where a task's loss is divided by its tokens
        _BUDGET,
        trained=True,
        adapters=True,
        by_itself=True,
    ),
    "icp_budget": Method(
        "icprobe.attribution.icp_budget",
        "share of tasks helped",
        "In-context probing on a budget: with it in the prompt, which share of the tasks' answers is likelier? "
        "Examples that are clearly neither among the best nor among the worst are tried on some tasks only.",
        (*_ENGINE, "icp_budget"),
        per_task=False,
        whole=True,
        seeded=True,
    ),
    "icp_k_shot": Method(
        "icprobe.attribution.icp_k_shot",
        "nats",
        "In-context probing among others: with examples drawn at random in the prompt, is a task's answer likelier "
        "when it stands behind them, too? The effect on a task is the change of the answer's log-likelihood, in nats, "
        "in the mean over the prompts that were drawn.",
        (*_ENGINE, *_TASK, "icp_k_shot"),
        per_token=_TASK,
        long_contexts=True,
        seeded=True,
    ),
    "icp_reverse": Method(
        "icprobe.attribution.icp_reverse",
        "nats",
        "In-context probing turned round: is its own response likelier when the tasks stand in the prompt before it? "
        "Its score is the change of the response's log-likelihood, in nats.",
        (*_ENGINE, "reduction", "icp_reverse"),
        per_token=("reduction",),
        per_task=False,
        long_contexts=True,
        seeded=True,
    ),
    "bm25": Method(
        "icprobe.attribution.bm25",
        "BM25",
        "Does it speak of the same things in the same words? The effect on a task is the example's BM25 score for the "
        "task's text as a query: rare words that both have count most. No model is asked.",
        needs_model=False,
        whole=True,
    ),
    "embedding": Method(
        "icprobe.attribution.embedding",
        "cosine",
        "Does the model see it and a task as alike? The effect on a task is the cosine of the two texts' mean last "
        "hidden states, in which later tokens weigh more.",
        _ENGINE,
        by_itself=True,
    ),
    "perplexity": Method(
        "icprobe.attribution.difficulty",
        "nats per token",
        "How well does the model expect its response already? The score is the response's log-likelihood given the "
        "query, in nats per token: the best are the easiest, and no task is looked at.",
        _ENGINE,
        **_NO_TASK,
        by_itself=True,
    ),
    "ifd": Method(
        "icprobe.attribution.difficulty",
        "ratio of losses",
        "How little does its query help the model to its response (Instruction-Following Difficulty)? The score is the "
        "response's loss given the query, divided by that of the response alone: the best are the hardest, above 1 "
        "the query misleads, and no task is looked at.",
        _ENGINE,
        **_NO_TASK,
        by_itself=True,
    ),
    "length": Method(
        "icprobe.attribution.baselines",
        "tokens",
        "How many tokens long is its response? A baseline that costs nothing and knows no task.",
        reads=("train",),
        **_NO_MODEL,
    ),
    "random": Method(
        "icprobe.attribution.baselines",
        "0 to 1",
        "Nothing: its score is drawn at random, uniformly between 0 and 1, and shows what chance gives.",
        reads=(),
        **_NO_MODEL,
        seeded=True,
    ),
}


def methods_of(config: "Config") -> dict[str, Method]:
    """The methods that a configuration can name: the registry, with a method for each damping of a sweep, its external
    scores, which go before it, and those that it asks to be computed from the matrices of others.

    Units are those of its objective.

    Raises ConfigError where a chosen method needs a model, texts or a training that the configuration does not give.
    """
    external = {
        name: Method(
            "icprobe.attribution.external",
            scores.unit,
            f"What somebody else computed, read from a file (unit: {scores.unit}).",
            needs_model=False,
            reads=(),
            per_task=scores.orientation != "scores",
            whole=True,
            may_skip=scores.allow_missing,
        )
        for name, scores in config.attribution.external.items()
    }
    built_in, curved = dict(METHODS), METHODS["influence_ekfac"]
    for name, damping in config.attribution.influence_ekfac.swept.items():
        damped = f"{curved.asks} F is damped by {damping:g} of its mean eigenvalue, layer by layer."
        built_in[name] = replace(curved, asks=damped, damping=damping)
    ordered = config.attribution.combined_in_order
    chosen = [name for name in config.attribution.methods if name not in external and name not in ordered]
    away = [model for model in config.models if config.model_sources[model].source == "external"]
    absent = [table for table in ("train", "tasks") if getattr(config.data, table) is None]
    for name in chosen:
        # Without the model nobody counts tokens, either.
        if (built_in[name].needs_model or name == "length") and away:
            raise ConfigError(
                f"config: attribution.methods: {name} reads texts with {away[0]}, a model that is not here (external)"
            )
        if missing := [table for table in absent if table in built_in[name].reads]:
            raise ConfigError(
                f"config: attribution.methods: {name} needs data.{missing[0]}, which is absent; a configuration "
                "with data of its own takes none of the demo's, so name it"
            )
    for name in chosen:
        if built_in[name].trained:
            _check_training(name, config)
    if "train" in absent and not any(name in external for name in config.attribution.methods):
        raise ConfigError("config: data.train: it is null, and no external scores say which examples there are")
    known = {name: _in_units(method, config) for name, method in built_in.items()} | external
    if "less" not in external:  # without a projection nothing is drawn
        known["less"] = replace(known["less"], seeded=config.attribution.less.dimension is not None)
    for name, how in ordered.items():
        if how.given_length and (away or "train" in absent):
            raise ConfigError(
                f"config: attribution.combined.{name}: given_length needs the lengths of responses, and so data.train "
                "and models that are here, none of them external"
            )
        known[name] = _combined(how, [known[member] for member in how.members])
    _check_aggregators([name for name in config.attribution.methods if not known[name].per_task], config)
    return known


def _check_aggregators(of_one_score: Sequence[str], config: "Config") -> None:
    """Raises ConfigError where a method that has one score for each example is to count tasks.

    What icp and one_step do by default is no wish: scores of somebody else's may have their names.
    """
    default = type(config.attribution).model_fields["aggregators"].default
    for name in of_one_score:
        if config.attribution.aggregators.get(name) == "fraction_positive" != default.get(name):
            raise ConfigError(
                f"config: attribution.aggregators: {name} has one score for each example and no value for each task, "
                "so that no share of tasks can be counted; leave it out"
            )


def _combined(how: "Combined", members: Sequence[Method]) -> Method:
    """What is known of a method that is computed from these."""
    per_task = any(member.per_task for member in members)
    effect = "The effect on a task" if per_task else "Its score"
    if how.given_length:
        unit = "ranks"
        asks = (
            f"How much higher does {how.given_length} rank it than the length of its response leads to expect? "
            f"{effect} is that difference, in ranks among the examples."
        )
    else:
        unit = "mean rank, 0 to 1"
        asks = (
            f"Where does it stand by {', '.join(how.members)}, all in all? {effect} is the mean of its ranks among the "
            "examples, from near 0 for the worst to 1 for the best."
        )
    return Method(
        "icprobe.attribution.combined",
        unit,
        asks,
        needs_model=False,
        reads=tuple(dict.fromkeys(table for member in members for table in member.reads)),
        per_task=per_task,
        whole=True,
    )


def _check_training(name: str, config: "Config") -> None:
    """Raises ConfigError where there is no training whose checkpoints a method could take, or not that of one model."""
    few_bits = [model for model in config.models if config.quantization(model) != "none"]
    adapters = METHODS[name].adapters
    if config.attribution.tracin.directories:
        if adapters:
            raise ConfigError(
                f"config: attribution.tracin.directories: {name} needs the optimiser's state beside each checkpoint, "
                "which is kept of a training done here alone; leave directories out, or the method"
            )
        if len(config.models) > 1:
            raise ConfigError(
                f"config: attribution.tracin.directories: they are checkpoints of one model, and there are "
                f"{len(config.models)} models; name one in models"
            )
    elif "finetune" not in config.model_fields_set:
        given = "" if adapters else ", or name checkpoints in attribution.tracin.directories"
        raise ConfigError(
            f"config: attribution.methods: {name} takes gradients along a training as finetune says; write finetune: "
            f"{{methods: [], all_data: false, epochs: 1, lora: {{rank: 16}}}} with the settings of your training{given}"
        )
    elif adapters and config.finetune.lora is None:
        raise ConfigError(
            f"config: finetune.lora: {name} takes gradients over adapters, and null trains all weights; write lora: "
            "{rank: 16} and learning_rate: 2e-4"
        )
    elif few_bits and config.finetune.lora is None:
        raise ConfigError(
            f"config: finetune.lora: {name} trains {few_bits[0]}, whose weights are quantised and not trained; write "
            "lora: {rank: 16} and learning_rate: 2e-4 for adapters"
        )


def _in_units(method: Method, config: "Config") -> Method:
    """Says "per token" in a method's unit and question, as often as its matrix is divided by tokens."""
    times = sum(getattr(config.attribution, key) == "mean" for key in method.per_token)
    unit = f"{method.unit} per token{'²' if times == 2 else ''}"
    return replace(method, unit=unit, asks=method.asks.replace(method.unit, unit)) if times else method
