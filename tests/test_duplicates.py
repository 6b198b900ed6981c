"""Examples that repeat an earlier one: found as a naive comparison of all with all finds them, the first is kept."""

import random

import pandas as pd
import pytest

from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.errors import ConfigError
from icprobe.jsonl import write as write_jsonl
from icprobe.tables import checking, duplicates
from icprobe.tables.parquet import write_parquet
from icprobe.tables.repeated import repeated

STORY = (
    "The river rose in the night and took the small wooden bridge with it, so that nobody could reach the mill. "
    "In the morning the miller counted his sacks, looked at the water, and began to build a boat."
)


def table(*rows):
    frame = pd.DataFrame(rows, columns=["instruction", "input", "output"])
    frame.insert(0, "id", [f"r{n}" for n in range(len(frame))])
    return frame


def pairs(found):
    return dict(zip(found["id"], found["kept_id"], strict=True))


def edited(draw, text, share):
    words = text.split()
    return " ".join(draw.choice(["moon", "salt", "ten"]) if draw.random() < share else word for word in words)


def test_exact_is_the_same_but_for_white_space_and_the_first_is_kept():
    rows = table(
        ("Add.", "1 2", "3"), ("Add.", "1 2", "4"), ("Add. ", "1\n2", " 3"), ("add.", "1 2", "3"), ("Add.", "1 2", "3")
    )
    found = duplicates.duplicates(rows, "exact")
    assert pairs(found) == {"r2": "r0", "r4": "r0"}
    assert found["similarity"].tolist() == [1, 1]
    kept = duplicates.without(rows, found)
    assert kept["id"].tolist() == ["r0", "r1", "r3"]
    assert kept.index.tolist() == [0, 1, 2]


def test_nothing_that_is_left_repeats_another_as_the_table_of_repeated_rows_sees_it(tmp_path):
    rows = table(("Add.", "1 2", "3"), ("Add.", "1  2 ", "3\n"), ("Add. 1", "2", "3"), ("Add.", "1 2", "3"))
    for how in ("exact", "near"):
        write_parquet(duplicates.without(rows, duplicates.duplicates(rows, how)), tmp_path / "train.parquet")
        counted = repeated({"train": tmp_path / "train.parquet"})
        assert counted.loc[counted["same"] == "row", "n"].item() == 0


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_near_ones_are_those_that_comparing_all_with_all_finds(seed, threshold):
    draw = random.Random(seed)
    rows = table(
        *(
            (edited(draw, STORY, draw.choice([0, 0.02, 0.2])), "", edited(draw, STORY[::-1], draw.choice([0, 0.03])))
            for _ in range(60)
        )
    )
    texts = {row.id: (row.instruction, row.output) for row in rows.itertuples()}
    kept, like, expected = [], {}, {}
    for one, own in texts.items():
        shingles = duplicates.shingles(own)
        alike = {other: duplicates.similarity(shingles, duplicates.shingles(texts[other])) for other in kept}
        best = max(alike, key=alike.get, default=None)
        if own in like:  # the same texts are like what the first of them is like
            expected[one] = like[own]
        elif best is not None and alike[best] >= threshold:
            expected[one] = like[own] = (best, alike[best])
        else:
            kept.append(one)
            like[own] = (one, 1.0)
    assert 0 < len(expected) < 59
    found = duplicates.duplicates(rows, {"near": threshold})
    assert {row.id: (row.kept_id, row.similarity) for row in found.itertuples()} == expected


def test_the_similarity_is_that_of_sets_of_five_characters_the_smaller_of_prompt_and_answer():
    one, other = duplicates.shingles(("abcdefg", "Same")), duplicates.shingles(("abcdefh", "same"))
    assert one == ({"abcde", "bcdef", "cdefg"}, {"same"})
    assert duplicates.similarity(one, other) == 2 / 4
    assert duplicates.similarity(one, duplicates.shingles(("abcdefg", "Other"))) == 0


def test_the_same_prompt_with_another_answer_is_no_duplicate_nor_the_same_answer_to_another_prompt():
    rows = table((STORY, "", "Yes"), (STORY, "", "No"), (STORY[::-1], "", "Yes"), (STORY + "!", "", "Yes"))
    assert pairs(duplicates.duplicates(rows, "near")) == {"r3": "r0"}


