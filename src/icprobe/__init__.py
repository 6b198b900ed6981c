"""icprobe: what is a training example worth? Importing this package imports nothing heavy.

From Python, without Snakemake: `value`, `correlate`, `select`, `export` and `load` (docs/python.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["correlate", "export", "load", "select", "value"]

# Imported when they are first asked for: they need pandas, and `value` torch.
_MODULES = {
    "value": "icprobe.notebook.valuing",
    "correlate": "icprobe.notebook.scores",
    "select": "icprobe.notebook.scores",
    "export": "icprobe.notebook.scores",
    "load": "icprobe.notebook.results",
}


if TYPE_CHECKING:
    from icprobe.notebook.results import load
    from icprobe.notebook.scores import correlate, export, select
    from icprobe.notebook.valuing import value
else:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
