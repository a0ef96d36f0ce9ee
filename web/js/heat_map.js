/**
 * The heat map of one adapter or several: where everything is, drawing it on a canvas, and finding the module under
 * the pointer. A table is what `hywu_core/lora/norm_table.py` sends: bands of layers, modules and their norms.
 * Rows are modules, columns are layers; all lengths are CSS pixels.
 */

/** From dark blue to light yellow, the same as in `hywu_core/heat_map.py`. */
export const ANCHORS = [
  "#141235", "#1e2a63", "#1c4a7d", "#1a6a86", "#2f8a83", "#63a878", "#a5c16b", "#dcd977", "#fff3ad",
];
const RGB = ANCHORS.map((code) => [1, 3, 5].map((i) => parseInt(code.slice(i, i + 2), 16)));

const GAP_COLOUR = "#4a4c52"; // of modules a layer does not have
const TITLE = 16, CAPTION = 14, SPACE = 6, LEGEND = 20; // heights of lines, and what is left between bands
const LOWEST = 5, COMFORTABLE = 11, HIGHEST = 22; // heights of a row
const MANY_ROWS = 24;
const LABELS = 112, LABELLED = 4; // module names are this wide, and shown if that leaves a layer so much
const PANEL = 130; // tables stand beside each other if each of them gets this much
const FONT = "10px system-ui, sans-serif";

/** The CSS colour of a value from 0 to 1. */
export function colour(part) {
  const place = Math.min(Math.max(part, 0), 1) * (RGB.length - 1);
  const lower = Math.min(Math.floor(place), RGB.length - 2);
  const mix = place - lower;
  const [r, g, b] = RGB[lower].map((a, i) => Math.round(a + (RGB[lower + 1][i] - a) * mix));
  return `rgb(${r}, ${g}, ${b})`;
}

/** A norm for people: 4 digits. */
export function number(norm) {
  return norm === 0 ? "0" : String(Number(norm.toPrecision(4)));
}

/** The height that some tables need at this width. */
export function neededHeight(tables, width) {
  const heights = tables.map((table) => {
    const rows = rowsOf(table);
    return fixedHeight(table) + rows * (rows > MANY_ROWS ? LOWEST + 2 : COMFORTABLE);
  });
  const beside = besides(tables, width);
  return (beside ? Math.max(...heights) : heights.reduce((sum, height) => sum + height, 0)) + LEGEND;
}

/** Where every band and cell of the tables is, in an area of this size. */
export function layOut(tables, width, height) {
  const beside = besides(tables, width);
  const gap = beside ? 12 : 0;
  const panelWidth = beside ? (width - gap * (tables.length - 1)) / tables.length : width;
  const available = height - LEGEND;
  const shares = tables.map((table) => (beside ? 1 : fixedHeight(table) + rowsOf(table) * COMFORTABLE));
  const sum = beside ? 1 : shares.reduce((total, share) => total + share, 0);
  const bands = [];
  const titles = [];
  let left = 0;
  let top = 0;
  for (const [i, table] of tables.entries()) {
    const panelHeight = (available * shares[i]) / sum;
    titles.push({ x: left, y: top, width: panelWidth, text: table.title });
    bands.push(...layOutBands(table, left, top, panelWidth, panelHeight));
    if (beside) left += panelWidth + gap;
    else top += panelHeight;
  }
  return { bands, titles, legend: { y: height - LEGEND, width } };
}

function layOutBands(table, left, top, width, height) {
  const rows = rowsOf(table);
  const row = Math.min(Math.max((height - fixedHeight(table)) / rows, LOWEST), HIGHEST);
  const columns = Math.max(...table.bands.map((band) => band.layers.length));
  const labels = row >= 9 && width - LABELS >= Math.max(columns * LABELLED, 80) ? LABELS : 0;
  const cell = Math.min((width - labels) / columns, 40);
  let y = top + titleOf(table);
  return table.bands.map((band) => {
    const place = { band, x: left + labels, y: y + CAPTION, cell, row, labels, left, width };
    y += CAPTION + band.modules.length * row + SPACE;
    return place;
  });
}

