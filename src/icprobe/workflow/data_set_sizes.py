"""How many examples bins and selections hold, as far as it can be known before they are made."""

import os
from dataclasses import dataclass
from typing import Any

from icprobe import paths
from icprobe.analysis.binning import size_of, sizes
from icprobe.config import Config
from icprobe.config.selections import data_sets
from icprobe.formatting import bin_of, parse_bin
from icprobe.paths import SELECTED
from icprobe.workflow import work


@dataclass(frozen=True)
class DataSetSizes:
    """About how many examples there are, and in each data set that is made of them."""

    config: Config
    examples: float

    # Supposed, of any texts and scores; `measured.Measured` knows them.

    def response_tokens(self, model: str) -> float:
        """Tokens of an example's response, in the mean."""
        return work.ROW_TOKENS / 2

    def icp_scores(self, model: str) -> Any | None:
        """The scores that thresholds are on; None: nobody knows them."""
        return None

    def subset(self, model: str, method: str, bin: str) -> float:
        """Examples in a bin or selection: as its file holds, or as are asked for where it is not there."""
        path = paths.SUBSET.format(experiment=self.config.experiment, model=model, method=method, bin=bin)
        if os.path.isfile(path):
            return self.rows_in(path)
        if bin == "all":
            return self.examples
        return self._selected(model, method) if bin == SELECTED else self._of_bin(model, bin_of(bin))

    def rows_in(self, path: str) -> float:
        """Rows of a file of texts."""
        return work.file_rows([path])

    def _of_bin(self, model: str, bin: str) -> float:
        """Examples in a bin that is not cut yet; without scores a threshold takes its share of the scale."""
        asked, n = parse_bin(bin), int(self.examples)
        if not asked.is_threshold:
            return size_of(bin, n) if asked.percent else min(n, int(asked.number))
        scores = self.icp_scores(model)
        if scores is not None:
            return sizes(scores, [bin], n)[bin]
        share = min(float(asked.number), 1.0)
        return n * (1 - share if asked.is_best else share)

    def _selected(self, model: str, name: str) -> float:
        """Examples of a selection or of a baseline that is not made yet; tokens buy responses of the mean length."""
        asked = self.config.selections[data_sets(self.config.selections)[name].selection]
        if asked.tokens is None:
            return self._of_bin(model, f"top {asked.top or asked.bottom}")
        return min(self.examples, asked.tokens / self.response_tokens(model))
