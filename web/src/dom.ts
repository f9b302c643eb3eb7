// Small helpers over the document.

export const $ = <T extends Element = HTMLElement>(selector: string, root: ParentNode = document): T | null =>
  root.querySelector<T>(selector);

export const $$ = <T extends Element = HTMLElement>(selector: string, root: ParentNode = document): T[] => [
  ...root.querySelectorAll<T>(selector),
];

/** An element with a class and children; texts are texts, never HTML. */
export function el(name: string, className?: string, ...children: (Node | string)[]): HTMLElement {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Says something to readers who do not see the page. */
export function announce(text: string): void {
  const place = $("#announce");
  if (place) place.textContent = text;
}

/** A short notice in the corner. */
export function toast(text: string): void {
  $(".toast")?.remove();
  const notice = el("div", "toast", text);
  document.body.append(notice);
  announce(text);
  setTimeout(() => notice.remove(), 2500);
}

export const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** Whether the page is dark now. */
export function isDark(): boolean {
  const chosen = document.documentElement.dataset["theme"];
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Whether a key belongs to a field that is being typed in. */
export function isTyping(event: Event): boolean {
  const target = event.target;
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName));
}

export function download(name: string, blob: Blob): void {
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
