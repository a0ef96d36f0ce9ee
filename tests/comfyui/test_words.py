"""Help pages, tooltips, translations and search words: there for every node, input and output, and served.

The interface has no translation for the entries of a combo; their tooltips explain them in both languages.
"""

from __future__ import annotations

import re

import pytest

from .server import PACK_NAME

pytestmark = pytest.mark.comfyui
LANGUAGES = ("en", "zh")


@pytest.fixture
def ours(server):
    return {key: node for key, node in server.get("/object_info").items() if key.startswith("HYWU_")}


def inputs(node):
    """All inputs of a node with their options."""
    for group in ("required", "optional"):
        for name, (_, *options) in node["input"].get(group, {}).items():
            yield name, options[0] if options else {}


def test_every_input_and_output_has_a_tooltip(ours):
    for key, node in ours.items():
        assert node["description"], key
        assert not [name for name, options in inputs(node) if not options.get("tooltip")], key
        tooltips = node.get("output_tooltips") or []
        assert len([tooltip for tooltip in tooltips if tooltip]) == len(node["output"]), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_input_and_output_is_named_in_every_language(server, ours, language):
    words = server.get("/i18n")[language]["nodeDefs"]
    assert words.keys() == ours.keys()
    for key, node in ours.items():
        assert words[key]["display_name"]
        assert words[key]["description"]
        there = dict(inputs(node))
        assert words[key]["inputs"].keys() == there.keys(), key
        assert all(word["name"] and word["tooltip"] for word in words[key]["inputs"].values()), key
        outputs = words[key].get("outputs", {})
        assert outputs.keys() == {str(n) for n in range(len(node["output"]))}, key
        assert all(word["name"] and word["tooltip"] for word in outputs.values()), key


def test_english_words_are_those_of_the_nodes(server, ours):
    words = server.get("/i18n")["en"]["nodeDefs"]
    for key, node in ours.items():
        assert words[key]["display_name"] == node["display_name"]
        assert words[key]["description"] == node["description"]
        for name, options in inputs(node):
            assert words[key]["inputs"][name]["tooltip"] == options["tooltip"], f"{key}.{name}"
        for n, tooltip in enumerate(node.get("output_tooltips") or []):
            assert words[key]["outputs"][str(n)]["tooltip"] == tooltip, f"{key} output {n}"


def test_chinese_words_are_chinese_and_keep_the_names_of_choices(server, ours):
    words = server.get("/i18n")["zh"]["nodeDefs"]
    for key, node in ours.items():
        texts = [words[key]["description"], *(word["tooltip"] for word in words[key]["inputs"].values())]
        texts += [word["tooltip"] for word in words[key].get("outputs", {}).values()]
        assert not [text for text in texts if not re.search(r"[\u4e00-\u9fff]", text)], key
        for name, options in inputs(node):
            # What the English tooltip explains by name, "scale: ..." say, the Chinese one explains too.
            for choice in options.get("options") or []:
                if f"{choice}:" in options["tooltip"]:
                    assert f"{choice}：" in words[key]["inputs"][name]["tooltip"], f"{key}.{name}: {choice}"


def test_the_search_finds_every_node_by_other_words_where_there_is_such_a_thing(server, ours):
    stock = server.get("/object_info/KSampler")["KSampler"]
    if "search_aliases" not in stock:
        pytest.skip("this ComfyUI's nodes have no search words")
    assert not [key for key, node in ours.items() if not node["search_aliases"]]


@pytest.mark.parametrize("page", ["{}.md", "{}/zh.md"])
def test_every_node_has_a_help_page_that_names_every_input(server, ours, page):
    language = "zh" if "zh" in page else "en"
    words = server.get("/i18n")[language]["nodeDefs"]
    for key in ours:
        text = server.get_bytes(f"/extensions/{PACK_NAME}/docs/{page.format(key)}").decode()
        assert text.startswith(f"# {words[key]['display_name']}\n")
        assert not [
            word["name"] for word in words[key]["inputs"].values() if f"**{word['name']}**" not in text
        ], key
