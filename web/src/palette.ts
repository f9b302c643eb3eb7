// Search over every page: `/`, type, arrows, Enter.
import { $, el } from "./dom";

interface Entry {
  kind: string;
  title: string;
  description: string;
  url: string;
}

let entries: Entry[] | undefined;
let shown: Entry[] = [];
let chosen = 0;

/** Higher is better; 0 is no match. All words must be found. */
function score(entry: Entry, words: string[]): number {
  const title = entry.title.toLowerCase();
  const rest = `${entry.kind} ${entry.url} ${entry.description}`.toLowerCase();
  let total = 1;
  for (const word of words) {
    if (title.startsWith(word)) total += 4;
    else if (title.includes(word)) total += 3;
    else if (rest.includes(word)) total += 1;
    else return 0;
  }
  return total;
}

function draw(input: HTMLInputElement, list: HTMLElement): void {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = (entries ?? [])
    .map((entry) => ({ entry, score: score(entry, words) }))
    .filter((found) => found.score > 0)
    .sort((a, b) => b.score - a.score)
    .slice(0, 12)
    .map((found) => found.entry);
  chosen = Math.min(chosen, Math.max(0, shown.length - 1));
  list.replaceChildren(
    ...shown.map((entry, i) => {
      const option = el("li", undefined, el("span", "kind", entry.kind), el("strong", undefined, entry.title), el("span", "muted", entry.description));
      option.id = `palette-${i}`;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", String(i === chosen));
      option.addEventListener("click", () => location.assign(entry.url));
      return option;
    }),
  );
  if (entries && shown.length === 0) list.replaceChildren(el("li", "muted", "Nothing found"));
  input.setAttribute("aria-activedescendant", shown.length ? `palette-${chosen}` : "");
  list.children[chosen]?.scrollIntoView({ block: "nearest" });
}

function prepare(input: HTMLInputElement, list: HTMLElement): void {
  input.addEventListener("input", () => {
    chosen = 0;
    draw(input, list);
  });
  input.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && shown.length) {
      event.preventDefault();
      chosen = (chosen + step + shown.length) % shown.length;
      draw(input, list);
    } else if (event.key === "Enter") {
      event.preventDefault();
      const entry = shown[chosen];
      if (entry) location.assign(entry.url);
    }
  });
}

export function openPalette(): void {
  const dialog = $<HTMLDialogElement>("#palette");
  const input = $<HTMLInputElement>("#palette-input");
  const list = $("#palette-list");
  if (!dialog || !input || !list || dialog.open) return;
  if (!dialog.dataset["ready"]) {
    dialog.dataset["ready"] = "yes";
    prepare(input, list);
  }
  input.value = "";
  chosen = 0;
  dialog.showModal();
  input.focus();
  draw(input, list);
  if (!entries) {
    void fetch("/api/v1/catalog")
      .then((response) => (response.ok ? (response.json() as Promise<Entry[]>) : Promise.reject(new Error(String(response.status)))))
      .then((found) => {
        entries = found;
        draw(input, list);
      })
      .catch(() => list.replaceChildren(el("li", "muted", "The list of pages could not be loaded")));
  }
}
