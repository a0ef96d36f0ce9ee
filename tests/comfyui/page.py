"""ComfyUI's page as a user has it: graphs opened and run, and what our nodes show of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .browser import Browser
from .server import PACK_NAME, Graph

_SPINNER = "document.querySelector('.p-progressspinner')"
# Until its first workflow is there; it would replace what a test opens before.
_LOADED = "window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow"
# The mask over the page while it loads; it takes every click until it has faded away, after the spinner.
_MASK = "document.querySelector('.p-blockui-mask-document')"
_READY = f"!!({_LOADED} && document.querySelector('canvas') && !{_SPINNER} && !{_MASK})"
_OURS = "window.app.graph.nodes.filter(node => node.type.startsWith('HYWU_')).length"
_CELLS = """(() => {
  const view = %s.hywu;
  const context = view.canvas.getContext("2d");
  const sharpness = view.canvas.width / view.map.clientWidth;
  const seen = view.canvas.getBoundingClientRect();
  const zoom = seen.width / view.map.clientWidth;
  return view.layout.bands.flatMap(({ band, x, y, cell, row }) => band.norms.flatMap((norms, layer) =>
    norms.map((norm, module) => {
      const at = [x + (layer + 0.5) * cell, y + (module + 0.5) * row];
      const pixel = context.getImageData(at[0] * sharpness, at[1] * sharpness, 1, 1).data;
      return { module: band.modules[module], layer: band.layers[layer], norm, colour: [...pixel].slice(0, 3),
               at: [seen.left + at[0] * zoom, seen.top + at[1] * zoom] };
    })));
})()"""

_EMPTY = (1200, 850)  # where nothing opens under the pointer


# Elements on nodes follow the graph some frames later.
_FRAMES = """new Promise((done) => {
  let left = 20;
  const next = () => (left-- ? requestAnimationFrame(next) : done());
  next();
})"""


@dataclass(frozen=True)
class Cell:
    """A module of a layer on a node's heat map: its norm, its colour there, and where in the window it is."""

    module: str
    layer: int
    norm: float | None
    colour: list[int]
    at: tuple[float, float]


class Page:
    """ComfyUI's interface in a browser."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url
        self.evaluate = browser.evaluate
        self.wait_for = browser.wait_for

    def open(self, query: str = "") -> None:
        """Load the page and wait until it can be used."""
        self.browser.open(f"{self.url}/{query}")
        self.wait_for(_READY)

    def open_template(self, name: str) -> None:
        """By its address; older frontends are handed the file that their template browser would read."""
        self.open(f"?template={name}&source={PACK_NAME}")
        try:
            self.wait_for(_OURS, seconds=15)
        except TimeoutError:
            file = f"/api/workflow_templates/{PACK_NAME}/{name}.json"
            self.evaluate(f"fetch('{file}').then(r => r.json()).then(f => window.app.loadGraphData(f))")
            self.wait_for(_OURS)

    def open_graph(self, graph: Graph) -> None:
        """A graph in API format, laid out by the page; node ids stay."""
        self.evaluate(f"window.app.loadApiJson({json.dumps(graph)}, 'test')")
        self.wait_for(_OURS)

    def use_vue_nodes(self) -> None:
        """Nodes made of HTML instead of drawn on the canvas ("Nodes 2.0")."""
        self.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
        self.wait_for("!!document.querySelector('.lg-node')")

    def run(self) -> None:
        """What the button does."""
        self.evaluate("window.app.queuePrompt(0).then(() => true)")

    def graph(self) -> Graph:
        """What the page would send to the server."""
        return self.evaluate("window.app.graphToPrompt().then(graph => graph.output)")

    def workflow(self) -> dict:
        """What the page would save as a file."""
        return self.evaluate("window.app.graph.serialize()")

    def settle(self) -> None:
        """Wait until what is on the screen has followed the graph."""
        self.evaluate(_FRAMES)

    def click_beside(self) -> None:
        """Click empty canvas, on which the page looks whether the workflow has changed."""
        self.browser.click(*_EMPTY)
        self.settle()

    def command(self, name: str) -> None:
        """What a key or a menu's entry does: "Comfy.Undo"."""
        self.evaluate(f"window.app.extensionManager.command.execute('{name}')")
        self.settle()

    def modified(self) -> bool:
        """Whether the workflow's tab says that it has changed."""
        return self.evaluate("window.app.extensionManager.workflow.activeWorkflow.isModified")

    def wait_for_view(self, kind: str, seconds: float = 120) -> None:
        """Until a node of ours shows something, and it is on the screen."""
        self.wait_for(f"!!{_widget(kind)}", seconds)
        self.wait_for(f"{_widget(kind)}.element.getBoundingClientRect().height > 0")

    def look_at(self, kind: str) -> None:
        """Move the graph so that a node of this kind is in the middle of the window, at full size."""
        self.evaluate(
            "(() => { const { canvas } = window.app; canvas.ds.scale = 1;"
            f" canvas.centerOnNode({_node(kind)}); canvas.setDirty(true, true); }})()"
        )
        self.settle()

    def shows(self, kind: str) -> bool:
        """Whether a node of ours shows something."""
        return self.evaluate(f"!!{_widget(kind)}")

    def report(self, kind: str) -> list[str]:
        """The lines of text on a node."""
        lines = f"[...{_widget(kind)}.element.querySelectorAll('.hywu-report div')]"
        return self.evaluate(f"{lines}.map(line => line.textContent)")

    def told(self, kind: str) -> str:
        """The line below a node's heat map."""
        return self.evaluate(f"{_widget(kind)}.element.querySelector('.hywu-told').textContent")

    def heat_map(self, kind: str) -> list[Cell]:
        """What is on a node's canvas, cell by cell."""
        self.wait_for(f"!!{_widget(kind)}.hywu.layout")
        return [Cell(**(cell | {"at": tuple(cell["at"])})) for cell in self.evaluate(_CELLS % _widget(kind))]

    def turn_page(self, kind: str) -> str:
        """Click a heat map's button for the next LoRA of the batch; what stands between the buttons then."""
        pager = f"{_widget(kind)}.element.querySelector('.hywu-pager')"
        box = self.evaluate(f"{pager}.querySelector('button:last-child').getBoundingClientRect().toJSON()")
        self.browser.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        return self.evaluate(f"{pager}.querySelector('span').textContent")

    def complaints(self) -> list[str]:
        """Errors in the console that are about us."""
        return [line for line in self.browser.console if "hywu" in line.lower()]

    def screenshot(self, path: Path) -> Path:
        """The window, when the notice that a run is done is gone."""
        self.browser.point(*_EMPTY)
        self.evaluate("new Promise(done => setTimeout(done, 6000))")
        return self.browser.screenshot(path)


def _node(kind: str) -> str:
    """The oldest node of a kind; their order in the graph changes when one is clicked."""
    return f"window.app.graph.nodes.filter(n => n.type === '{kind}').sort((a, b) => a.id - b.id)[0]"


def _widget(kind: str) -> str:
    """The widget of our view on a node, or undefined."""
    return f"{_node(kind)}?.widgets?.find(widget => widget.name === 'hywu_view')"
