/**
 * What a node shows after a run, as one element: heat maps with a pager for a batch, the norm under the pointer, and
 * lines of text. The element knows nothing of ComfyUI's graph; `hywu.js` puts it on a node.
 */

import { layOut, moduleAt, neededHeight, number, paint } from "./heat_map.js";

const PAGER = 22, TOLD = 16, LINE = 15; // heights
const MOST_LINES = 6; // of text without scrolling
const LETTER = 5.6; // the width of one, about
const SHARPNESS = 2; // canvas pixels for a CSS pixel at the least: graphs are zoomed into

const STYLE = `
.hywu-view { display: flex; flex-direction: column; box-sizing: border-box; width: 100%; overflow: hidden;
  font: 11px/${LINE}px system-ui, sans-serif; color: var(--input-text, #ddd); }
.hywu-view [hidden] { display: none !important; }
.hywu-pager { display: flex; align-items: center; gap: 6px; height: ${PAGER}px; flex: none; }
.hywu-pager button { all: unset; cursor: pointer; width: 20px; text-align: center; border-radius: 3px;
  line-height: 18px; background: var(--comfy-input-bg, #333); }
.hywu-pager button:focus-visible { outline: 1px solid currentColor; }
.hywu-map { position: relative; flex: 1 1 0; min-height: 0; }
.hywu-map canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.hywu-told { flex: none; height: ${TOLD}px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.hywu-report { flex: none; overflow-y: auto; color: var(--descrip-text, #999); user-select: text; cursor: text;
  overflow-wrap: anywhere; max-height: ${MOST_LINES * LINE}px; }
`;

export class NodeView {
  /**
   * words: `total`, `largest`, `missing` and `page(index, batch)`, in the user's language.
   * paged: whether several tables are a batch to page through, or belong beside each other.
   */
  constructor(words, paged) {
    this.words = words;
    this.paged = paged;
    this.tables = [];
    this.lines = [];
    this.page = 0;
    this.marked = null;
    this.element = part("div", "hywu-view");
    this.element.append(part("style", "", STYLE));
    this.pager = part("div", "hywu-pager");
    this.pageName = part("span", "");
    this.pager.append(this.button("◀", -1), this.pageName, this.button("▶", 1));
    this.map = part("div", "hywu-map");
    this.canvas = document.createElement("canvas");
    this.map.append(this.canvas);
    this.told = part("div", "hywu-told");
    this.report = part("div", "hywu-report");
    this.element.append(this.pager, this.map, this.told, this.report);
    this.canvas.addEventListener("pointermove", (event) => this.mark(event));
    this.canvas.addEventListener("pointerleave", () => this.mark(null));
    new ResizeObserver(() => this.draw()).observe(this.map);
  }

  /** Show the output of a run, `{hywu_heat_map, hywu_report}`; whether there is anything to show. */
  show(output) {
    this.tables = (output?.hywu_heat_map ?? []).map(tableOf);
    this.lines = output?.hywu_report ?? [];
    this.page = Math.min(this.page, Math.max(this.tables.length - 1, 0));
    this.report.replaceChildren(...this.lines.map((line) => part("div", "", line)));
    this.report.hidden = !this.lines.length;
    this.map.hidden = this.told.hidden = !this.tables.length;
    this.pager.hidden = !this.paged || this.tables.length < 2;
    this.turn(0);
    return this.tables.length + this.lines.length > 0;
  }

  /** The height that all of it needs at this width. */
  height(width) {
    const letters = Math.max(Math.floor(width / LETTER), 10);
    const wrapped = this.lines.reduce((sum, line) => sum + Math.ceil(widthOf(line) / letters), 0);
    const text = Math.min(wrapped, MOST_LINES) * LINE;
    if (!this.tables.length) return text;
    return (this.pager.hidden ? 0 : PAGER) + neededHeight(this.shown, width) + TOLD + text;
  }

  /** The tables that are visible now. */
  get shown() {
    return this.paged ? this.tables.slice(this.page, this.page + 1) : this.tables;
  }

  /** Go some pages on, around the ends. */
  turn(by) {
    if (this.tables.length) this.page = (this.page + by + this.tables.length) % this.tables.length;
    this.marked = null;
    this.draw();
  }

  draw() {
    if (!this.shown.length) return;
    this.tell();
    const { clientWidth: width, clientHeight: height } = this.map;
    if (!width || !height) return;
    const sharpness = Math.max(window.devicePixelRatio, SHARPNESS);
    this.canvas.width = width * sharpness;
    this.canvas.height = height * sharpness;
    const context = this.canvas.getContext("2d");
    context.scale(sharpness, sharpness);
    this.layout = layOut(this.shown, width, height);
    const style = getComputedStyle(this.element);
    const faint = getComputedStyle(this.report).color;
    paint(context, this.layout, this.scale, this.marked, { text: style.color, faint });
  }

  /** The brightest norm: one scale for all pages and panels. */
  get scale() {
    return Math.max(...this.tables.map((table) => table.largest));
  }

  /** The line below the map: the module under the pointer, else what there is altogether. */
  tell() {
    const { words, marked } = this;
    if (marked) {
      this.told.textContent = `${marked.path}  ${marked.norm === null ? words.missing : number(marked.norm)}`;
    } else {
      const totals = this.shown.map((table) => number(table.total)).join(" · ");
      this.told.textContent = `${words.total} ${totals}`;
    }
    const table = this.shown[0];
    this.pageName.textContent = words.page(table.index, table.batch);
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", this.told.textContent);
  }

  mark(event) {
    const before = this.marked?.path;
    this.marked = event && this.layout ? moduleAt(this.layout, ...this.point(event)) : null;
    if (this.marked?.path !== before) this.draw();
  }

  /** Where in the map an event is, in its own pixels: the graph shows it at any zoom. */
  point(event) {
    const seen = this.canvas.getBoundingClientRect();
    const { clientWidth: width, clientHeight: height } = this.map;
    return [
      ((event.clientX - seen.left) / seen.width) * width,
      ((event.clientY - seen.top) / seen.height) * height,
    ];
  }

  button(sign, by) {
    const button = part("button", "", sign);
    button.type = "button";
    button.addEventListener("click", () => this.turn(by));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.stopPropagation(); // the graph moves nodes by arrows
      this.turn(step);
    });
    return button;
  }
}

function part(tag, name, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}

/** A table comes as text, which ComfyUI does not take for a picture; in the history of older versions it is an object. */
function tableOf(sent) {
  return typeof sent === "string" ? JSON.parse(sent) : sent;
}

/** In letters: Chinese ones are as wide as two. */
function widthOf(line) {
  return [...line].reduce((sum, letter) => sum + (letter.charCodeAt(0) > 0x2e7f ? 2 : 1), 0) || 1;
}
