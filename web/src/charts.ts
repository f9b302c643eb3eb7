// Pages with tiles: live updates, filters without a reload, arrows between tiles, print.
import { $, $$, isTyping } from "./dom";
import type { Freshness } from "./live";
import { Tile } from "./tile";

const REFRESH_MS_MIN = 1000;
/** A tile that failed is tried again after this, when the server is heard. */
const RETRY_MS = 4000;

const tiles = $$(".tile[data-src]").map((element) => new Tile(element));
const byElement = new Map<Element, Tile>(tiles.map((tile) => [tile.element, tile]));

// --- fetching: only tiles that are seen, at most once a second, one round at a time

let last = 0;
let waiting = false;

async function round(): Promise<void> {
  waiting = false;
  last = performance.now();
  await Promise.all(tiles.filter((tile) => tile.outdated && tile.visible).map((tile) => tile.refresh()));
}

function soon(): void {
  if (waiting || document.hidden || !tiles.some((tile) => tile.outdated && tile.visible)) return;
  waiting = true;
  setTimeout(() => void round(), Math.max(0, REFRESH_MS_MIN - (performance.now() - last)));
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const tile = byElement.get(entry.target);
      if (tile) tile.visible = entry.isIntersecting;
    }
    soon();
  },
  { rootMargin: "200px" },
);
for (const tile of tiles) seen.observe(tile.element);

document.addEventListener("watermark", (event) => {
  const freshness = (event as CustomEvent<Freshness>).detail;
  for (const tile of tiles) {
    const shown = tile.data?.freshness;
    if (tile.isLive && performance.now() - tile.failedAt > RETRY_MS) tile.outdated = true;
    if (!tile.isLive || !shown) continue;
    if (shown.lsn !== freshness.lsn || shown.run_id !== freshness.run_id) tile.outdated = true;
    else tile.stamp(freshness);
  }
  soon();
});
document.addEventListener("visibilitychange", soon);

// --- theme and print

const recolour = (): void => {
  for (const tile of tiles) tile.redraw(true);
};
document.addEventListener("themechange", recolour);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);

let themeBefore: string | undefined;
addEventListener("beforeprint", () => {
  themeBefore = document.documentElement.dataset["theme"];
  document.documentElement.dataset["theme"] = "light";
  for (const tile of tiles) tile.beforePrint();
});
addEventListener("afterprint", () => {
  if (themeBefore) document.documentElement.dataset["theme"] = themeBefore;
  else delete document.documentElement.dataset["theme"];
  for (const tile of tiles) tile.afterPrint();
});

// --- filters: the URL moves, the tiles follow, the page stays

const form = $<HTMLFormElement>("form.filters");
const grid = $("[data-dashboard]");

/** What the filters are, in words: for paper. */
function filtered(fields: HTMLFormElement): string {
  const words: string[] = [];
  for (const label of $$("label", fields)) {
    const field = $<HTMLInputElement | HTMLSelectElement>("input, select", label);
    if (field?.value) words.push(`${label.firstElementChild?.textContent ?? ""}: ${field.value}`);
  }
  return words.join(" · ");
}

function follow(query: string): void {
  const note = $(".filtered");
  if (note && form) note.textContent = filtered(form);
  const clear = $<HTMLAnchorElement>(".clear", form ?? document);
  if (clear) clear.hidden = query === "";
  for (const tile of tiles) {
    tile.source = tile.source.replace(/\?.*$/, "") + query;
    tile.outdated = true;
  }
  last = 0;
  soon();
}

if (form && grid) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const pairs = new URLSearchParams();
    for (const [name, value] of new FormData(form).entries()) pairs.append(name, String(value));
    const query = pairs.size ? `?${pairs}` : "";
    history.pushState(null, "", location.pathname + query);
    follow(query);
  });
  addEventListener("popstate", () => {
    const pairs = new URLSearchParams(location.search);
    for (const field of form.elements) {
      if (!(field instanceof HTMLInputElement || field instanceof HTMLSelectElement)) continue;
      field.value = pairs.get(field.name) ?? field.dataset["default"] ?? "";
    }
    follow(location.search);
  });
}

// --- arrows between tiles

function nearest(from: HTMLElement, key: string): HTMLElement | undefined {
  const order = tiles.map((tile) => tile.element);
  const at = order.indexOf(from);
  if (key === "ArrowRight") return order[at + 1];
  if (key === "ArrowLeft") return order[at - 1];
  const box = from.getBoundingClientRect();
  const middle = box.left + box.width / 2;
  const down = key === "ArrowDown";
  const candidates = order
    .map((element) => ({ element, box: element.getBoundingClientRect() }))
    .filter((other) => (down ? other.box.top >= box.bottom - 2 : other.box.bottom <= box.top + 2))
    .map((other) => ({
      element: other.element,
      distance: (down ? other.box.top - box.bottom : box.top - other.box.bottom) * 4 + Math.abs(other.box.left + other.box.width / 2 - middle),
    }))
    .sort((a, b) => a.distance - b.distance);
  return candidates[0]?.element;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isTyping(event) || $("dialog[open]")) return;
  const target = event.target instanceof Element ? event.target : document.body;
  const tile = target.closest<HTMLElement>(".tile[data-src]");
  if (/^Arrow/.test(event.key)) {
    // up and down scroll the page until a tile has the focus
    if (!tile && !/Left|Right/.test(event.key)) return;
    if (tile && target !== tile && target.closest(".data")) return;
    const next = tile ? nearest(tile, event.key) : tiles[0]?.element;
    if (next) {
      event.preventDefault();
      next.focus();
      next.scrollIntoView({ block: "nearest" });
    }
  } else if (event.key === "Enter" && tile && target === tile) {
    event.preventDefault();
    ($(".chart", tile) ?? $("h2 a", tile))?.focus();
  } else if (event.key === "d" && tile) {
    byElement.get(tile)?.toggleData();
  }
});
