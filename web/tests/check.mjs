// Counting checks, starting the browser, logging in: shared by the browser tests.
import { existsSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

/** The browser that the set-up found or installed. */
function installed() {
  const known = ["/usr/bin/chromium", "/usr/bin/google-chrome", "/usr/bin/chromium-browser"];
  return known.find((path) => existsSync(path)) ?? known[0];
}

/** The caller's wishes; the password never stands on the command line. */
export function settings() {
  const { values } = parseArgs({
    options: {
      url: { type: "string", default: process.env.MILLRACE_URL },
      user: { type: "string", default: process.env.MILLRACE_USER ?? "admin" },
      "password-file": { type: "string" },
      expect: { type: "string" },
      dashboard: { type: "string" },
      chromium: { type: "string", default: process.env.MILLRACE_CHROMIUM ?? installed() },
      live: { type: "string" },
      shots: { type: "string" },
    },
  });
  const password = values["password-file"] ? readFileSync(values["password-file"], "utf8").trim() : process.env.MILLRACE_PASSWORD;
  if (!values.url || !password) {
    console.error("usage: --url URL --password-file FILE [--user NAME] [--expect FILE] [--dashboard SLUG] [--live SECONDS] [--shots DIR]");
    process.exit(2);
  }
  const expect = values.expect ? JSON.parse(readFileSync(values.expect, "utf8")) : {};
  return {
    base: values.url.replace(/\/$/, ""),
    user: expect.user ?? values.user,
    password,
    expect,
    dashboard: values.dashboard ?? expect.dashboard ?? "loans",
    chromium: values.chromium,
    liveMs: values.live ? Number(values.live) * 1000 : 0,
    shots: values.shots,
  };
}

let failed = 0;

/** Runs one named check and prints a line about it. */
export async function check(name, run) {
  const start = performance.now();
  try {
    const note = await run();
    console.log(`ok    ${name}${note ? ` (${note})` : ""} ${Math.round(performance.now() - start)} ms`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${name}: ${String(error?.message ?? error).split("\n").slice(0, 12).join("\n      ")}`);
  }
}

export const failures = () => failed;

export function assert(condition, message) {
  if (!condition) throw new Error(message);
}

export function equal(found, expected, what) {
  if (found !== expected) throw new Error(`${what}: found ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
}

/** Waits until `probe` gives something true. */
export async function until(probe, what, timeoutMs = 10_000) {
  const end = performance.now() + timeoutMs;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (performance.now() > end) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export function launch(path) {
  return chromium.launch({
    executablePath: path,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
}

/** A page that notes everything that should not happen on it. */
export async function openPage(browser, base, options = {}) {
  const context = await browser.newContext({
    ignoreHTTPSErrors: true,
    viewport: { width: 1360, height: 900 },
    reducedMotion: "reduce",
    ...options,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  page.troubles = [];
  page.expectTrouble = /(?!)/;
  const note = (text) => {
    if (!page.expectTrouble.test(text)) page.troubles.push(text);
  };
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) note(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => note(`script error: ${error.message}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(base) && !/^(data|blob):/.test(url)) note(`request to elsewhere: ${url}`);
  });
  return page;
}

export async function logIn(page, { base, user, password }) {
  await page.goto(`${base}/login`);
  await page.fill("[name=user]", user);
  await page.fill("[name=password]", password);
  await Promise.all([page.waitForURL((url) => url.pathname === "/"), page.click("button[type=submit]")]);
}

/** All tiles have their data or an error. */
export async function settled(page) {
  await page.waitForFunction(() => {
    const tiles = [...document.querySelectorAll(".tile[data-src]")];
    const drawn = (tile) => !tile.querySelector(".chart:not(.is-empty)") || tile.querySelector(".chart svg path");
    return tiles.length > 0 && tiles.every((tile) => tile.dataset.state === "error" || (tile.dataset.state === "ready" && !tile.ariaBusy && drawn(tile)));
  });
}
