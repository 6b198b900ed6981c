"""How jobs compute: keys of the configuration that change no bit of a result, such as a budget of memory.

They come from the environment variable ICPROBE_EXECUTION, which the Snakefile sets, and not from params: a change
reruns nothing. A key becomes one of them by `values.how`.
"""

import json
import os
from typing import Any

VARIABLE = "ICPROBE_EXECUTION"


def settings(section: str) -> dict[str, Any]:
    """These keys of one section of the configuration, with their values."""
    return json.loads(os.environ[VARIABLE])[section]
