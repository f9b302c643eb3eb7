// On every page: theme, keyboard, search, help, filters, the live indicator.
import { $, $$, announce, isDark, isTyping } from "./dom";
import { connect } from "./live";
import { openPalette } from "./palette";

function toggleTheme(): void {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset["theme"] = theme;
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `millrace-theme=${theme}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
  document.dispatchEvent(new Event("themechange"));
  announce(`${theme} theme`);
}

function openHelp(): void {
  $<HTMLDialogElement>("#help")?.showModal();
}

const actions: Record<string, () => void> = {
  theme: toggleTheme,
  help: openHelp,
  palette: openPalette,
};

document.addEventListener("click", (event) => {
  const button = event.target instanceof Element ? event.target.closest<HTMLElement>("[data-do]") : null;
  if (button) actions[button.dataset["do"] ?? ""]?.();
});

// a click beside a dialog closes it
for (const dialog of $$<HTMLDialogElement>("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

/** When `g` was pressed; the next key says where to. */
let goPending = -Infinity;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event) || $("dialog[open]")) return;
  if (performance.now() - goPending < 1500) {
    goPending = -Infinity;
    const target = { o: "/", d: "/dashboards", r: "/reports", l: "/runs", c: "/cluster", p: "/proxy", b: "/backups" }[event.key];
    if (target) location.assign(target);
    return;
  }
  switch (event.key) {
    case "/":
      event.preventDefault();
      openPalette();
      break;
    case "?":
      openHelp();
      break;
    case "t":
      toggleTheme();
      break;
    case "g":
      goPending = performance.now();
      break;
    case "f":
      event.preventDefault();
      $<HTMLElement>(".filters input:not([type=hidden]), .filters select")?.focus();
      break;
  }
});

// a filter applies as soon as it is chosen; empty ones that have no default stay out of the URL
for (const form of $$<HTMLFormElement>("form.filters")) {
  form.addEventListener("change", (event) => {
    if (event.target instanceof HTMLSelectElement) form.requestSubmit();
  });
  form.addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData.entries()]) {
      const field = form.elements.namedItem(name);
      const hadDefault = field instanceof HTMLElement && field.dataset["default"];
      if (value === "" && !hadDefault) event.formData.delete(name);
    }
  });
}

// pages about the platform are written anew by the server, panel by panel; not while text on them is selected
const overview = $("[data-refresh]");

/** What can have the focus in a panel, in its order: the same before and after it is written anew. */
const stops = (panel: Element): HTMLElement[] => [panel as HTMLElement, ...$$<HTMLElement>("a, button, [tabindex]", panel)];

function exchange(panel: Element, next: Element): void {
  const at = stops(panel).indexOf(document.activeElement as HTMLElement);
  const left = panel.scrollLeft;
  panel.replaceWith(next);
  next.scrollLeft = left;
  stops(next)[at]?.focus({ preventScroll: true });
}

async function refreshOverview(place: HTMLElement): Promise<void> {
  const selected = getSelection();
  if (document.hidden || (selected?.isCollapsed === false && place.contains(selected.anchorNode))) return;
  const response = await fetch(place.dataset["refresh"] ?? "/").catch(() => undefined);
  if (response?.redirected) location.reload();
  if (!response?.ok || response.redirected) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html").querySelector("[data-refresh]");
  if (!fresh) return;
  // only the panels that differ, so that what is being read does not flicker
  const [now, next] = [[...place.children], [...fresh.children]];
  if (now.length !== next.length) place.replaceChildren(...next);
  else
    now.forEach((panel, i) => {
      const other = next[i];
      if (other && panel.outerHTML !== other.outerHTML) exchange(panel, other);
    });
}

if (overview) setInterval(() => void refreshOverview(overview), 3000);

// on a narrow screen the navigation is wider than its place
$(".top nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

if ($("#live")) connect();
