"""The workflow files by themselves: whole, tidy, and each with its thumbnail."""

from __future__ import annotations

from itertools import combinations

import pytest
from PIL import Image

from .drawn.sheet import note_text
from .workflows import WORKFLOWS, read_workflow

TITLE = 30  # of a node, above its position
EXPECTED = {
    "quickstart",
    "batch_per_instance",
    "save_and_reload",
    "conflict",
    "qwen_image_edit_2509",
    "qwen_image_edit_2511",
    "flux1_kontext",
}


def test_all_of_them_are_there():
    assert {path.stem for path in WORKFLOWS} == EXPECTED


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_its_thumbnail_is_a_small_picture(path):
    thumbnail = path.with_suffix(".jpg")
    assert min(Image.open(thumbnail).size) >= 300
    assert thumbnail.stat().st_size < 150_000


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_its_note_is_the_one_it_is_drawn_with(path):
    notes = [node for node in read_workflow(path)["nodes"] if node["type"] == "MarkdownNote"]
    assert [note["widgets_values"] for note in notes] == [[note_text(path.stem)]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_node_covers_another_and_all_stand_in_a_group(path):
    workflow = read_workflow(path)
    boxes = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[f"{node['id']} {node['type']}"] = (x, y - TITLE, x + width, y + height)
    for (a, one), (b, other) in combinations(boxes.items(), 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, f"{a} covers {b}"
    groups = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in workflow["groups"])]
    for name, box in boxes.items():
        inside = [
            g for g in groups if g[0] <= box[0] and g[1] <= box[1] and box[2] <= g[2] and box[3] <= g[3]
        ]
        assert len(inside) == 1, f"{name} stands in {len(inside)} groups"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_its_links_are_told_the_same_from_both_ends(path):
    workflow = read_workflow(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) == workflow["last_node_id"]
    ends = {link: (source, out, target, into) for link, source, out, target, into, _ in workflow["links"]}
    assert len(ends) == workflow["last_link_id"]
    for link, (source, out, target, into) in ends.items():
        assert link in nodes[source]["outputs"][out]["links"]
        assert nodes[target]["inputs"][into]["link"] == link
    used = [socket["link"] for node in nodes.values() for socket in node["inputs"] if socket.get("link")]
    assert sorted(used) == sorted(ends)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_note_says_what_it_is_and_that_large_models_have_no_generator_yet(path):
    notes = [node for node in read_workflow(path)["nodes"] if node["type"] == "MarkdownNote"]
    text = notes[0]["widgets_values"][0]
    assert len(text) > 300
    embedded = "All models here come with the pack" in text
    assert embedded or "No generator for this model has been published yet" in text
    assert embedded or text.count("https://") >= 3


def test_the_sources_of_2511_get_the_time_step_it_learned_with():
    workflow = read_workflow(next(path for path in WORKFLOWS if path.stem == "qwen_image_edit_2511"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    (sampler,) = (node for node in workflow["nodes"] if node["type"] == "KSampler")
    sources = {link: source for link, source, *_ in workflow["links"]}
    for socket in sampler["inputs"]:
        if socket["type"] == "CONDITIONING":
            method = nodes[sources[socket["link"]]]
            assert method["type"] == "FluxKontextMultiReferenceLatentMethod"
            assert method["widgets_values"] == ["index_timestep_zero"]
