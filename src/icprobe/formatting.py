"""How numbers, durations, bins, links and colours are written: in tables, figures, the report, on the terminal, in W&B.

A bin has three forms: that of configuration and tables, `>0.85` or `top 20%`; the name in paths, `gt-0.85` or
`top-20pct`; and words.
"""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

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


def bound(value: float | None, digits: int = 2) -> str:
    """An interval's end, as `fixed`; with two decimals more where it would read 0, so that its side of 0 is seen."""
    text = fixed(value, digits)
    return fixed(value, digits + 2) if value and re.fullmatch(r"0\.0+", text) else text


def estimate(value: float, low: float, high: float) -> str:
    """A number with its interval, two decimals each: 0.53 [0.41, 0.62]."""
    return f"{fixed(value)} [{bound(low)}, {bound(high)}]"


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


def rough_duration(seconds: float) -> str:
    """A duration as an estimate has it, in one unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- looks ------------------------------------------------------------------------------------------------------


def look(k: int, colors: Sequence[str]) -> tuple[str, str]:
    """Colour and shape (Vega's name) of the k-th method or label; no pair of them comes twice before all have come."""
    again = k // math.lcm(len(colors), len(SHAPES))
    return colors[k % len(colors)], list(SHAPES)[(k + again) % len(SHAPES)]


# --- bins -------------------------------------------------------------------------------------------------------

# A bin's name in paths: `gt-0.85`, `top-20pct`, `bottom-1000`. No braces: it is part of Snakemake's patterns, too.
BIN_NAME = r"(le|gt)-\d\.\d\d+|(top|bottom)-\d+(\.\d+)?pct|(top|bottom)-\d+"
BIN_FORMS = (
    'a bin is "<=x" or ">x" of the icp score, with x between 0 and 1 and at most two decimals, such as ">0.85"; or '
    '"top" or "bottom" and a share of the examples, above 0% and up to 100%, or their number, such as "top 20%" or '
    '"bottom 1000"'
)


class Bin(NamedTuple):
    """A bin: the limit of a threshold on the icp score (`>`, `<=`), or the size of one end of any method's ranking.

    end: ">" or "<=", "top" or "bottom". number: the limit; the percentage or the number of examples. percent: whether
    it is a percentage.
    """

    end: str
    number: Decimal
    percent: bool = False

    def __str__(self) -> str:
        if self.is_threshold:
            return f"{self.end}{self.number:f}"
        return f"{self.end} {self.number:f}{'%' if self.percent else ''}"

    @property
    def is_threshold(self) -> bool:
        """Whether it is a threshold on the icp score."""
        return self.end in NAMES_OF_SIGNS

    @property
    def is_best(self) -> bool:
        """Whether it holds the highest scores, not the lowest."""
        return self.end in (">", "top")


def parse_bin(text: str) -> Bin:
    """`>0.85` as Bin(">", 0.85), `top 20%` as Bin("top", 20, percent=True). Raises ConfigError where it is no bin."""
    number = r"\s*(\d+(?:\.\d+)?|\.\d+)\s*"
    match = re.fullmatch(rf"\s*(<=|>|top|bottom){number}(%?)\s*", text, re.ASCII | re.IGNORECASE)
    if match:
        # Plain digits, so that no bin has two names: ">0.50" is ">0.5", "top 20.0%" is "top 20%".
        found = Bin(match[1].lower(), Decimal(f"{Decimal(match[2]).normalize():f}"), bool(match[3]))
        if found.is_threshold:
            valid = found.number <= 1 and not found.percent
        elif found.percent:
            valid = 0 < found.number <= 100 and found.number.as_tuple().exponent >= -2
        else:
            valid = found.number > 0 and match[2].isdecimal()
        if valid:
            return found
    raise ConfigError(f"bins: {BIN_FORMS}, not {text!r}.")


def bin_name(text: str) -> str:
    """A bin's name in paths: `<=0.5` is `le-0.50`, `>0.875` is `gt-0.875`, `top 20%` is `top-20pct`."""
    found = parse_bin(text)
    if not found.is_threshold:
        return f"{found.end}-{found.number:f}{'pct' if found.percent else ''}"
    decimals = max(2, -found.number.as_tuple().exponent)
    return f"{NAMES_OF_SIGNS[found.end]}-{found.number:.{decimals}f}"


def bin_of(name: str) -> str:
    """The bin that a name in paths stands for: `le-0.50` is `<=0.5`. Raises ConfigError for other names."""
    if not re.fullmatch(BIN_NAME, name, re.ASCII):
        raise ConfigError(f"{name!r} is not a bin's name. Use names such as 'le-0.50', 'gt-0.85' and 'top-20pct'.")
    end, _, number = name.partition("-")
    signs = {name: sign for sign, name in NAMES_OF_SIGNS.items()}
    return str(parse_bin(f"{signs.get(end, end)} {number.replace('pct', '%')}"))


def bin_text(name: str) -> str:
    """A bin, by its name in paths or as configured, as configured; what is no bin, such as `all`, stays."""
    return bin_of(name) if re.fullmatch(BIN_NAME, name, re.ASCII) else name


def bin_label(name: str) -> str:
    """A bin as it is configured, the baseline as words: >0.85, top 20%, all data."""
    return "all data" if name == "all" else bin_text(name)


def bin_words(name: str) -> str:
    """A bin as a sentence has it: > 0.85, ≤ 0.5, top 20%, all data."""
    return bin_label(name).replace("<=", "≤ ").replace(">", "> ")


# --- links of the chain -----------------------------------------------------------------------------------------


def link_words(link: str) -> str:
    """A link of the chain as people write it: `icp~one_step` is icp – one_step."""
    return " – ".join(link.split("~"))
