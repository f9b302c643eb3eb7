// What a tile shows, read back from the page, against what the caller expects.
import { assert, equal } from "./check.mjs";

/** A tile as the reader has it: its table's cells, its big numbers, the data that it was drawn from. */
export function readTile(page, report) {
  return page.evaluate(async (name) => {
    const tiles = [...document.querySelectorAll(".tile[data-src]")];
    const at = tiles.findIndex((tile) => tile.querySelector("h2 a")?.getAttribute("href")?.split("?")[0] === `/reports/${name}`);
    if (at < 0) return null;
    const tile = tiles[at];
    const text = (element) => element.textContent.trim();
    return {
      index: at,
      kind: tile.dataset.kind,
      state: tile.dataset.state,
      source: tile.dataset.src,
      head: [...tile.querySelectorAll("thead th")].map(text),
      cells: [...tile.querySelectorAll("tbody tr")].map((row) => [...row.children].map(text)),
      figures: Object.fromEntries([...tile.querySelectorAll("dd[data-column]")].map((dd) => [dd.dataset.column, text(dd)])),
      badge: tile.querySelector(".fresh")?.textContent.trim() ?? "",
    };
  }, report);
}

const numeric = (text) => Number((/[-+]?\d[\d,]*(\.\d+)?/.exec(String(text))?.[0] ?? "NaN").replaceAll(",", ""));

/** How far a shown number may be from the exact one: half of the last digit shown. */
const TOLERANCE = { money: 0.005, integer: 0.5, percent: 0.05, plain: 0.00005 };

function sameCell(text, exact, column, expected, where) {
  if (expected === null) {
    equal(text, "–", where);
    return;
  }
  if (column.number) {
    // exact in the data, rounded on the page
    assert(Math.abs(Number(exact) - Number(expected)) <= Math.abs(Number(expected)) * 1e-12 + 1e-9, `${where}: the data say ${exact}, expected ${expected}`);
    const factor = column.format === "percent" ? 100 : 1;
    const off = Math.abs(numeric(text) - Number(expected) * factor);
    assert(off <= (TOLERANCE[column.format] ?? 0.005) + 1e-6, `${where}: the page says ${text}, expected ${expected}`);
  } else if (["month", "date"].includes(column.format)) {
    assert(String(exact).startsWith(String(expected)) || String(expected).startsWith(String(exact)), `${where}: the data say ${exact}, expected ${expected}`);
  } else {
    equal(String(exact), String(expected), `${where} in the data`);
    equal(text, String(expected), `${where} on the page`);
  }
}

/** Compares one tile with rows of `{column: value}` in their order; columns not named are not compared. */
export async function compareTile(page, report, rows) {
  const tile = await readTile(page, report);
  assert(tile, `no tile shows the report ${report}`);
  equal(tile.state, "ready", `${report} state`);
  const data = await page.evaluate((url) => fetch(url).then((response) => response.json()), tile.source);
  equal(data.rows.length, rows.length, `${report}: rows in the data`);
  const at = (name) => data.columns.findIndex((column) => column.name === name);
  let compared = 0;
  rows.forEach((row, i) => {
    for (const [name, expected] of Object.entries(row)) {
      const j = at(name);
      assert(j >= 0, `${report} has no column ${name}; it has ${data.columns.map((c) => c.name).join(", ")}`);
      const text = tile.kind === "number" ? tile.figures[name] : tile.cells[i]?.[j];
      assert(text !== undefined, `${report} shows no ${name} in row ${i}`);
      sameCell(text, data.rows[i][j], data.columns[j], expected, `${report} row ${i} ${name}`);
      compared += 1;
    }
  });
  if (tile.kind !== "number") equal(tile.cells.length, rows.length, `${report}: rows on the page`);
  return { tile, data, compared };
}

