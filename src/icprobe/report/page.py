"""The report's page: its template, numbers as people read them, and the scripts and styles that it carries inlined.

Texts of the data are never markup: Jinja2 escapes them, JSON is embedded without `<`, `>` and `&`, the page's script
writes textContent only, and a content security policy lets no other script run and nothing be loaded.
"""

import base64
import functools
import hashlib
import json
import re
from importlib.resources import files
from typing import Any

import pandas as pd
import vl_convert
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from icprobe.formatting import bin_label, bound, count, duration, fixed, number


def render(data: Any, specifications: Any, **shown: Any) -> str:
    """The page as text. data, specifications: what its script explores and draws; shown: what the template names."""
    scripts = _scripts()
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            policy=" ".join(
                [
                    "default-src 'none';",
                    "script-src",
                    *(f"'sha256-{digest}'" for digest in hashes),
                    "; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
                ]
            ),
            styles=[Markup(style) for style in _styles()],
            scripts=[Markup(script) for script in scripts],
            data=Markup(embedded_json(data)),
            specifications=Markup(embedded_json(specifications)),
            **shown,
        )
    )


def embedded_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it, nor open another, whatever the texts are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\x7f-\x9f\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def text(value: Any) -> str:
    return "" if value is None or value is pd.NA or value != value else str(value)


def texts(values: pd.Series) -> pd.Series:
    # Not `map`: the strings of pandas cannot hold a broken surrogate.
    return pd.Series([text(value) for value in values], index=values.index, dtype=object)


def visible(value: Any) -> Any:
    """A text of the data as it can stand in a page: control characters as their pictures, broken surrogates marked."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    value = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", lambda match: chr(0x2400 + ord(match[0])), value)
    return re.sub("[\ud800-\udfff\x7f-\x9f]", "\ufffd", value).replace("\r\n", "\n").replace("\r", "\n")


def _template(name: str) -> str:
    return (files("icprobe.report") / "templates" / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": fixed,
        "bound": bound,
        "count": count,
        "number": number,
        "bin_label": bin_label,
        "duration": lambda seconds: duration(float("nan") if seconds is None else seconds) or "–",
        "text": text,
        "breakable": lambda path: Markup("<wbr>").join(re.split(r"(?<=/)", str(path))),
    }
    return environment


def _itables(name: str) -> str:
    return (files("itables") / "html" / name).read_text(encoding="utf-8")


@functools.cache
def _scripts() -> list[str]:
    """Modules to inline, in order: Vega, DataTables, the page's own."""
    tables, found = re.subn(
        r"export\s*\{[^}]*?(\w+) as default[^}]*\};?",
        lambda match: f"window.DataTable={match[1]};",
        _itables("dt_bundle.js"),
    )
    if found != 1:
        raise RuntimeError("itables: its bundle no longer exports DataTables as its default; the report needs a look")
    # One module in two files: what the first declares the second uses.
    own = _template("report.js") + _template("report.explorer.js")
    return [_inline(script) for script in (vl_convert.javascript_bundle(), tables, own)]


def _inline(script: str) -> str:
    """A script that no character sequence of its own can end: \\x3C is `<` in strings and regular expressions."""
    return re.sub(r"<(?=!--|/?script)", r"\\x3C", script, flags=re.IGNORECASE).replace("\r\n", "\n")


def _styles() -> list[str]:
    return [_itables("dt_bundle.css"), _template("report.css")]