/** Draw a layout; `largest` is the brightest value, `marked` a module found by `moduleAt`. */
export function paint(context, layout, largest, marked, colours) {
  context.font = FONT;
  context.textBaseline = "middle";
  context.textAlign = "left";
  for (const { x, y, width, text } of layout.titles) {
    context.fillStyle = colours.text;
    context.fillText(fitted(context, text, width), x, y + TITLE / 2);
  }
  for (const place of layout.bands) paintBand(context, place, largest, colours);
  if (marked) {
    const { place, layer, module } = marked;
    context.strokeStyle = colours.text;
    context.lineWidth = 1.5;
    context.strokeRect(place.x + layer * place.cell, place.y + module * place.row, place.cell, place.row);
  }
  paintLegend(context, layout.legend, largest, colours);
}

function paintBand(context, place, largest, colours) {
  const { band, x, y, cell, row, labels, left, width } = place;
  context.fillStyle = colours.faint;
  context.fillText(fitted(context, captionOf(band), width), left, y - CAPTION / 2);
  // A hair between cells where there is room for one; without it narrow ones would be all hair.
  const hair = cell >= 6 && row >= 8 ? 1 : 0;
  band.norms.forEach((norms, layer) =>
    norms.forEach((norm, module) => {
      context.fillStyle = norm === null ? GAP_COLOUR : colour(largest ? norm / largest : 0);
      const from = hair ? x + layer * cell : Math.floor(x + layer * cell);
      const to = hair ? from + cell : Math.floor(x + (layer + 1) * cell);
      context.fillRect(from, y + module * row, to - from - hair, row - hair);
    }),
  );
  if (!labels) return;
  context.fillStyle = colours.faint;
  context.textAlign = "right";
  band.modules.forEach((module, i) =>
    context.fillText(fitted(context, module, labels - 8), x - 6, y + (i + 0.5) * row),
  );
  context.textAlign = "left";
}

function paintLegend(context, { y, width }, largest, colours) {
  const length = Math.min(width * 0.4, 160);
  const zero = 12;
  for (let i = 0; i < length; i++) {
    context.fillStyle = colour(i / (length - 1));
    context.fillRect(zero + i, y + LEGEND / 2 - 3, 1, 6);
  }
  context.fillStyle = colours.faint;
  context.fillText("0", 0, y + LEGEND / 2);
  context.fillText(number(largest), zero + length + 6, y + LEGEND / 2);
}

/** The module at a point of a layout: its place, the indices of layer and module, its path and norm; or null. */
export function moduleAt(layout, x, y) {
  for (const place of layout.bands) {
    const { band } = place;
    const layer = Math.floor((x - place.x) / place.cell);
    const module = Math.floor((y - place.y) / place.row);
    const inside = layer >= 0 && layer < band.layers.length && module >= 0 && module < band.modules.length;
    if (inside) return { place, layer, module, path: pathOf(band, layer, module), norm: band.norms[layer][module] };
  }
  return null;
}

function pathOf(band, layer, module) {
  const name = band.modules[module];
  if (band.name.startsWith("(")) return name; // outside the layers
  return [band.name, band.layers[layer], name].filter((part) => part !== "").join(".");
}

function captionOf(band) {
  return band.layers.length > 1 ? `${band.name} × ${band.layers.length}` : band.name;
}

function rowsOf(table) {
  return table.bands.reduce((rows, band) => rows + band.modules.length, 0);
}

function fixedHeight(table) {
  return titleOf(table) + table.bands.length * (CAPTION + SPACE);
}

function titleOf(table) {
  return table.title ? TITLE : 0;
}

function besides(tables, width) {
  return tables.length > 1 && width >= tables.length * PANEL;
}

function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = text.length;
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return `${text.slice(0, length)}…`;
}
