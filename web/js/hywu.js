/**
 * The pack in ComfyUI's page: after a run, its nodes show what they report (`hywu_report`) and heat maps of LoRAs
 * (`hywu_heat_map`). Nothing of it is saved in a workflow, and a node that has nothing to show stays as it is.
 */

import { app } from "../../../scripts/app.js";
import { NodeView } from "./node_view.js";

const OURS = "HYWU_";
const BESIDE = "HYWU_InspectAdapter"; // its tables belong beside each other; other nodes' are pages of a batch
const WIDGET = "hywu_view";
const MARGIN = 8;

const WORDS = {
  en: {
    total: "total norm",
    missing: "not adapted",
    page: (index, batch) => `LoRA ${index} of 0 to ${batch - 1}`,
  },
  zh: {
    total: "总范数",
    missing: "未适配",
    page: (index, batch) => `第 ${index} 个 LoRA(0 至 ${batch - 1})`,
  },
};

app.registerExtension({
  name: "HYWU.NodeViews",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith(OURS)) return;
    const { onExecuted } = nodeType.prototype;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      showOutput(this, output);
    };
  },

  /** Outputs that come back with a workflow: from the history, or from another tab of the page. */
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const node = findNode(locator);
      if (node?.type?.startsWith(OURS)) showOutput(node, output);
    }
  },
});

function findNode(locator) {
  const root = app.rootGraph ?? app.graph;
  const [id, subgraph] = String(locator).split(":").reverse(); // "7", or "<subgraph>:7"
  const graph = subgraph ? root?.subgraphs?.get(subgraph) : root;
  return graph?.getNodeById(Number.isNaN(Number(id)) ? id : Number(id));
}

function showOutput(node, output) {
  const known = node.widgets?.find((widget) => widget.name === WIDGET);
  if (!known && !output?.hywu_heat_map?.length && !output?.hywu_report?.length) return;
  const widget = known ?? addView(node);
  const own = ownHeight(node, widget); // asked before the view needs another height
  widget.hywu.show(output);
  fit(node, widget, own);
}

function addView(node) {
  const own = node.size[1];
  const view = new NodeView(words(), node.type !== BESIDE);
  const height = () => {
    const needed = view.height(node.size[0] - 2 * MARGIN);
    view.element.style.minHeight = `${needed}px`; // what Vue's nodes go by
    return needed + 2 * MARGIN;
  };
  const widget = node.addDOMWidget(WIDGET, WIDGET, view.element, {
    serialize: false,
    hideOnZoom: false,
    margin: MARGIN,
    getMinHeight: height,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false; // this one keeps it out of the file, the option out of the prompt
  widget.hywu = view;
  widget.hywuHeight = { own, seen: node.size[1] };
  const { onSerialize } = node;
  node.onSerialize = function (saved) {
    onSerialize?.apply(this, arguments);
    saved.size = [saved.size[0], ownHeight(this, widget)];
  };
  letTheGraphMove(view.element);
  return widget;
}

/** Make the node as high as its view needs, never lower than the user has made it. */
function fit(node, widget, own) {
  if (!node.flags.collapsed) {
    const height = Math.max(own, node.computeSize()[1]);
    if (node.size[1] !== height) node.setSize([node.size[0], height]);
    widget.hywuHeight.seen = node.size[1];
  }
  widget.hywu.draw();
  node.setDirtyCanvas?.(true, true);
}

/**
 * The height that a workflow saves: the node's without what its view makes it grow. If a run changed it, that would be
 * an edit to undo, and the file would open with a gap. A new height with room to spare is one that the user gave it.
 */
function ownHeight(node, { hywuHeight: height, element }) {
  const now = node.size[1];
  if (node.flags.collapsed) return Math.min(height.own, now); // Vue's nodes are of no height then
  const room = globalThis.LiteGraph?.vueNodesMode
    ? element.offsetHeight > parseFloat(element.style.minHeight) + 1
    : now > node.computeSize()[1];
  if (now < height.own || (now !== height.seen && room)) height.own = now;
  height.seen = now;
  return height.own;
}

/** Wheel and middle button do over a view what they do over the graph, as over core's text fields. */
function letTheGraphMove(element) {
  element.addEventListener("wheel", (event) => {
    const report = event.target.closest(".hywu-report");
    if (globalThis.LiteGraph?.vueNodesMode) return;
    if (report && report.scrollHeight > report.clientHeight && !event.ctrlKey) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
  for (const [kind, handle] of [
    ["pointerdown", (event) => event.button === 1 && app.canvas.processMouseDown(event)],
    ["pointermove", (event) => event.buttons & 4 && app.canvas.processMouseMove(event)],
    ["pointerup", (event) => event.button === 1 && app.canvas.processMouseUp(event)],
  ]) {
    element.addEventListener(kind, handle);
  }
}

function words() {
  const language = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en";
  return language.startsWith("zh") ? WORDS.zh : WORDS.en;
}