/** The chart's drawing against the data: lengths of bars, heights of points, shares of slices. */
export async function compareDrawing(page, tile, data) {
  const column = (name) => data.columns.findIndex((c) => c.name === name);
  const values = data.rows.map((row) => Number(row[column(data.y[0])] ?? 0));
  const drawn = await page.evaluate((index) => {
    const svg = document.querySelectorAll(".tile[data-src]")[index].querySelector(".chart svg");
    const probe = document.createElement("i");
    document.body.append(probe);
    probe.style.color = getComputedStyle(document.documentElement).getPropertyValue("--c1");
    const first = getComputedStyle(probe).color;
    const rgb = (text) => {
      probe.style.color = "";
      probe.style.color = text ?? "";
      return text && text !== "none" ? getComputedStyle(probe).color : "none";
    };
    const paths = [...svg.querySelectorAll("path")].map((path) => {
      const box = path.getBoundingClientRect();
      return { fill: rgb(path.getAttribute("fill")), stroke: rgb(path.getAttribute("stroke")), d: path.getAttribute("d"), x: box.x, y: box.y, width: box.width, height: box.height };
    });
    const texts = [...svg.querySelectorAll("text")].map((text) => text.textContent.trim());
    probe.remove();
    return { first, paths, texts };
  }, tile.index);

  if (tile.kind === "bar" || tile.kind === "horizontal_bar") {
    const lying = tile.kind === "horizontal_bar";
    let bars = drawn.paths.filter((path) => path.fill === drawn.first);
    // the legend's mark has the same colour, but does not stand on the axis
    const base = lying ? Math.min(...bars.map((b) => b.x)) : Math.max(...bars.map((b) => b.y + b.height));
    bars = bars.filter((b) => Math.abs((lying ? b.x : b.y + b.height) - base) < 1.5);
    equal(bars.length, values.filter((v) => v !== 0).length, `${data.report}: bars drawn`);
    const lengths = bars.map((b) => (lying ? b.width : b.height));
    const nonZero = values.filter((v) => v !== 0);
    const scale = Math.max(...lengths) / Math.max(...nonZero);
    nonZero.forEach((value, i) => {
      assert(Math.abs(lengths[i] - value * scale) <= 1.5, `${data.report}: bar ${i} is ${lengths[i].toFixed(1)} px long, ${(value * scale).toFixed(1)} px would be right`);
    });
    return `${bars.length} bars`;
  }
  if (tile.kind === "line") {
    const line = drawn.paths.filter((path) => path.stroke === drawn.first && path.fill === "none").sort((a, b) => b.width - a.width)[0];
    assert(line, `${data.report}: no line is drawn`);
    const ys = [...line.d.matchAll(/[ML]\s*([-\d.]+)[ ,]([-\d.]+)/g)].map((m) => Number(m[2]));
    const numbers = line.d.match(/-?\d+(\.\d+)?/g).map(Number);
    const points = ys.length === values.length ? ys : numbers.filter((_, i) => i % 2 === 1);
    equal(points.length, values.length, `${data.report}: points drawn`);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const [top, bottom] = [Math.min(...points), Math.max(...points)];
    values.forEach((value, i) => {
      const right = high === low ? points[i] : bottom - ((value - low) / (high - low)) * (bottom - top);
      assert(Math.abs(points[i] - right) <= 1.5, `${data.report}: point ${i} stands at ${points[i]}, ${right.toFixed(1)} would be right`);
    });
    return `${points.length} points`;
  }
  if (tile.kind === "pie") {
    const total = values.reduce((sum, value) => sum + value, 0);
    const shares = values.map((value) => `${((value / total) * 100).toFixed(1)} %`);
    const text = drawn.texts.join("\n");
    // labels of slivers may be left out
    shares.forEach((share, i) => assert(values[i] / total < 0.02 || text.includes(share), `${data.report}: ${share} is not written; the chart says ${drawn.texts.join(" | ")}`));
    return `${shares.length} slices`;
  }
  return "";
}

/** Goes through a chart by keyboard: what is said of each mark must hold its exact text. */
export async function compareReading(page, tile, data, marksMax = 40) {
  const chart = page.locator(".tile[data-src]").nth(tile.index).locator(".chart");
  await chart.focus();
  const marks = Math.min(data.rows.length, marksMax);
  for (let i = 0; i < marks; i += 1) {
    await page.keyboard.press("ArrowRight");
    const said = await page.locator("#announce").textContent();
    // the tooltip is drawn a moment after the mark is chosen; until then the last one may stand there
    const first = data.texts[i][data.columns.findIndex((c) => c.name === data.x)];
    const shown = page.locator(".tip:visible").filter({ hasText: first }).first();
    const tip = await shown.textContent({ timeout: 5000 }).catch(() => page.locator(".tip:visible").first().textContent().catch(() => ""));
    for (const name of [data.x, ...data.y].filter(Boolean)) {
      const text = data.texts[i][data.columns.findIndex((c) => c.name === name)];
      assert(said.includes(text), `${data.report} mark ${i}: “${said}” does not say ${text}`);
      assert(tip.includes(text), `${data.report} mark ${i}: the tooltip “${tip}” does not show ${text}`);
    }
  }
  await page.keyboard.press("Escape");
  return `${marks} marks`;
}
