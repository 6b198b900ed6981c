"""The examples' embeddings as an artifact of their own, one row for each: by these selections are told apart."""

import logging
import time
from pathlib import Path

import numpy as np

from icprobe import jsonl
from icprobe.attribution.documents import encode_documents
from icprobe.attribution.embedding import directions_of
from icprobe.attribution.matrix import Inputs, check_finite
from icprobe.engine import batching
from icprobe.engine.network import Network
from icprobe.texts.control_tokens import beginning

logger = logging.getLogger(__name__)

AT_ONCE = 64  # batches whose documents are tokenised together
SAVE_SECONDS = 20.0  # between two saves; a killed job loses about this much work


def write_vectors(inputs: Inputs, path: Path, partial: Path, batch_tokens: int = 1024) -> tuple[int, int]:
    """Writes e / ‖e‖ of each example, as the method `embedding` has it: float32 [N, d] in the order of inputs.train.

    path: an .npy file, which may be read without being in memory. partial: a folder for unfinished work, which belongs
    to exactly these inputs. Returns (N, d). Raises ScoreError for NaN.
    """
    network = Network(inputs.model, inputs.capabilities, forward_only=True)
    skipped = tuple(beginning(inputs.tokenizer))
    batches = batching.batches(inputs.lengths, batch_tokens)
    unfinished, journal = partial / "vectors.npy", partial / "batches.jsonl"
    if not unfinished.exists():
        journal.unlink(missing_ok=True)
    finished = {row["batch"] for row in jsonl.recover(journal)}
    waiting = [index for index in range(len(batches)) if index not in finished]
    if finished:
        logger.info("resumed: %d of %d batches were finished before", len(finished), len(batches))
    vectors = np.load(unfinished, mmap_mode="r+") if finished else None
    saved, done = time.monotonic(), []
    inputs.progress.expect(len(waiting), "batch")
    for start in range(0, len(waiting), AT_ONCE):
        indices = waiting[start : start + AT_ONCE]
        documents = encode_documents(inputs, [batches[index] for index in indices])
        for index in indices:
            rows = batches[index]
            found = directions_of(network, [documents[row] for row in rows], skipped).astype(np.float32)
            check_finite("embedding", list(inputs.train["id"].iloc[rows]), found)
            if vectors is None:
                shape = (len(inputs.train), found.shape[1])
                vectors = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
            vectors[rows] = found
            done.append({"batch": index})
            inputs.progress.update(1)
            if time.monotonic() - saved > SAVE_SECONDS or index == waiting[-1]:
                vectors.flush()
                jsonl.append(journal, done)
                saved, done = time.monotonic(), []
    n, d = vectors.shape
    del vectors
    unfinished.replace(path)
    return n, d
