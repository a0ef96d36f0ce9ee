"""The geometry study: LoRAs as points, neighbours counted right, a run, and its page in a real browser."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hywu_core.errors import HywuError
from hywu_core.lora import Adapter, LoraSpec
from hywu_core.lora.spec import Band, ModuleShape
from hywu_core.studies import geometry
from hywu_core.studies.frame import carry_out
from hywu_core.studies.geometry import STUDY, GeometryConfig
from hywu_core.studies.lora_vectors import LoraVectors
from hywu_core.studies.neighbours import agreement, clusters_of, compare, cosine_of, equality_of, retrieval

from ..comfyui.browser import Browser, find_chromium
from .numbers import strangers

TINY = GeometryConfig(
    operations=4, crops=3, pixels=32, steps=1, components=48, clusters=2, neighbours=2, perplexity=2,
    optimised_crops=1, optimised_every=2, optimised_steps=2, optimised_checks=1,
)  # fmt: skip
RECORD = Path(geometry.__file__).parent / "results" / "geometry"
SPEC = LoraSpec((Band("blocks", 2, (ModuleShape("a", 40, 30), ModuleShape("b", 30, 50))),), rank=2, alpha=4)


def random_adapter(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {
        t.name: (
            torch.randn(batch, 2, t.d_in, generator=generator),
            torch.randn(batch, t.d_out, 2, generator=generator),
        )
        for t in SPEC.targets
    }
    return Adapter(weights, SPEC.scale)


def whole_updates(adapter):
    return torch.cat([(adapter.scale * B @ A).flatten(1) for A, B in adapter.values()], dim=1)


def test_updates_do_not_depend_on_how_they_are_written_as_a_product():
    vectors, adapter = LoraVectors.of(SPEC, 64, seed=2**32 - 1), random_adapter(3)
    rewritten = adapter.with_weights({name: (4 * A, B / 4) for name, (A, B) in adapter.items()})
    one, other = vectors(adapter), vectors(rewritten)
    torch.testing.assert_close(one["updates"], other["updates"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(one["norm"], whole_updates(adapter).norm(dim=1))
    assert not torch.allclose(one["factors"], other["factors"], atol=1.0)


def test_adapters_in_half_precision_are_vectors_too():
    vectors, adapter = LoraVectors.of(SPEC, 64, seed=0), random_adapter(3)
    half, whole = vectors(adapter.to(dtype=torch.bfloat16)), vectors(adapter)
    torch.testing.assert_close(half["norm"], whole["norm"], rtol=1e-2, atol=0)
    assert vectors.distortion(adapter.to(dtype=torch.bfloat16)).keys() == {"factors", "updates"}


def test_distances_are_kept_about_as_they_are():
    vectors, adapter = LoraVectors.of(SPEC, 600, seed=0), random_adapter(12)
    flat = torch.cat([x.flatten(1) for pair in adapter.values() for x in pair], dim=1)
    found = vectors(adapter)
    for wanted, projected in ((flat, found["factors"]), (whole_updates(adapter), found["updates"])):
        ratio = torch.pdist(projected) / torch.pdist(wanted)
        assert 0.85 < ratio.min() < ratio.max() < 1.15


@pytest.fixture(scope="module")
def groups():
    """60 points in 3 groups, and features that are of the group or of nothing."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    points = 10 * np.eye(3)[labels] + rng.normal(size=(60, 3))
    return points, labels, points + 0.1, rng.normal(size=(60, 5))


def test_neighbours_are_alike_where_it_was_put_and_only_there(groups):
    points, labels, related, unrelated = groups
    found = compare(points, cosine_of(related), k=5, seed=0)
    assert found["nearest"]["mean"] > 0.8 > 0.2 > found["random"]["mean"]
    assert found["effect"] > 0.7
    assert found["p"] < 1e-6
    assert compare(points, cosine_of(unrelated), k=5, seed=0)["p"] > 0.05
    assert compare(points, equality_of(labels), k=5, seed=0)["nearest"]["mean"] == 1


def test_neighbours_can_be_sought_within_a_group(groups):
    points, labels, _, _ = groups
    found = compare(points, equality_of(labels), k=5, seed=0, within=labels)
    assert (found["points"], found["nearest"]["mean"], found["random"]["mean"]) == (60, 1, 1)
    assert (found["effect"], found["p"]) == (0.5, 1.0)
    assert compare(points, equality_of(labels), k=5, seed=0, within=np.arange(60)) == {"points": 0}


def test_clusters_agree_with_what_they_are_of(groups):
    points, labels, _, unrelated = groups
    assert agreement(points, labels, seed=0) == {"adjusted_mutual_information": pytest.approx(1), "p": 0.005}
    assert agreement(unrelated, labels, seed=0)["p"] > 0.05
    sizes = np.bincount(clusters_of(np.vstack([points, points[:20]]), 3, seed=0))
    assert sizes.tolist() == [40, 20, 20]


def test_retrieval_counts_the_nearest_of_the_other_set(groups):
    points, labels, _, unrelated = groups
    found = retrieval(points + 100, points, labels, labels)  # each set is taken about its own mean
    assert found["right"]["mean"] == 1
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["p"] < 1e-9
    assert retrieval(unrelated, unrelated[::-1], labels, labels)["p"] > 0.05


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("geometry")
    return out, carry_out("geometry", STUDY, TINY, out)


