"""Models that are valued from Python are prepared once, in the user's cache."""

from test_from_python import RANDOM, TASKS, TRAIN, prepared, valued  # noqa: F401, two are fixtures

import icprobe
from icprobe import artifacts
from icprobe.notebook import models


def test_a_source_is_prepared_once_in_the_users_cache(valued, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    first = icprobe.value(TRAIN, TASKS, model=RANDOM, methods=["icp"], dtype="float32")
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("icprobe/models/*/*")}
    assert any(path.name == artifacts.MANIFEST for path in made)
    again = icprobe.value(TRAIN, TASKS, model=RANDOM, methods=["icp"], dtype="float32")
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.glob("icprobe/models/*/*")}
    assert first["score_icp"].tolist() == again["score_icp"].tolist() == valued[0]["score_icp"].tolist()
    # Another version of icprobe finds out other things of a model, and does not meet what this one left.
    monkeypatch.setattr(models, "FINDERS", models.FINDERS[:1])
    icprobe.value(TRAIN, TASKS, model=RANDOM, methods=["icp"], dtype="float32")
    assert len([*tmp_path.glob("icprobe/models/*/manifest.json")]) == 2
    assert made.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("icprobe/models/*/*")}.items()
