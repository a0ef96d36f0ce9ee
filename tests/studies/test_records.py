"""The runs of record kept in the repository: what is shown of them is what their JSON says, today."""

from importlib import import_module
from pathlib import Path

import pytest

from hywu_core import studies
from hywu_core.studies import QUESTIONS
from hywu_core.studies.frame import redraw

RECORDS = Path(studies.__file__).parent / "results"
KEPT = sorted(path.parent.name for path in RECORDS.glob("*/result.json"))


def test_records_are_of_studies():
    assert set(KEPT) <= set(QUESTIONS)
    assert KEPT


@pytest.mark.parametrize("name", KEPT)
def test_a_record_can_be_drawn_again_and_is_small(tmp_path, name):
    kept = RECORDS / name
    (tmp_path / "result.json").write_bytes((kept / "result.json").read_bytes())
    study = import_module(f"hywu_core.studies.{name}").STUDY
    result = redraw(name, study, tmp_path)
    assert (tmp_path / "report.md").read_text("utf-8") == (kept / "report.md").read_text("utf-8")
    assert (kept / f"{name}.png").is_file() == (study.figure is not None)
    assert result["command"].startswith(f"python -m hywu_core.study {name}")
    assert result["code"]["revisions"]
    assert not any(revision.endswith("-dirty") for revision in result["code"]["revisions"])
    sizes = {".json": 300_000, ".png": 400_000, ".jpg": 500_000, ".html": 1_500_000, ".md": 30_000}
    for path in kept.glob("*.*"):
        assert path.stat().st_size <= sizes[path.suffix], path.name
