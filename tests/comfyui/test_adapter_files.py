"""Saving, loading and combining adapters on a running server: real files in real folders."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from .graphs import EditGraph
from .server import Refused

pytestmark = pytest.mark.comfyui


def test_saved_adapters_are_numbered_and_say_where_they_came_from(server):
    names = []
    for index, dtype in ((0, "float16"), (0, "bfloat16")):
        graph = EditGraph()
        adapter, _ = graph.adapter()
        saved = graph.save(adapter, "numbered/x", strength=0.5, dtype=dtype, index=index)
        names.append(server.run(graph.nodes)[saved]["text"][0])
    assert names == ["numbered/x_00001_.safetensors", "numbered/x_00002_.safetensors"]
    with safe_open(server.folder("models", "loras") / names[0], "pt") as file:
        metadata = file.metadata()
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    assert metadata["hywu.base"] == "random tiny FLUX Kontext"
    assert metadata["hywu.strength"] == "0.5"
    assert "make it brighter" not in str(metadata)


@pytest.mark.parametrize("prefix", ["../../escaped", "", "/tmp/escaped", "loras/../../../escaped"])
def test_a_name_that_leads_out_of_the_folder_is_refused(server, prefix):
    graph = EditGraph()
    adapter, _ = graph.adapter()
    node = graph.save(adapter, prefix)
    with pytest.raises(Refused, match="is not a file name inside") as refused:
        server.run(graph.nodes)
    assert refused.value.node == node
    assert not list(server.base.rglob("escaped*"))


def test_an_index_beyond_the_batch_is_refused_and_leaves_nothing(server):
    graph = EditGraph()
    adapter, _ = graph.adapter()
    graph.save(adapter, "beyond/x", index=3)
    with pytest.raises(Refused, match="3 was asked for, but the batch has only 1"):
        server.run(graph.nodes)
    assert not list(server.folder("models", "loras", "beyond").iterdir())
