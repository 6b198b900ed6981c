"""Whatever stands in a configuration: what comes out is right, or one sentence of one kind of error."""

import copy
import datetime
import json
from pathlib import Path

import pytest
import yaml
from anything import bounded, odd_texts, outcome, scalars
from hypothesis import given, settings
from hypothesis import strategies as st

from icprobe.attribution import METHODS
from icprobe.config import load
from icprobe.config.schema import json_schema
from icprobe.texts.prompts import Prompts

pytestmark = pytest.mark.timeout(60)  # a hang is a failure
ROOT = Path(__file__).parents[1]


def keys():
    """Every dotted key of the configuration, sections and their keys alike."""
    schema = json_schema()

    def below(place, field):
        yield place
        references = [part.get("$ref") for part in [field, *field.get("anyOf", [])] if part.get("$ref")]
        for reference in references:
            for key, inner in schema["$defs"][reference.rsplit("/", 1)[1]]["properties"].items():
                yield from below((*place, key), inner)

    found = [place for key, field in schema["properties"].items() for place in below((key,), field)]
    for name in ("PypiSource", "HubSource", "LocalSource", "RandomSource"):
        found += [("model_sources", "m", key) for key in schema["$defs"][name]["properties"]]
    return found


KEYS = keys()
yaml_scalars = (
    scalars
    | st.sampled_from([10**30, -(10**400), 1e308, "9" * 5000, "yes", "0x1f", "kmeans:1", ">0.5", "icp", "a" * 300])
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=4)
    | st.sets(st.integers(), max_size=2)
)
yaml_values = st.recursive(
    yaml_scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(odd_texts | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)


CONFIG_YAML = (ROOT / "config.yaml").read_text(encoding="utf-8")
CONFIG = yaml.safe_load(CONFIG_YAML)


def whole_configuration():
    return copy.deepcopy(CONFIG)


def parsed(text):
    return yaml.load(text, yaml.CSafeLoader)


def check_load(raw):
    config = outcome(load, raw, METHODS)
    if config is None:
        return
    plain = config.model_dump(mode="json")
    text = json.dumps(plain, allow_nan=False)
    text.encode("utf-8")
    assert load(json.loads(text), METHODS) == config, "what was read, written out, is read as something else"
    assert parsed(config.as_yaml(set())) == plain
    assert all(0 <= seed < 2**31 for seed in [config.seed, *config.finetune.seeds])
    outcome(Prompts, config.templates.model_dump())


@pytest.mark.parametrize("key", KEYS, ids=".".join)
@settings(bounded, max_examples=8)
@given(value=yaml_values)
def test_any_value_at_any_key_is_read_or_refused(key, value):
    raw = whole_configuration()
    raw["model_sources"]["m"] = {"source": "random", "path": "x"} if key[-1] == "path" else {"source": "random"}
    place = raw
    for part in key[:-1]:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    place[key[-1]] = value
    check_load(raw)


@bounded
@given(raw=yaml_values)
def test_any_value_as_the_whole_configuration_is_read_or_refused(raw):
    check_load(raw)


@bounded
@given(text=st.text(max_size=60), where=st.integers(0, 3000))
def test_any_text_put_into_config_yaml_is_read_or_refused(text, where):
    try:
        raw = parsed(CONFIG_YAML[:where] + text + CONFIG_YAML[where:])
    except (yaml.YAMLError, ValueError):
        return  # Snakemake's to refuse
    check_load(raw)


@pytest.mark.parametrize(
    "value",
    [1 << 20_000, {1 << 20_000: 1}, [1 << 20_000], datetime.date(2024, 1, 1)],
    ids=["number", "key", "list", "date"],
)
def test_numbers_that_cannot_be_written_out_and_dates_are_refused(value):
    raw = whole_configuration()
    raw["experiment"] = value
    assert outcome(load, raw, METHODS) is None
