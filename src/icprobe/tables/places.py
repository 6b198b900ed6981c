"""Tells of ids that icprobe has made which rows they mean: nobody finds x1c0f… in a file."""

import re
from collections.abc import Iterable
from pathlib import Path

from icprobe import paths
from icprobe.errors import IcprobeError
from icprobe.tables import parquet
from icprobe.tables.checking import ID_DIGITS, ROW_NUMBER

MADE = re.compile(rf"\bx[0-9a-f]{{{ID_DIGITS}}}(?:-\d+)?\b")  # as `content_ids` makes them
# How the configuration calls what the tables are made from.
SOURCES = {Path(path).name: f"data.{Path(path).stem}" for path in (paths.TRAIN, paths.TASKS, paths.EVAL)}


def with_places(message: str, inputs: Iterable[str]) -> str:
    """Adds to a message which rows the made ids in it are, of those tables among a job's `inputs`; else as it is."""
    wanted = dict.fromkeys(MADE.findall(message))
    found: dict[str, str] = {}
    for path in inputs if wanted else ():
        source = SOURCES.get(Path(path).name)
        if source is None:
            continue
        try:
            table = parquet.read_parquet(path)
        except (OSError, IcprobeError):  # the message says more
            continue
        if ROW_NUMBER in table:
            rows = table[table["id"].isin(wanted)]
            found |= {row.id: f"row_number {row.row_number} of {source}" for row in rows.itertuples()}
    told = [f"{name} is {found[name]}" for name in wanted if name in found]
    return f"{message} ({'; '.join(told)}, counted from 0)" if told else message
