// Rows and big numbers as HTML, as the server writes them (crates/console/src/table.rs).
import type { Column, TileData } from "./data";
import { $, el } from "./dom";

function heading(column: Column, currency: string | null): string {
  return column.format === "money" && currency ? `${column.label} (${currency})` : column.label;
}

export function table(data: TileData): Node[] {
  const head = el("tr");
  for (const column of data.columns) {
    const cell = el("th", column.number ? "num" : undefined, heading(column, data.currency));
    cell.setAttribute("scope", "col");
    head.append(cell);
  }
  const body = el("tbody");
  data.texts.forEach((texts, i) => {
    const row = el("tr");
    texts.forEach((text, j) => {
      const cell = el("td", data.columns[j]?.number ? "num" : undefined);
      const link = j === 0 ? data.links?.[i] : undefined;
      if (link) {
        const anchor = el("a", undefined, text);
        anchor.setAttribute("href", link);
        cell.append(anchor);
      } else cell.append(text);
      row.append(cell);
    });
    body.append(row);
  });
  const nodes: Node[] = [el("table", undefined, el("caption", "sr", data.title), el("thead", undefined, head), body)];
  if (!data.texts.length) nodes.push(el("p", "empty", "No rows match."));
  if (data.truncated) {
    const all = el("a", undefined, "the CSV has them all");
    all.setAttribute("href", data.csv);
    nodes.push(el("p", "note", `The first ${data.texts.length} rows are shown; `, all, "."));
  }
  return nodes;
}

/** Writes the figures; those that changed are marked for a moment. */
export function figures(place: HTMLElement, data: TileData): void {
  const list = el("dl", "figures");
  data.columns.forEach((column, j) => {
    const text = data.texts[0]?.[j];
    if (text === undefined || (data.y.length && !data.y.includes(column.name))) return;
    const money = column.format === "money";
    const [whole, cents] = money ? text.split(".") : [text];
    const parts: Node[] = [];
    if (money && data.currency) parts.push(el("span", "unit", `${data.currency}\u00a0`));
    parts.push(el("span", "whole", whole ?? ""));
    if (cents) parts.push(el("span", "cents", `.${cents}`));
    const value = el("dd", undefined, ...parts);
    value.dataset["column"] = column.name;
    const before = $(`dd[data-column="${CSS.escape(column.name)}"]`, place)?.textContent;
    if (before && before !== value.textContent) value.classList.add("changed");
    list.append(el("div", "figure", el("dt", undefined, column.label), value));
  });
  place.replaceChildren(list.children.length ? list : el("p", "empty", "No data yet."));
}
