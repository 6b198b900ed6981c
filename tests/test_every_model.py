"""Every causal type of transformers: right, or refused in a sentence; and docs/models.md says which."""

import re
import sys

import pytest
import transformers
from conftest import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.every_model import BEGIN, END, PAGE, TYPES, examine, words

TABLE = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
NAMED = ("llama", "mistral", "mixtral", "qwen2", "qwen3_moe", "gpt_oss", "gemma2", "gemma3", "phi3", "olmo2", "cohere")
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| `([\w-]+)` \|.*\|$", TABLE, re.MULTILINE)}


def test_the_page_has_every_type_of_the_installed_transformers_and_counts_them():
    assert list(ROWS) == TYPES, "python -m benchmarks.every_model writes the page"
    right = sum("| right |" in row for row in ROWS.values())
    packed = sum("| packed |" in row for row in ROWS.values())
    assert TABLE.startswith(
        f"transformers {transformers.__version__}: {right} of {len(TYPES)} types are right, {packed} of them in packed "
        f"rows; {len(TYPES) - right} are refused.\n"
    )
    assert right >= 140
    for kind in NAMED:
        assert "| right | packed |" in ROWS[kind]


def test_a_type_that_is_refused_has_a_sentence():
    refused = [row for row in ROWS.values() if row.split("|")[2].strip() == "refused"]
    assert refused
    assert all(len(row.split("|")[-2].strip()) > 20 for row in refused)


def some_of_each_sort() -> set[str]:
    """Two types of each sort: those whose rows say the same of how they are computed, trained and asked."""
    sorts: dict[tuple[str, ...], list[str]] = {}
    for kind, row in ROWS.items():
        right, rows, _, training, generation, remark = (cell.strip() for cell in row.split("|")[2:-1])
        sorts.setdefault((right, rows, training, generation, str(bool(remark))), []).append(kind)
    return {kind for kinds in sorts.values() for kind in kinds[:2]} | {*NAMED, "gpt2", "gpt_neox"}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind in some_of_each_sort() else pytest.mark.models)
        for kind in TYPES
    ],
)
def test_a_type_is_what_the_page_says(kind, tmp_path):
    assert examine(kind, words(), tmp_path).line() == ROWS[kind]
