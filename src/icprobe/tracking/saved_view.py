"""A saved view of a project on W&B (`make workspace`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icprobe.errors import DataError
from icprobe.tracking.lineage import CLOCK, STEP
from icprobe.tracking.syncing import TrackingError, check_server


def workspace(project: str, entity: str, experiment: str | None = None) -> Any:
    """A wandb-workspaces Workspace: correlations, overlaps, win rates, training curves, the workflow. No network.

    The panels read what jobs log: the summaries `spearman`, `overlap` and `win_rate`, the tables `correlations`,
    `overlaps` and `win_rates`, the curves train/*, and those of the workflow's own runs. That the specification is
    built, and which keys it names, is tested; how W&B draws it, and saving it, need the service and were not.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise TrackingError("A saved view needs the package wandb-workspaces: pip install wandb-workspaces.") from None

    def section(name: str, *shown: Any) -> Any:
        return workspaces.Section(name=name, panels=list(shown), is_open=True)

    def compared(name: str, title: str, metric: str, by: str) -> Any:
        """A summary number as bars, and the table that it is the headline of."""
        bars = panels.BarPlot(title=title, metrics=[metric], groupby=panels.Config(by))
        return section(name, bars, panels.WeavePanelSummaryTable(table_name=name.lower().replace(" ", "_")))

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"icprobe {experiment or 'overview'}",
        sections=[
            compared("Correlations", "Spearman of icp and influence", "spearman", by="model"),
            compared("Overlaps", "Share of a bin that is in the icp bin", "overlap", by="method"),
            compared("Win rates", "Win rate against the base model, %", "win_rate", by="bin"),
            section(
                "Training",
                panels.LinePlot(
                    title="Training loss by bin", x=STEP, y=["train/loss"], groupby=panels.Config("bin"), title_x="step"
                ),
            ),
            section(
                "Workflow",
                panels.LinePlot(
                    title="Jobs", x=CLOCK, y=[f"workflow/{state}" for state in ("done", "failed", "total")], title_x="s"
                ),
                panels.WeavePanelSummaryTable(table_name="rules"),
                panels.WeavePanelSummaryTable(table_name="stale"),
            ),
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=workspaces.And(workspaces.Metric("Group") == experiment) if experiment else "",
            groupby=[workspaces.Metric("Group"), workspaces.Metric("JobType")],
        ),
    )


def save_workspace(project: str, entity: str | None, experiment: str | None = None) -> str:
    """Save the view on W&B; returns its address. Not tested against the service."""
    check_server(10)
    import wandb

    view = workspace(project, entity or wandb.Api(timeout=20).default_entity, experiment)
    view.save()
    return view.url


def configured(files: Sequence[str]) -> tuple[str, str | None, str | None]:
    """Project, entity and experiment of configuration files, read as `snakemake` reads them; of none, the defaults."""
    if not files:
        return "icprobe", None, None
    import yaml
    from snakemake.utils import update_config

    from icprobe.attribution import METHODS
    from icprobe.config import load, stands_alone

    layers = []
    for file in files:
        if not Path(file).is_file():
            raise DataError(f"{file}: no such file; name configuration files, config.yaml first.")
        layers.append(yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    given: dict[str, Any] = {}
    for layer in layers[1:]:
        update_config(given, layer)
    raw = {} if stands_alone(given) else layers[0]
    update_config(raw, given)
    config = load(raw, METHODS)
    return config.wandb.project, config.wandb.entity, config.experiment
