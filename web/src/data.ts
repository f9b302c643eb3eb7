// What the server answers for a tile (crates/console/src/tile.rs).
import type { Freshness } from "./live";

export type Kind = "number" | "bar" | "horizontal_bar" | "line" | "pie" | "table";
export type Format = "plain" | "integer" | "money" | "percent" | "date" | "month";

export interface Column {
  name: string;
  label: string;
  format: Format;
  number: boolean;
}

export interface TileData {
  report: string;
  title: string;
  chart: Kind;
  x: string | null;
  y: string[];
  currency: string | null;
  columns: Column[];
  /** Exact values; numbers beyond 2^53 and decimals are texts. */
  rows: (string | number | boolean | null)[][];
  texts: string[][];
  links: string[] | null;
  truncated: boolean;
  freshness: Freshness;
  hash: string;
  csv: string;
  page: string;
  sql: string;
}

/** Positions of the axis column and of the measures. */
export function positions(data: TileData): { x: number; ys: number[] } {
  const at = (name: string): number => data.columns.findIndex((column) => column.name === name);
  const x = data.x === null ? 0 : Math.max(0, at(data.x));
  const ys = data.y.map(at).filter((i) => i >= 0);
  return { x, ys: ys.length ? ys : data.columns.map((_, i) => i).filter((i) => i !== x && data.columns[i]?.number) };
}

/** A cell with its currency: for tooltips and the reader's voice. */
export function spoken(data: TileData, row: number, column: number): string {
  const text = data.texts[row]?.[column] ?? "";
  return data.columns[column]?.format === "money" && data.currency ? `${data.currency} ${text}` : text;
}
