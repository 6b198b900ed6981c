"""Functions of rules that carry their signature, so that nobody has to find it out anew for each job.

Snakemake asks for it several times for each function of each job; that is a tenth of planning ten thousand jobs.
"""

import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any


def remember(functions: Iterable[Callable[..., Any]]) -> None:
    """Gives each function its `__signature__`, for which `inspect.signature` looks first.

    What has none, or takes no attribute, such as a bound method, stays as it is.
    """
    for function in functions:
        with suppress(AttributeError, TypeError, ValueError):
            function.__signature__ = inspect.signature(function)


def of_rule(rule: Any) -> list[Callable[..., Any]]:
    """The functions of a Snakemake rule's input files and params. Resources: `resources.directives`."""
    items = [getattr(item, "_file", item) for item in (*rule.input, *rule.params)]
    return [f for f in (item if callable(item) else getattr(item, "callable", None) for item in items) if callable(f)]
