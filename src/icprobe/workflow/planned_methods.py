"""What a configuration decides of the methods: which are computed, from what, and with which settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from icprobe.attribution import METHODS, Method
from icprobe.attribution.objective import said
from icprobe.config import Config
from icprobe.config.combined import Combined
from icprobe.config.sections import ExternalScores
from icprobe.config.types import slice_of


@dataclass(frozen=True)
class MethodsPlan:
    """The part of a `Plan` that is about methods.

    methods: what is known of each method that the configuration can name (`icprobe.attribution.methods_of`).
    """

    config: Config
    methods: Mapping[str, Method]

    @cached_property
    def external(self) -> dict[str, ExternalScores]:
        """The external scores that are asked for, by their names as methods."""
        known = self.config.attribution.external
        return {method: known[method] for method in self.config.attribution.methods if method in known}

    def external_files(self, method: str) -> list[str]:
        """The files of a set of external scores; none for a method that is computed here."""
        return self.external[method].files if method in self.external else []

    @cached_property
    def computed(self) -> list[str]:
        """The methods that are computed here, with jobs of their own."""
        return [m for m in self.config.attribution.methods if m not in self.external and m not in self.combined]

    @cached_property
    def combined(self) -> dict[str, Combined]:
        """The methods that are computed from the matrices of others, each after those of which it is."""
        return self.config.attribution.combined_in_order

    def made_of(self, method: str) -> list[str]:
        """All methods that a combined one rests on, each once, the last of them itself; of another itself alone."""
        members = self.combined[method].members if method in self.combined else []
        return [*dict.fromkeys(m for member in members for m in self.made_of(member)), method]

    def paid_for(self, method: str) -> list[str]:
        """The methods whose passes a combined one costs: of those that share a pass, the first alone."""
        rests = [m for m in self.made_of(method) if m not in self.combined]
        for shared in (self.together, self.swept):
            rests = [m for m in rests if m not in [m for m in rests if m in shared][1:]]
        return rests

    def reads_tasks(self, method: str) -> bool:
        """Whether its values depend on tasks, or may: nobody knows that of external scores."""
        return any(m in self.external or "tasks" in self.methods[m].reads for m in self.made_of(method))

    @cached_property
    def baselines(self) -> list[str]:
        """Those that are the registry's `length` and `random`: external scores may be called so, and be anything."""
        return [method for method in self.computed if self.methods[method].module == METHODS["length"].module]

    @cached_property
    def together(self) -> list[str]:
        """Those of them whose matrices come out of one pass."""
        return [method for method in self.computed if self.methods[method].together]

    def alone(self, needs_model: bool) -> list[str]:
        """Those of them that have jobs of their own, which read a model or none."""
        shared = {*self.together, *self.swept}
        return [m for m in self.computed if m not in shared and self.methods[m].needs_model == needs_model]

    @cached_property
    def long_contexts(self) -> list[str]:
        """Those of them that read several examples or tasks in one context, which the model must be able to."""
        return [method for method in self.computed if self.methods[method].long_contexts]

    @property
    def along_training(self) -> list[str]:
        """Those of them whose gradients are taken at checkpoints of a training."""
        return [method for method in self.computed if self.methods[method].trained]

    @cached_property
    def checkpoint_files(self) -> list[str]:
        """The files of the checkpoints that are given for them; of none, the workflow trains."""
        given = self.config.attribution.tracin.directories if self.along_training else []
        kinds = ("*.safetensors", "*.json", "adapter_model.bin")
        return sorted(str(file) for folder in given for kind in kinds for file in Path(folder).glob(kind))

    @cached_property
    def per_task(self) -> list[str]:
        """The methods with a value for each task: their scores can be taken over the tasks of one domain."""
        return [method for method in self.config.attribution.methods if self.methods[method].per_task]

    def method_settings(self, method: str) -> dict[str, Any]:
        """The keys of the configuration that a method's job uses."""
        return self._settings(method, self.methods[method])

    @property
    def embedding_settings(self) -> dict[str, Any]:
        """The keys that embedding the examples uses, which stays ours where external scores have the method's name."""
        return self._settings("embedding", METHODS["embedding"])

    def _settings(self, method: str, known: Method) -> dict[str, Any]:
        settings = slice_of(self.config.attribution, *known.settings) if known.settings else {}
        # Settings of one method alone lie one level lower, under its name.
        own = settings.pop("influence_ekfac" if known.fits_fisher else method, {})
        own.pop("sweep", None)  # each damping is a method's own
        if known.damping is not None:
            own["damping"] = known.damping
        if settings.get("train_loss") == "response":
            own["max_length"] = self.config.finetune.max_length
        if settings.get("parameters") == "all":  # as it was before there was such a key: nothing is computed anew
            del settings["parameters"]
        return {**settings, **own, **({"dtype": known.dtype} if known.dtype else {})}

    @cached_property
    def fits_fisher(self) -> list[str]:
        """The methods that need the Fisher matrix of the examples."""
        return [method for method in self.computed if self.methods[method].fits_fisher]

    @cached_property
    def swept(self) -> list[str]:
        """Those of them whose matrices come out of one pass, where they are several: of several dampings."""
        return self.fits_fisher if len(self.fits_fisher) > 1 else []

    def pass_settings(self, methods: Sequence[str]) -> dict[str, Any]:
        """The keys of the configuration that a job uses whose methods share a pass."""
        settings = self.method_settings(methods[0])
        if self.methods[methods[0]].fits_fisher and len(methods) > 1:
            settings["damping"] = {method: self.method_settings(method)["damping"] for method in methods}
        return settings

    @property
    def fisher_settings(self) -> dict[str, Any]:
        """The keys that its fit uses: neither what it is damped by, nor what is said of the gradients it is used on."""
        others = {"damping", "reduction", "task_likelihood"}
        return {k: v for k, v in self.method_settings(self.fits_fisher[0]).items() if k not in others}

    def takes_loss(self, method: str) -> bool:
        """Whether a method takes gradients of the loss that fine-tuning minimises, which an example may not have."""
        return self.config.attribution.train_loss == "response" and "train_loss" in self.methods[method].settings

    def chooses_parameters(self, method: str) -> bool:
        """Whether a method takes gradients over some linear layers, which a model may not have."""
        return "parameters" in self.method_settings(method)

    @property
    def parameters_chosen(self) -> bool:
        """Whether any method does."""
        return any(map(self.chooses_parameters, self.computed))

    @property
    def objective(self) -> list[str]:
        """Whose gradients and likelihoods the methods take, in sentences; none where no method takes any."""
        settings: dict[str, Any] = {}
        for method in self.computed:
            settings |= self.method_settings(method)
        return said(settings, self.config.templates.format == "chat")

    def aggregator(self, method: str) -> str:
        """How a method's matrix is reduced over tasks."""
        return self.config.attribution.aggregators.get(method, "mean")
