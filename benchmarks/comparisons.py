"""The comparisons: who runs against whom, on how much, and which rows can only say why they are empty."""

from dataclasses import dataclass, field, replace
from typing import Any

BUDGET_GB = 8.0  # to which everybody is held where a comparison says so
GRADIENTS_ALONE = "computes gradients of losses, no likelihoods of tasks in the context of an example"
LIKELIHOODS_ALONE = "computes likelihoods, no gradients"
NO_SIGNED_LOG = "multiplies gradients as they are: no clamping of elements, no logarithm for each tensor"
NO_STEP = "never changes a weight: no likelihoods after a step"


@dataclass(frozen=True)
class Entry:
    """One row: `contestant` (worker.CONTESTANTS) under a `name`, with its settings.

    against: the entry whose matrix this one's is compared with (the comparison's first by default; "" for none).
    n, m: examples and tasks where they differ from the comparison's. once: in the first round alone (rows scaled up
    from a part of the work). dtype: where it differs. note: for the table.
    """

    name: str
    contestant: str
    settings: dict[str, Any] = field(default_factory=dict)
    against: str | None = None
    n: int | None = None
    m: int | None = None
    once: bool = False
    dtype: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Entries on the same texts, alternating. share: of --examples; m: tasks (None: --tasks).

    dealt: tasks spread evenly over all tasks' lengths instead of the named ones. rounds: at most so many. cannot: rows
    without figures. text: a sentence under the table. shape: of random weights that take the model's place.
    """

    key: str
    title: str
    entries: tuple[Entry, ...]
    share: float = 1.0
    m: int | None = None
    dealt: bool = False
    rounds: int | None = None
    cannot: dict[str, str] = field(default_factory=dict)
    text: str = ""
    shape: str | None = None

    @property
    def group(self) -> str:
        """What --only names: the key up to its number."""
        return self.key.split("-")[0]


MATMUL = Entry(
    "matrix products of the machine", "matmul", against="", note="a rate: the blocks' weights behind 1,024 rows"
)
OURS = Entry("matrix products by oneDNN", "matmul", {"ours": True}, against="", note="the same, as icprobe multiplies")
STEP = Entry(
    "plain training step",
    "training-step",
    against="",
    note="transformers, batches by length, all weights' gradients, no optimiser",
)
BOTH = Entry(
    "icprobe: influence and influence_log",
    "icprobe-influence",
    {"methods": ["influence", "influence_log"], "show": "influence_log"},
    against="",
    note="two matrices from one pass",
)
ONE_PASS = "the tasks' gradients all held, one pass over the examples"


def icp(key: str, title: str, share: float, m: int | None, naive: bool) -> Comparison:
    entries = [
        Entry("icprobe: icp", "icprobe-icp"),
        MATMUL,
        OURS,
        Entry(
            "lm-eval", "lm-eval", {"batch_size": 4}, note="HFLM.loglikelihood, batch_size 4 (the fastest of 1 to 16)"
        ),
    ]
    if naive:
        entries.append(Entry("naive loop", "naive-icp", {"examples": 2}, once=True))
    cannot = dict.fromkeys(("kronfluence", "bergson", "dattri"), GRADIENTS_ALONE)
    return Comparison(key, title, tuple(entries), share, m, cannot=cannot)


def comparisons(whole: bool) -> list[Comparison]:
    """All comparisons. whole: peers do the whole work where otherwise a part of it is measured and scaled."""
    return [
        icp("icp-12", "ICP", 0.4, None, True),
        icp("icp-32", "ICP", 0.075, 32, False),
        Comparison(
            "influence-12",
            "Influence",
            (
                Entry("icprobe: influence", "icprobe-influence"),
                STEP,
                BOTH,
                Entry("kronfluence", "kronfluence", note=f"identity strategy; {ONE_PASS}"),
                Entry("bergson", "bergson", note=f"no projection; {ONE_PASS}"),
                Entry("dattri", "dattri", {"batch": 2}, once=True, note="TracIn, no projection; batches of 2"),
                Entry("naive loop", "naive-influence", {"examples": 2, "tasks": 2}, once=True),
                Entry("the paper's loop", "paper", against=BOTH.name, once=True, note="computes influence_log"),
            ),
            share=0.4,
            cannot={
                "lm-eval": LIKELIHOODS_ALONE,
                **{f"{peer}: influence_log": NO_SIGNED_LOG for peer in ("kronfluence", "bergson", "dattri")},
            },
        ),
        Comparison(
            "influence-32",
            "Influence",
            (Entry("icprobe: influence", "icprobe-influence"), STEP, BOTH),
            share=0.2,
            m=32,
        ),
        Comparison(
            "influence-100",
            f"Influence, all held to {BUDGET_GB:g} GB",
            (
                Entry("icprobe: influence", "icprobe-influence", {"memory_budget_gb": 6.9}),
                Entry(
                    "kronfluence",
                    "kronfluence",
                    {"held_tasks": 8, "batch": 4, "part": None if whole else 8},
                    note="query_gradient_accumulation_steps: 8 tasks held at a time",
                ),
                Entry(
                    "bergson",
                    "bergson",
                    {"held_tasks": 5, "part": None if whole else 5},
                    note="5 tasks held at a time, as its query_batch_size does",
                ),
            ),
            m=100,
            cannot={"dattri": "differentiates all tasks anew for every batch of examples; see the 12 tasks"},
        ),
        Comparison(
            "influence_mean-12",
            "Mean influence",
            (
                Entry("icprobe: influence_mean", "icprobe-influence-mean"),
                Entry(
                    "plain training step, one sequence at a time",
                    "training-step",
                    {"one_by_one": True},
                    against="",
                    note="nothing padded, as icprobe pads nothing",
                ),
                Entry("kronfluence", "kronfluence", {"mean": True}, note="aggregate_query_gradients"),
                Entry("bergson", "bergson", {"mean": True}, note='aggregation "mean"'),
            ),
            share=0.4,
            cannot={"dattri": "has no sum over tasks before the products"},
        ),
        Comparison(
            "influence_mean-32",
            "Mean influence",
            (
                Entry("icprobe: influence_mean", "icprobe-influence-mean"),
                Entry("plain training step, one sequence at a time", "training-step", {"one_by_one": True}, against=""),
            ),
            share=0.2,
            m=32,
        ),
        Comparison(
            "one_step-12",
            "One step of fine-tuning",
            (
                Entry("icprobe: one_step", "icprobe-one-step"),
                Entry(
                    "plain passes", "step-and-forwards", against="", note="a step for each example, then N × M forwards"
                ),
            ),
            share=0.25,
            cannot={
                "lm-eval": "no gradients, so no step",
                **dict.fromkeys(("kronfluence", "bergson", "dattri"), NO_STEP),
            },
        ),
        Comparison(
            "icp_reverse-12",
            "ICP turned round",
            (
                Entry("icprobe: icp_reverse", "icprobe-icp-reverse", against=""),
                Entry("icprobe: icp", "icprobe-icp", against=""),
            ),
            share=0.6,
            text="The two ask different questions, so that no scores are compared.",
        ),
        growth(),
        Comparison(
            "precision",
            "bfloat16 against float32",
            (
                Entry("icp, float32", "icprobe-icp"),
                Entry("icp, bfloat16", "icprobe-icp", dtype="bfloat16"),
                Entry("influence, float32", "icprobe-influence", against=""),
                Entry("influence, bfloat16", "icprobe-influence", dtype="bfloat16", against="influence, float32"),
                replace(MATMUL, name="matrix products in bfloat16", dtype="bfloat16"),
            ),
            share=0.25,
            rounds=3,
        ),
    ]


def growth() -> Comparison:
    """Time and peak memory as examples and tasks double; what is longer or shorter differs in nothing else."""
    entries = []
    for method, contestant in (("icp", "icprobe-icp"), ("influence", "icprobe-influence")):
        entries += [Entry(f"{method}, N = {n}", contestant, against="", n=n, m=12) for n in (8, 16, 32)]
        entries += [Entry(f"{method}, M = {m}", contestant, against="", n=4, m=m) for m in (12, 24, 48)]
    return Comparison("growth", "Growth in examples and tasks", tuple(entries), dealt=True, rounds=1)


def gpu(whole_examples: int = 52_002, whole_tasks: int = 100) -> list[Comparison]:
    """What a CUDA device is asked: the engines on models of random weights; full-length examples, all tasks."""
    text = f"Hours for {whole_examples:,} examples × {whole_tasks} tasks are reckoned from these figures, not measured."
    budget = {"memory_budget_gb": 60.0}
    influence = Entry("icprobe: influence", "icprobe-influence", budget, against="", n=1024)
    return [
        Comparison(
            "gpu",
            "A GPU, Pythia-1b's shape",
            (
                MATMUL,
                Entry("icprobe: icp", "icprobe-icp", against="", n=96),
                influence,
                Entry(BOTH.name, BOTH.contestant, {**BOTH.settings, **budget}, against="", n=1024),
                Entry("icprobe: influence_mean", "icprobe-influence-mean", against="", n=1024),
                replace(STEP, n=1024),
                Entry("kronfluence", "kronfluence", {"held_tasks": 16, "batch": 8, "part": 16}, against="", n=128),
                Entry("bergson", "bergson", {"held_tasks": 16, "part": 16}, against="", n=128),
            ),
            m=whole_tasks,
            shape="pythia-1b",
            text=text,
        ),
        Comparison(
            "gpu-7b",
            "A GPU, the shape of a model of 7B",
            (MATMUL, Entry("icprobe: icp", "icprobe-icp", against="", n=24), replace(influence, n=256)),
            m=whole_tasks,
            shape="llama-7b",
            text=text,
        ),
    ]
