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
  widget.hywu.show(output);
  fit(node, widget);
}

function addView(node) {
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
  letTheGraphMove(view.element);
  return widget;
}

/** Grow the node where it is too small, never shrink what the user has made large. */
function fit(node, widget) {
  const needed = node.computeSize()[1];
  if (node.size[1] < needed) node.setSize([node.size[0], needed]);
  widget.hywu.draw();
  node.setDirtyCanvas?.(true, true);
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
