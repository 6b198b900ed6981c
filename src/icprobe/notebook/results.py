"""What an experiment's DAG has made, read from its directory: scores, attribution matrices, tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from icprobe import artifacts, paths
from icprobe.attribution import METHODS
from icprobe.errors import ArtifactError, shown
from icprobe.notebook.scores import scores_table
from icprobe.tables import parquet


def load(directory: str | Path) -> "Results":
    """Opens the results of an experiment, such as "results/mine". Raises ArtifactError where there are none."""
    results = Results(Path(directory).expanduser())
    if not results.models:
        raise ArtifactError(
            f"{directory}: holds no scores of an experiment; run `snakemake scores` first, or correct the path "
            "(the experiment's, such as results/demo)."
        )
    return results


@dataclass(frozen=True)
class Results:
    """The results of one experiment. Where it has several models, each method takes the `model` that is meant.

    Files are read when they are asked for, and checked as the DAG checks them. What an earlier configuration made and
    the present one does not, such as the scores of a method that is no longer asked for, is read as long as its file
    is there.
    """

    directory: Path

    @property
    def models(self) -> list[str]:
        """The models that examples were scored with."""
        return sorted(path.parent.name for path in self.directory.glob("*/scores") if any(path.glob("*.parquet")))

    @property
    def train(self) -> pd.DataFrame:
        """The training examples: `id`, `instruction`, `input`, `output`, labels."""
        return parquet.read_parquet(self._file(paths.TRAIN))

    @property
    def tasks(self) -> pd.DataFrame:
        """The tasks: `id`, `instruction`, `input`, `output`."""
        return parquet.read_parquet(self._file(paths.TASKS))

    def methods(self, model: str | None = None) -> list[str]:
        """The methods that have scores: those of icprobe in their usual order, then others by name."""
        known = [*METHODS]
        found = self._names(paths.scores("*"), model)
        return sorted(found, key=lambda name: (known.index(name) if name in known else len(known), name))

    def scores(self, model: str | None = None, methods: Sequence[str] | None = None) -> pd.DataFrame:
        """Every method's scores beside the examples, as `icprobe.value` gives them; methods: which (default: all)."""
        chosen = self.methods(model) if methods is None else [*methods]
        tables = {m: parquet.read_parquet(self._existing(paths.scores("*"), m, model)) for m in chosen}
        return scores_table(self.train, parquet.read_parquet(self._file(paths.LENGTHS, model)), tables)

    def matrix(self, method: str, model: str | None = None) -> pd.DataFrame:
        """A method's attribution matrix: `id`, then one column per task (or `score`)."""
        return parquet.read_parquet(self._existing(paths.matrix("*"), method, model))

    def tables(self, model: str | None = None) -> list[str]:
        """The names of the tables that there are, such as "correlations"."""
        return self._names(paths.table("*.csv"), model)

    def table(self, name: str, model: str | None = None) -> pd.DataFrame:
        """A table by its name, such as "correlations", "overlaps" or "win_rates"."""
        return artifacts.read_csv(self._existing(paths.table("*.csv"), name, model))

    def _file(self, pattern: str, model: str | None = None) -> Path:
        """Finds a file by its pattern in `paths`, which begins with the experiment's directory."""
        within = pattern.removeprefix(f"{paths.EXPERIMENT}/")
        return self.directory / (within.format(model=self._model(model)) if "{model}" in within else within)

    def _existing(self, pattern: str, name: str, model: str | None) -> Path:
        """Finds the file that has `name` in the place of the pattern's star; says which there are where it is not."""
        if name not in (known := self._names(pattern, model)):
            where = self._file(pattern, model).parent
            raise ArtifactError(f"{where}: there is no {shown(name)}, only {', '.join(known) or 'nothing'}.")
        return Path(str(self._file(pattern, model)).replace("*", name))

    def _names(self, pattern: str, model: str | None) -> list[str]:
        """Finds what stands in the place of the pattern's star."""
        file = self._file(pattern, model)
        return sorted(path.stem for path in file.parent.glob(file.name))

    def _model(self, model: str | None) -> str:
        """Finds the model that is meant: the only one, where none is named."""
        models = self.models
        if model is None and len(models) == 1:
            return models[0]
        if model not in models:
            what = "name the model" if model is None else f"there is no model {shown(model)}"
            raise ArtifactError(f"{self.directory}: {what}; there are {', '.join(models)}.")
        return model
