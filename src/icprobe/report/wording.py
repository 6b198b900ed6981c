"""Numbers, durations and bins as people read them: in the report, in its charts, on the terminal."""

import re

from icprobe.analysis.binning import threshold_of


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals and a true minus sign; a dash where there is none."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "–" if value is None or value != value else f"{int(value):,}".replace(",", "\u202f")


def number(value: float | None) -> str:
    """A number to 3 significant digits, as the page's script writes it too."""
    if value is None or value != value:
        return "–"
    size = abs(value)
    text = f"{value:.2e}" if size and (size >= 1e5 or size < 1e-3) else f"{value:.3g}" if size < 1e3 else f"{value:.0f}"
    return re.sub(r"e([+-])0*(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", text).replace("-", "−")


def bin_label(name: str) -> str:
    """A bin as people write it, whether the table holds `>0.85` or the name of its file."""
    if name == "all":
        return "all data"
    return threshold_of(name) if re.fullmatch(r"(le|gt)-[\d.]+", name) else name


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 8 s, 3 min 20 s, 2 h 5 min; empty where not measured."""
    if seconds != seconds:
        return ""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
