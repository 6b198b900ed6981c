"""Corrects the p-values of a table for how many there are."""

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests


def with_holm(differences: pd.DataFrame) -> pd.DataFrame:
    """Fills `p_value_holm`, by Holm's correction over the whole table.

    The estimate, which stands before `low`, and all columns to `p_value_holm` become float64.
    """
    place = differences.columns.get_loc
    numbers = differences.columns[place("low") - 1 : place("p_value_holm") + 1]
    differences[numbers] = differences[numbers].astype(np.float64)
    tested = differences["p_value"].notna()
    if tested.sum() == 1:  # needs none, and statsmodels collects all of Python's garbage each time, half a second
        differences.loc[tested, "p_value_holm"] = differences.loc[tested, "p_value"]
    elif tested.any():
        differences.loc[tested, "p_value_holm"] = multipletests(differences.loc[tested, "p_value"], method="holm")[1]
    return differences