def test_a_run_has_a_point_for_every_pair(found):
    out, result = found
    points = result["points"]
    assert points["operation"] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert points["crop"] == [0, 1, 2] * 4
    assert [len(line) for line in points["factors"] + points["updates"]] == [12] * 4
    assert result["optimised"]["operation"] == [0, 2]
    loss = result["optimised"]["loss"]
    assert loss["optimised"]["mean"] < loss["frozen"]["mean"]
    assert (out / "geometry.png").stat().st_size > 20_000


def test_the_report_prints_the_numbers_of_the_json(found):
    _, result = found
    text = STUDY.report(json.loads(json.dumps(result)))
    known = ("95%", "B = 0", "0.5 being none", "1 or 0", "0 is chance, 1 is the same")
    assert strangers(text, result, known) == []


def test_a_finished_run_generates_nothing_again(found, monkeypatch):
    out, result = found
    monkeypatch.setattr(geometry._Maker, "generated", lambda *_: pytest.fail("generated again"))
    monkeypatch.setattr(geometry._Maker, "optimised", lambda *_: pytest.fail("optimised again"))
    assert carry_out("geometry", STUDY, TINY, out) == result


def test_more_neighbours_than_points_are_a_sentence():
    with pytest.raises(HywuError, match="neighbours is 10; it must be from 1 to 6"):
        GeometryConfig(operations=4, crops=2, clusters=2)


@pytest.mark.parametrize("rate", [-1.0, 0.0, 2.0, float("nan")])
def test_a_rate_that_teaches_nothing_is_a_sentence(rate):
    with pytest.raises(HywuError, match=r"optimised_lr is .*; it must be above 0 and at most 1"):
        GeometryConfig(optimised_lr=rate)


@pytest.fixture
def page(found, tmp_path):
    pytest.importorskip("websocket", reason="pip install websocket-client to drive a browser")
    if (executable := find_chromium()) is None:
        pytest.skip("no Chromium here: install one or set CHROMIUM_PATH")
    with Browser(executable, tmp_path / "profile", (1400, 900)) as browser:
        browser.open((found[0] / "geometry.html").as_uri())
        browser.wait_for("document.readyState === 'complete' && document.querySelector('.point') !== null")
        yield browser
        assert not browser.console


TOLD = "document.getElementById('facts').textContent"
MARKS = "document.querySelectorAll('.point{}').length"


@pytest.mark.browser
def test_the_page_shows_every_pair_with_its_pictures_and_words(page, found):
    assert page.evaluate(MARKS.format("")) == 12
    assert page.evaluate("performance.getEntriesByType('resource').every(e => e.name.startsWith('data:'))")
    x, y = page.evaluate(
        "(() => { const box = document.querySelector('[data-i=\"7\"]').getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    page.point(x, y)
    page.wait_for(f"{TOLD}.includes('crop')")
    shown = page.evaluate(TOLD)
    assert shown.split(" ")[0] in found[1]["operations"]
    assert page.evaluate("document.getElementById('instruction').textContent.length") > 4
    for name in ("source", "edit"):
        picture = page.evaluate(f"getComputedStyle(document.getElementById('{name}')).backgroundImage")
        assert picture.startswith('url("data:image/jpeg;base64,')


@pytest.mark.browser
def test_the_page_works_by_keyboard_and_filters(page):
    page.evaluate("document.getElementById('map').focus()")
    told = [page.evaluate(TOLD)]
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"):
        page.press(key)
        told.append(page.evaluate(TOLD))
    assert len(set(told)) > 1
    page.evaluate(
        "document.getElementById('filter').value = 'darken';"
        "document.getElementById('filter').dispatchEvent(new Event('input'))"
    )
    assert page.evaluate(MARKS.format(":not(.off)")) == 3
    page.press("Escape")
    assert page.evaluate(MARKS.format(":not(.off)")) == 12
    page.evaluate("document.querySelector('#legend button').click()")
    assert 0 < page.evaluate(MARKS.format(".off")) < 12
    page.evaluate(
        "document.getElementById('by').value = 'picture';"
        "document.getElementById('by').dispatchEvent(new Event('change'))"
    )
    assert page.evaluate(MARKS.format(".off")) == 0
    place = "document.querySelector('.point').getAttribute('transform')"
    before = page.evaluate(place)
    page.evaluate(
        "document.getElementById('kind').value = 'updates';"
        "document.getElementById('kind').dispatchEvent(new Event('change'))"
    )
    assert page.evaluate(place) != before


@pytest.mark.browser
def test_the_page_is_light_or_dark_as_asked(page):
    looks = []
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        looks.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert looks == ["rgb(255, 255, 255)", "rgb(23, 24, 26)"]


@pytest.mark.skipif(not RECORD.exists(), reason="there is no run of record")
def test_the_record_is_whole():
    result = json.loads((RECORD / "result.json").read_text("utf-8"))
    assert result["pairs"] >= 2000
    assert result["command"].startswith("python -m hywu_core.study geometry")
    assert (RECORD / "geometry.html").stat().st_size < 1_500_000