def test_a_similarity_of_one_is_the_same_runs_of_characters_whatever_their_case_and_number():
    rows = table((STORY, "", "Ha ha ha ha"), (STORY.upper(), "", "Ha ha ha ha ha"), (STORY, "", "Ha ha ha ha ho"))
    assert pairs(duplicates.duplicates(rows, {"near": 1})) == {"r1": "r0"}


def test_what_repeats_a_row_that_was_dropped_as_near_repeats_the_one_that_is_kept():
    near = STORY + "!"
    found = duplicates.duplicates(table((STORY, "", "Yes"), (near, "", "Yes"), (near + " ", "", "Yes")), "near")
    assert pairs(found) == {"r1": "r0", "r2": "r0"}
    assert found["similarity"].nunique() == 1
    assert found["similarity"][0] < 1


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_no_more_than_a_thousandth_of_the_pairs_at_the_threshold_is_missed(threshold):
    bands, rows = duplicates.bands(threshold)
    assert bands > 1, "datasketch takes no fewer"
    assert bands * rows <= duplicates.PERMUTATIONS
    assert (1 - threshold**rows) ** bands <= 1e-3


def read(path, *rows):
    write_jsonl(rows, path)
    return checking.read_table({"path": str(path)})


def test_made_ids_stay_those_of_the_file_and_ids_that_coincide_by_chance_are_no_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "ID_DIGITS", 1)  # of 40 rows many share one
    rows = [{"instruction": f"Count to {n % 40}.", "output": str(n % 40)} for n in range(60)]
    train = read(tmp_path / "a.jsonl", *rows)
    assert train["id"].str.contains("-").any()
    found = duplicates.duplicates(train, "exact")
    assert pairs(found) == dict(zip(train["id"][40:], train["id"][:20], strict=True))
    assert duplicates.without(train, found)["id"].tolist() == train["id"][:40].tolist()
    assert duplicates.without(train, found)["row_number"].tolist() == [*range(40)]


def test_conversations_are_compared_whole(tmp_path):
    def talk(*contents):
        roles = ("user", "assistant") * 2
        return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}

    train = read(
        tmp_path / "a.jsonl",
        talk("Hello.", "Hi.", STORY, "So it was."),
        talk("Hello.", "No.", STORY, "So it was."),
        talk("Hello. ", "Hi.", STORY, "So it  was."),
        talk("Hello.", "Hi.", STORY, "So it was not."),
    )
    ids = train["id"].tolist()
    assert pairs(duplicates.duplicates(train, "exact")) == {ids[2]: ids[0]}
    assert pairs(duplicates.duplicates(train, "near")) == {ids[1]: ids[0], ids[2]: ids[0]}


def test_ids_that_look_like_numbers_stay_texts_in_the_file(tmp_path):
    rows = table(*[("Add.", "1 2", "3")] * 3).assign(id=["007", "NA", "1e5"])
    duplicates.duplicates(rows, "exact").to_csv(tmp_path / "found.csv", index=False)
    found = duplicates.read(tmp_path / "found.csv")
    assert found.to_dict("list") == {"id": ["NA", "1e5"], "kept_id": ["007"] * 2, "similarity": [1, 1]}
    assert duplicates.without(rows, found)["id"].tolist() == ["007"]


def test_a_sentence_says_how_many_and_how_alike():
    assert duplicates.remark(1, "exact") == "1 training example that repeats an earlier one exactly is dropped"
    assert duplicates.remark(2000, "near") == (
        "2,000 training examples that repeat an earlier one exactly or nearly (similarity from 0.8) are dropped"
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"deduplicate": "fuzzy"}, "data.deduplicate"),
        ({"deduplicate": {"near": 0.3}}, "data.deduplicate"),
        ({"train": None, "deduplicate": "exact"}, "there are no texts to compare, because data.train is absent"),
    ],
)
def test_what_cannot_be_compared_is_refused_when_the_configuration_is_read(data, said):
    whole = {"experiment": "x", "models": ["m"], "model_sources": {"m": {"source": "random"}}, "bins": []}
    tables = {"train": {"path": "a.jsonl"}, "tasks": {"path": "b.jsonl"}}
    with pytest.raises(ConfigError) as error:
        load({**whole, "data": {**tables, **data}}, METHODS)
    assert said in str(error.value)
