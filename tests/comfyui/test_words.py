"""Help pages and translations: there for every node, input and output, in English and Chinese, and served."""

from __future__ import annotations

import pytest

from .server import PACK_NAME

pytestmark = pytest.mark.comfyui
LANGUAGES = ("en", "zh")


@pytest.fixture
def ours(server):
    return {key: node for key, node in server.get("/object_info").items() if key.startswith("HYWU_")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_input_and_output_has_a_name_in_every_language(server, ours, language):
    words = server.get("/i18n")[language]["nodeDefs"]
    assert words.keys() >= ours.keys()
    for key, node in ours.items():
        assert words[key]["display_name"]
        assert words[key]["description"]
        assert words[key]["inputs"].keys() == node["input"]["required"].keys()
        assert len(words[key].get("outputs", {})) == len(node["output"])


def test_english_words_are_those_of_the_nodes(server, ours):
    words = server.get("/i18n")["en"]["nodeDefs"]
    for key, node in ours.items():
        assert words[key]["display_name"] == node["display_name"]
        assert words[key]["description"] == node["description"]
        for name, (_, options) in node["input"]["required"].items():
            assert words[key]["inputs"][name].get("tooltip") == options.get("tooltip")


@pytest.mark.parametrize("page", ["{}.md", "{}/zh.md"])
def test_every_node_has_a_help_page_in_every_language(server, ours, page):
    for key in ours:
        text = server.get_bytes(f"/extensions/{PACK_NAME}/docs/{page.format(key)}").decode()
        assert text.startswith("# ")
        assert len(text) > 100
