"""BM25, the classic of search: how many rare words do an example and a task share? It reads texts alone, no model."""

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import bm25s
import numpy as np
import regex

from icprobe.attribution.matrix import Inputs, Pieces
from icprobe.errors import DataError, several
from icprobe.texts.conversations import calls_of, messages_of

logger = logging.getLogger(__name__)
logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG when it is imported

K1, B = 1.5, 0.75  # bm25s's own
# Scripts whose words no space parts: of Unicode's line breaking "complex context" (Thai, Lao, Khmer, Burmese and
# others), and the characters of Chinese and Japanese.
UNSPACED = r"[\p{lb=SA}\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}]"
LETTERS = r"[\p{L}\p{M}\p{N}]"
# A mark without a letter before it, such as that which makes a sign an emoji, is no word.
RUN = regex.compile(
    rf"(?V1)(?P<unspaced>[[\p{{L}}\p{{N}}]&&{UNSPACED}][{LETTERS}&&{UNSPACED}]*)"
    rf"|[[\p{{L}}\p{{N}}]--{UNSPACED}][{LETTERS}--{UNSPACED}]*"
)
CHARACTER = regex.compile(r"\X")  # with the marks that stand on it


def attribute(inputs: Inputs, method: str, batches: Sequence[np.ndarray]) -> Pieces:
    """A[z, t] = Σ_w idf(w) · f(w, z) / (f(w, z) + k1·(1 − b + b·|z|/avg)), over the words w of t, each as often as it
    stands there; f: how often it stands in z, |z|: words of z, avg: their mean over all examples, idf(w) = ln(1 + (N −
    n_w + ½)/(n_w + ½)) with n_w of the N examples that have the word. Lucene's form of BM25 (Robertson and Zaragoza,
    2009), by bm25s (arXiv 2407.03618).

    Needs all examples at once. Raises DataError where none has a word.
    """
    vocabulary: dict[str, int] = {}
    # Of each word one number, not a text for each place where it stands: those of a million examples fill no memory.
    examples = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in words(text_of(row))]
        for row in inputs.train.to_dict("records")
    ]
    if not vocabulary:
        raise DataError("bm25: no example has a word, which is made of letters or digits; choose another method.")
    index = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
    index.index((examples, vocabulary), create_empty_token=False, show_progress=False)
    tasks = [words(text_of(row)) for row in inputs.tasks.to_dict("records")]
    known = [index.get_tokens_ids(task) for task in tasks]
    if strange := len(tasks) - sum(map(bool, known)):
        logger.info("bm25: %s share no word with any example: 0 throughout", several(strange, "task"))
    matrix = np.empty((len(examples), len(tasks)), dtype=np.float32)
    for column, ids in enumerate(known):
        matrix[:, column] = index.get_scores_from_ids(ids)
    for rows in batches:
        yield method, rows, matrix[rows]


def text_of(row: Mapping[str, Any]) -> str:
    """A row's own words, without those of templates: instruction, input and output, or all turns of a conversation."""
    messages = messages_of(row)
    return "\n".join([*(m["content"] for m in messages), *filter(None, map(calls_of, messages))])


def words(text: str) -> list[str]:
    """The words of a text, lower-cased: runs of letters, marks and digits, of any script; no stemming, no stop words.

    Where a script parts no words, each two neighbouring characters are one (as Lucene's CJKAnalyzer has it), a single
    one stands alone. Forms of one letter that look alike (NFKC) are the same.
    """
    found: list[str] = []
    for run in RUN.finditer(unicodedata.normalize("NFKC", text).lower()):
        if run["unspaced"] is None:
            found.append(run[0])
            continue
        characters = CHARACTER.findall(run[0])
        found += ["".join(pair) for pair in pairwise(characters)] or characters
    return found
