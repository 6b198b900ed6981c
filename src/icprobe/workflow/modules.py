"""Our rules within somebody else's workflow: `module icprobe: …` and `use rule * from icprobe as icprobe_*`.

There the rules may have other names, not all rules are ours, Snakemake takes the hooks of the main Snakefile alone, and
these files are read again for each `use rule`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import icprobe
from icprobe import paths
from icprobe.errors import ConfigError


class Place:
    """Where our rules are: in a workflow of their own, or a module in another. readings: how often they were read."""

    def __init__(self, workflow: Any) -> None:
        self._workflow, self.namespace = workflow, workflow.modifier.namespace
        # What becomes of a name, written for a name of "*".
        before, star, after = workflow.modifier.modify_rulename("*").partition("*")
        self._around = (before, after) if star else ("", "")
        self.readings = 0

    @property
    def is_first(self) -> bool:
        """Whether the rules are read for the first time."""
        return self.readings == 1

    def own(self, jobs: Iterable[Any]) -> list[Any]:
        """Those of Snakemake's jobs whose rules are ours."""
        return [job for job in jobs if job.rule.module_globals["__name__"] == self.namespace]

    def name(self, rule: str) -> str:
        """The name by which our files know a rule of the workflow."""
        return rule.removeprefix(self._around[0]).removesuffix(self._around[1])

    def called(self, rule: str) -> str:
        """The name that a rule of ours has in the workflow."""
        return rule.join(self._around)

    def names(self, jobs: Iterable[Any]) -> set[str]:
        """The names of our rules that have jobs among these."""
        return {self.name(job.rule.name) for job in self.own(jobs)}

    def lend(self, **hooks: Callable[..., Any]) -> None:
        """Adds our onstart, onsuccess and onerror to those that the workflow has up to here."""
        for name, ours in hooks.items():
            setattr(self._workflow, f"_{name}", _both(getattr(self._workflow, f"_{name}"), ours))


def _both(theirs: Callable[[Any], Any], ours: Callable[..., Any]) -> Callable[[Any], None]:
    def hook(log: Any) -> None:
        theirs(log)
        ours(log=log)

    return hook


_places: dict[int, Place] = {}


def place_of(workflow: Any, version: str) -> Place:
    """The place of our rules in a workflow that is being read; version: of the files that are read.

    Raises ConfigError for a package of another version, for paths that a module statement would change, and where the
    workflow has them already: what jobs are told of the configuration besides their params is one for a workflow.
    """
    if version != icprobe.__version__:
        raise ConfigError(
            f"icprobe: the workflow is version {version} and the installed package is {icprobe.__version__}; "
            f"pip install icprobe=={version}, or name the tag v{icprobe.__version__} of the workflow"
        )
    modifier = workflow.modifier
    folders = (paths.RESULTS, paths.LOGS, Path(paths.MODEL_NAME).parts[0])
    moved = [f for f in folders if modifier.path_modifier.replace_prefix(f"{f}/x") != f"{f}/x"]
    moved += [f for f in folders if workflow.pathvars.get(f) != f and not modifier.is_main_snakefile()]
    if moved:
        raise ConfigError(
            f"icprobe: its {moved[0]} stay in {moved[0]}/ of the working directory, so prefix, replace_prefix and "
            "pathvars cannot move them; leave these out of the module and give the experiment a name of its own"
        )
    place = _places.get(id(workflow))
    if place is None:
        place = _places[id(workflow)] = Place(workflow)
    elif place.namespace != modifier.namespace:
        raise ConfigError(
            f"icprobe: this workflow has it already, as module {place.namespace}, and jobs know one configuration; "
            "give the second experiment a workflow of its own, or list the models of both in one"
        )
    place.readings += 1
    return place
