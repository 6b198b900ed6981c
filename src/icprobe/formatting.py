"""How numbers, durations, bins, links and colours are written: in tables, figures, the report, on the terminal, in W&B.

A bin has three forms: the threshold of configuration and tables, `>0.85`; the name in paths, `gt-0.85`; and words.
"""

import re
from collections.abc import Sequence
from decimal import Decimal

from icprobe.errors import ConfigError

# Okabe and Ito's colours, which the colour-blind can tell apart: what `figures.colors` is by default.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# A shape stands beside each colour, so that no colour is needed: Vega's name -> matplotlib's.
SHAPES = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D",
    "triangle-down": "v", "cross": "P", "triangle-right": ">", "triangle-left": "<",
}  # fmt: skip
# Of correlations and effects from most negative to most positive, equally dark on both sides: ColorBrewer's RdBu.
DIVERGING = (
    "#67001f", "#b2182b", "#d6604d", "#f4a582", "#fddbc7", "#f7f7f7",
    "#d1e5f0", "#92c5de", "#4393c3", "#2166ac", "#053061",
)  # fmt: skip
GREY, UNLABELLED = "#6E6E6E", "#BBBBBB"  # of what is no method, and of examples without a label
NAMES_OF_SIGNS = {"<=": "le", ">": "gt"}

# --- numbers ----------------------------------------------------------------------------------------------------


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals and a true minus sign; a dash where there is none."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def estimate(value: float, low: float, high: float) -> str:
    """A number with its interval, two decimals each: 0.53 [0.41, 0.62]."""
    return f"{fixed(value)} [{fixed(low)}, {fixed(high)}]"


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


# --- looks ------------------------------------------------------------------------------------------------------


def look(k: int, colors: Sequence[str]) -> tuple[str, str]:
    """Colour and shape (Vega's name) of the k-th method or label; when the colours begin again, the shapes do not."""
    return colors[k % len(colors)], list(SHAPES)[(k + k // len(colors)) % len(SHAPES)]


# --- bins -------------------------------------------------------------------------------------------------------


def parse_threshold(threshold: str) -> tuple[str, float]:
    """`>0.85` as (">", 0.85). Raises ConfigError unless it is `<=` or `>` and a decimal in [0, 1]."""
    match = re.fullmatch(r"\s*(<=|>)\s*(\d+(?:\.\d+)?|\.\d+)\s*", threshold, re.ASCII)
    if not match or float(match[2]) > 1:
        raise ConfigError(
            f"bins: {threshold!r} is no bin. Write '<=' or '>' and a share of tasks in [0, 1], as in '>0.85'."
        )
    return match[1], float(match[2])


def bin_name(threshold: str) -> str:
    """The bin's name in paths: `<=0.5` is `le-0.50`, `>0.85` is `gt-0.85`. At least two decimals, more if needed."""
    sign, _ = parse_threshold(threshold)
    number = Decimal(threshold.split(sign)[1].strip()).normalize()
    decimals = max(2, -number.as_tuple().exponent)
    return f"{NAMES_OF_SIGNS[sign]}-{number:.{decimals}f}"


def threshold_of(name: str) -> str:
    """The threshold that a bin's name stands for: `le-0.50` is `<=0.5`. Raises ConfigError for other names."""
    signs = {name: sign for sign, name in NAMES_OF_SIGNS.items()}
    prefix, _, number = name.partition("-")
    if prefix not in signs or not re.fullmatch(r"\d\.\d{2,}", number, re.ASCII):
        raise ConfigError(f"{name!r} is no bin's name. Bins are called as in 'le-0.50' and 'gt-0.85'.")
    threshold = f"{signs[prefix]}{Decimal(number).normalize():f}"
    parse_threshold(threshold)
    return threshold


def threshold(name: str) -> str:
    """A bin, by its name in paths or as its threshold, as its threshold; what is no bin, such as `all`, stays."""
    return threshold_of(name) if re.fullmatch(r"(le|gt)-\d\.\d{2,}", name) else name


def bin_label(name: str) -> str:
    """A bin as its threshold, the baseline as words: >0.85, all data."""
    return "all data" if name == "all" else threshold(name)


def bin_words(name: str) -> str:
    """A bin as a sentence has it: > 0.85, ≤ 0.5, all data."""
    return bin_label(name).replace("<=", "≤ ").replace(">", "> ")


# --- links of the chain -----------------------------------------------------------------------------------------


def link_words(link: str) -> str:
    """A link of the chain as people write it: `icp~one_step` is icp – one_step."""
    return " – ".join(link.split("~"))
