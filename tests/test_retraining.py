"""Models trained anew: which sets are drawn, that a training is fine_tune's, and that none is done twice."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_finetuning import LORA, ROWS, SETTINGS

from icprobe import jsonl
from icprobe.config.templates import Templates
from icprobe.engine.admission import admit
from icprobe.engine.models import load_model, prepare
from icprobe.errors import ConfigError, DataError, ScoreError
from icprobe.evaluation.outcomes import held_out_answers, log_likelihoods, network_of, outcomes
from icprobe.texts.prompts import Prompts
from icprobe.texts.tokenizing import load_tokenizer
from icprobe.training.fine_tune import IGNORED, fine_tune, tokenize
from icprobe.truth import bank
from icprobe.truth.sets import Training, left_out, random_subsets, removals, trainings

IDS = [f"{n:02d}" for n in range(12)]


# --- which examples ---------------------------------------------------------------------------------------------


def test_more_subsets_leave_the_first_ones_as_they_are():
    eight, twelve = (random_subsets(IDS, number, 0.5, seed=3) for number in (8, 12))
    assert twelve[: len(eight)].equals(eight)
    assert (twelve.groupby("subset").size() == 6).all()
    assert twelve.groupby("subset")["id"].agg(lambda ids: list(ids) == sorted(set(ids))).all()
    assert not random_subsets(IDS, 8, 0.5, seed=4).equals(eight)


def test_every_example_is_as_likely_to_be_in_a_subset():
    n = random_subsets(IDS, 2000, 0.25, seed=0)["id"].value_counts()
    assert np.abs(n / 2000 - 0.25).max() < 0.04, n


@pytest.mark.parametrize(("share", "size"), [(0.01, 1), (0.5, 6), (0.99, 11)])
def test_a_share_takes_one_example_at_least_and_never_all(share, size):
    assert len(random_subsets(IDS, 1, share, seed=0)) == size
    with pytest.raises(ScoreError, match="1 example cannot be divided"):
        random_subsets(IDS[:1], 1, share, seed=0)


def scores_of(values, **columns):
    return pd.DataFrame({"id": IDS, "score": values, **columns})


def test_removals_take_a_methods_best_by_score_then_by_mean_effect():
    tied = scores_of([1.0] * 6 + [0.0] * 6, mean_effect=np.arange(12.0))
    table = removals(IDS, {"icp": (tied, None)}, 0.25, controls=2, seed=0)
    assert table[table["method"] == "icp"]["id"].tolist() == ["03", "04", "05"]
    controls = table[table["method"].isna()]
    assert controls.groupby("subset").size().to_dict() == {"control-0": 3, "control-1": 3}
    assert table["task"].isna().all()


def test_removals_by_task_take_each_tasks_best():
    matrix = pd.DataFrame({"id": IDS[::-1], "a": np.arange(12.0), "b": -np.arange(12.0)})
    table = removals(IDS, {"influence": (scores_of(np.zeros(12)), matrix)}, 0.2, controls=2, seed=0)
    by_task = table.dropna(subset="task").groupby("task")["id"].agg(list).to_dict()
    assert by_task == {"a": ["00", "01"], "b": ["10", "11"]}
    assert set(table["subset"]) == {"influence/a", "influence/b", "control-0", "control-1"}


def test_a_method_that_has_evaluated_too_few_is_refused():
    few = scores_of([1.0, 2.0] + [np.nan] * 10)
    with pytest.raises(ScoreError, match="icp_budget has evaluated 2 examples, fewer than the 3 to remove"):
        removals(IDS, {"icp_budget": (few, None)}, 0.25, controls=2, seed=0)


def test_a_larger_sample_is_left_out_besides_the_first_ones():
    few, more = left_out(IDS, 3, seed=0), left_out(IDS, 5, seed=0)
    assert more[:4].equals(few)
    assert few["subset"][0] == "all"
    assert few["id"].isna().tolist() == [True, False, False, False]
    with pytest.raises(ScoreError, match="13 is more than the 12 examples"):
        left_out(IDS, 13, seed=0)


def test_trainings_hold_the_members_in_the_order_of_the_examples():
    subsets = pd.DataFrame({"subset": ["s", "s"], "id": ["07", "01"]})
    assert trainings("subsets", subsets, IDS, [0, 5]) == [
        Training("s", 0, ("01", "07")),
        Training("s", 5, ("01", "07")),
    ]
    removed = pd.DataFrame({"subset": ["icp"] * 2, "method": ["icp"] * 2, "task": [None] * 2, "id": ["00", "11"]})
    assert trainings("removals", removed, IDS, [0])[0].members == tuple(IDS[1:-1])
    out = trainings("left_out", left_out(IDS, 1, seed=0), IDS, [0])
    assert [one.members for one in out] == [tuple(IDS)] * 2
    assert out[0].masked is None
    assert out[1].masked in IDS


# --- trainings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tmp_path_factory):
    """A prepared model: what can be done with it stands in its manifest."""
    folder = tmp_path_factory.mktemp(request.param)
    corpus = folder / "corpus.jsonl"
    jsonl.write(ROWS, corpus)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")} if request.param == "gpt2" else {}
    source = {"source": "random", "architecture": request.param, "sizes": sizes, "seed": 0}
    prepare({**source, "corpus": str(corpus), "vocabulary": 300}, folder / "base", admit)
    return folder / "base"


@pytest.fixture(scope="module")
def texts():
    return Prompts(Templates().model_dump())


@pytest.fixture
def asked(base, texts):
    """The examples by id, and the answers of three of the rows."""
    tokenizer = load_tokenizer(base)
    examples = dict(zip(IDS, tokenize(tokenizer, ROWS, texts, 256)[0], strict=True))
    rows = pd.DataFrame(ROWS[:3]).fillna("")
    return tokenizer, examples, held_out_answers({"tasks": rows}, texts, tokenizer, None)


def retrained(base, asked, folder, *trainings, **changes):
    tokenizer, examples, answers = asked
    settings = {**SETTINGS, **changes}
    return bank.retrain(base, tokenizer, trainings, examples, answers, settings, bank.Bank(folder))


@pytest.mark.parametrize(
    ("lora", "dtype"),
    [(None, "float32"), (None, "bfloat16"), (LORA, "float32"), ({**LORA, "dropout": 0.0, "init_seed": 5}, "float32")],
)
def test_a_retraining_is_fine_tunes_with_its_outcomes(base, texts, asked, tmp_path, lora, dtype):
    """Each of several in one process, whatever was trained before it, and whatever order they come in."""
    chosen = [Training("a", 0, tuple(IDS[:6])), Training("b", 3, tuple(IDS[4:])), Training("a", 1, tuple(IDS[:6]))]
    settings = {"lora": lora, "dtype": dtype}
    table = retrained(base, asked, tmp_path / "bank", *chosen, **settings)
    assert not table["log_likelihood"].duplicated().any(), "another set or seed is another training"
    for training in chosen:
        rows = [row for row in ROWS if row["id"] in training.members]
        out = tmp_path / f"{training.subset}-{training.seed}"
        fine_tune(base, rows, texts, out, {**SETTINGS, **settings}, training.seed, tmp_path / "partial")
        expected = outcomes(base, out, asked[2], "cpu", out.with_suffix(".jsonl"))
        found = table[(table["subset"] == training.subset) & (table["seed"] == training.seed)]
        assert found["id"].tolist() == expected["id"].tolist()
        assert np.abs(found["log_likelihood"].to_numpy() - expected["log_likelihood"]).max() < 1e-5
    again = retrained(base, asked, tmp_path / "other", *chosen[::-1], **settings)
    keys = ["subset", "seed", "id"]
    assert again.sort_values(keys, ignore_index=True).equals(table.sort_values(keys, ignore_index=True))


def test_adapters_that_begin_alike_differ_by_the_order_of_examples_alone(base, asked, tmp_path):
    """A whole set in one batch has no order: other seeds end in the same place, but where adapters begin elsewhere."""
    one_batch = {"batch_size": 12, "accumulation": 1, "epochs": 2}
    chosen = [Training("all", seed, tuple(IDS)) for seed in (0, 1)]
    for init_seed, alike in ((7, True), (None, False)):
        lora = {**LORA, "dropout": 0.0, "init_seed": init_seed}
        table = retrained(base, asked, tmp_path / str(init_seed), *chosen, lora=lora, **one_batch)
        first, second = (table[table["seed"] == seed]["log_likelihood"].to_numpy() for seed in (0, 1))
        assert (np.abs(first - second).max() < 1e-4) == alike


def test_an_example_without_a_loss_is_left_out_and_nothing_else_moves(base, asked, tmp_path):
    """In one batch of all examples it is as if the example were not there."""
    one_batch = {"batch_size": 12, "accumulation": 1, "scheduler": "constant"}
    chosen = [
        Training("without", 0, tuple(IDS), masked="03"),
        Training("others", 0, tuple(id for id in IDS if id != "03")),
        Training("all", 0, tuple(IDS)),
    ]
    table = retrained(base, asked, tmp_path, *chosen, **one_batch)
    without, others, whole = (table[table["subset"] == one.subset]["log_likelihood"].to_numpy() for one in chosen)
    assert np.abs(without - others).max() < 1e-3 < np.abs(without - whole).max()


def test_a_batch_of_the_one_that_is_left_out_teaches_nothing(base, asked, tmp_path):
    alone = {"batch_size": 1, "accumulation": 1, "scheduler": "constant", "epochs": 1}
    answers = asked[2]
    table = retrained(base, asked, tmp_path, Training("alone", 0, ("03",), masked="03"), **alone)
    untrained = log_likelihoods(network_of(base, load_model(base, device="cpu")), answers)
    assert table["log_likelihood"].tolist() == pytest.approx(untrained, abs=1e-6)


# --- the bank ---------------------------------------------------------------------------------------------------


def counted(monkeypatch, stop_at=None):
    """The trainings from now on, as (examples, seed); the one of number stop_at is killed."""
    done, train = [], bank._outcomes

    def once(base, tokenizer, examples, answers, settings, seed):
        if len(done) == stop_at:
            raise KeyboardInterrupt
        done.append((len(examples), seed))
        return train(base, tokenizer, examples, answers, settings, seed)

    monkeypatch.setattr(bank, "_outcomes", once)
    return done


def test_a_killed_job_loses_one_training_and_more_subsets_add_to_the_bank(base, asked, tmp_path, monkeypatch):
    def planned(number):
        return trainings("subsets", random_subsets(IDS, number, 0.5, seed=0), IDS, [0, 1])

    whole = retrained(base, asked, tmp_path / "undisturbed", *planned(3))
    with monkeypatch.context() as patch:
        done = counted(patch, stop_at=4)
        with pytest.raises(KeyboardInterrupt):
            retrained(base, asked, tmp_path / "bank", *planned(3))
    assert len(done) == 4
    with monkeypatch.context() as patch:
        done = counted(patch)
        resumed = retrained(base, asked, tmp_path / "bank", *planned(3))
        assert len(done) == 2, "the four before the kill are kept"
        more = retrained(base, asked, tmp_path / "bank", *planned(5))
        assert len(done) == 2 + 2 * 2, "only the new ones"
    assert resumed.equals(whole)
    assert more[: len(whole)].equals(whole)


DAMAGED = ["", "[1.0", "[1.0]\n", "5", "null", '{"a": 1, "b": 2, "c": 3}', '["x", "y", "z"]', "[NaN, 1.0, 1.0]"]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_training_is_done_again(base, asked, tmp_path, monkeypatch, caplog, damage):
    chosen = Training("a", 0, tuple(IDS[:4]))
    first = retrained(base, asked, tmp_path, chosen)
    (kept,) = tmp_path.glob("*.json")
    kept.write_text(damage)
    assert retrained(base, asked, tmp_path, chosen).equals(first)
    assert "damaged" in caplog.text
    assert len(json.loads(kept.read_text())) == 3


def test_a_training_that_diverges_is_told_at_once_and_not_kept(base, asked, tmp_path):
    with pytest.raises(DataError, match=r"training on a with seed 0 .* diverged; lower finetune\.learning_rate"):
        retrained(base, asked, tmp_path, Training("a", 0, tuple(IDS[:8])), learning_rate=1e30, scheduler="constant")
    assert list(tmp_path.iterdir()) == []


def test_a_training_of_one_step_within_its_warm_up_is_refused(base, asked, tmp_path):
    one_step = {"batch_size": 8, "accumulation": 4, "epochs": 1, "warmup_ratio": 0.03}
    chosen = Training("a", 0, tuple(IDS[:4]))
    with pytest.raises(ConfigError, match=r"warmup_ratio: 4 examples make one step, .* nothing would be learned"):
        retrained(base, asked, tmp_path, chosen, **one_step)
    first, other = (
        retrained(base, asked, tmp_path / str(rate), chosen, **{**one_step, "warmup_ratio": 0, "learning_rate": rate})
        for rate in (1e-3, 1e-2)
    )
    assert not first["log_likelihood"].equals(other["log_likelihood"]), "without a warm-up one step learns"


def test_two_jobs_may_keep_the_same_training_at_once(tmp_path):
    example = [{"input_ids": [1, 2], "labels": [1, 2]}]
    body = "import sys; sys.path[:0] = {path!r}\nfrom icprobe.truth.bank import Bank\nbank = Bank({folder!r})\n"
    body += "for _ in range(200): bank.keep({example!r}, 0, [1.0]); assert bank.get({example!r}, 0, 1) == [1.0]\n"
    code = body.format(path=[str(Path(bank.__file__).parents[2])], folder=str(tmp_path), example=example)
    jobs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [job.wait(100) for job in jobs] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_example_that_cannot_be_trained_on_is_refused(base, asked, tmp_path):
    tokenizer, examples, answers = asked
    some = {id: example for id, example in examples.items() if id != "05"}
    with pytest.raises(DataError, match="truth: 1 example cannot be trained on: 05; the query alone fills"):
        retrained(base, (tokenizer, some, answers), tmp_path, Training("a", 0, ("04", "05")))


def test_labels_of_what_is_left_out_are_all_ignored(asked):
    example = next(iter(asked[1].values()))
    assert set(bank._of(example, True)["labels"]) == {IGNORED}
    assert bank._of(example, False) == example
