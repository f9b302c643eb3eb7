// The server says when the watermark moves; ages on the page go on by themselves.
import { $, $$ } from "./dom";

export interface Freshness {
  lsn: string;
  commit_time: number;
  confirmed_at: number;
  run_id: number;
}

interface Beat {
  now: number;
  freshness: Freshness | null;
}

/** Server clock minus ours, in milliseconds. */
let skew = 0;

export function age(ms: number): string {
  const s = Math.max(0, ms) / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** Writes every age on the page anew; old data change colour. */
export function tick(): void {
  const now = Date.now() + skew;
  for (const badge of $$(".fresh[data-as-of]")) {
    const asOf = Number(badge.dataset["asOf"]);
    if (!asOf) continue;
    const old = now - asOf / 1000;
    const text = `${age(old)} old`;
    const place = $(".age", badge);
    if (place && place.textContent !== text) place.textContent = text;
    badge.dataset["level"] = old < 15_000 ? "good" : old < 120_000 ? "busy" : "warn";
  }
}

export const asOf = (f: Freshness): number => Math.max(f.commit_time, f.confirmed_at);

function show(word: string, level: string): void {
  const live = $("#live");
  if (!live || live.dataset["level"] === level) return;
  live.dataset["level"] = level;
  const place = $(".word", live);
  if (place) place.textContent = word;
}

let events: EventSource | undefined;
/** When the server was last heard. */
let last = 0;

/** Over a page that grows old it must be said that it does. */
function warn(): void {
  const notice = $("#offline");
  if (!notice) return;
  const silent = !document.hidden && Date.now() - last > 12_000;
  if (silent) show("offline", "bad");
  if (notice.hidden === !silent) return;
  const since = new Date(last + skew).toISOString().slice(11, 19);
  notice.textContent = silent ? `The console has not answered since ${since} UTC; what is shown is as of then. It is tried again.` : "";
  notice.hidden = !silent;
}

/** Why the stream was refused: without a login the page leads to it, otherwise it is tried again. */
async function ask(): Promise<void> {
  const answer = await fetch("/api/v1/catalog").catch(() => undefined);
  if (answer?.status === 401) location.reload();
}

function listen(): void {
  // a hidden page holds no connection: browsers allow few to one host
  if (document.hidden) {
    events?.close();
    events = undefined;
    return;
  }
  if (events) return;
  events = new EventSource("/events");
  events.addEventListener("watermark", (event) => {
    const beat = JSON.parse((event as MessageEvent<string>).data) as Beat;
    skew = beat.now / 1000 - Date.now();
    last = Date.now();
    show("live", "good");
    warn();
    if (beat.freshness) document.dispatchEvent(new CustomEvent<Freshness>("watermark", { detail: beat.freshness }));
  });
  events.addEventListener("error", () => {
    // after a refusal (a restart, a session that ended) the browser gives up; we do not
    if (events?.readyState !== EventSource.CLOSED) return;
    events = undefined;
    void ask();
  });
}

/** Listens as long as the page is seen. */
export function connect(): void {
  last = Date.now();
  listen();
  document.addEventListener("visibilitychange", () => {
    // while it was hidden nothing was listened for
    if (!document.hidden) last = Date.now();
    listen();
  });
  setInterval(() => {
    warn();
    tick();
  }, 1000);
  setInterval(listen, 5000);
  addEventListener("pagehide", () => events?.close());
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    events = undefined;
    listen();
  });
}
