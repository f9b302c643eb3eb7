// The dashboards in a real browser.
//
//   node web/tests/dashboard.mjs --url https://127.0.0.1:8400 --password-file F [--expect FILE] [--user admin]
//                                [--dashboard loans] [--shots DIR]
//
// FILE says what must be drawn:
//   { "user": "admin", "dashboard": "loans", "query": {"from": "2024-01-01"},
//     "tiles": { "monthly_revenue": [ {"month": "2024-01", "revenue": "1234.50"}, … ], … },
//     "filter": { "name": "segment", "value": "sme", "tiles": { … } },
//     "drill": { "report": "monthly_revenue", "row": 3, "rows": 120 } }
// All parts may be left out. What moves is tested by live.mjs. Exit code 0 when every check passed, else 1.
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { assert, check, equal, failures, launch, logIn, openPage, settings, settled, until } from "./check.mjs";
import { compareDrawing, compareReading, compareTile } from "./figures.mjs";

const config = settings();
const { base, expect } = config;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const path = `/dashboards/${config.dashboard}`;
const query = new URLSearchParams(expect.query ?? {}).toString();
const home = `${base}${path}${query ? `?${query}` : ""}`;
if (config.shots) mkdirSync(config.shots, { recursive: true });

const shot = (page, name) => (config.shots ? page.screenshot({ path: `${config.shots}/${name}.png`, fullPage: true }) : undefined);

async function accessible(page, what) {
  await page.evaluate(axe);
  const result = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const bad = result.violations.filter((v) => ["serious", "critical"].includes(v.impact));
  const lines = bad.map((v) => `${v.id}: ${v.help} — ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 140)).join(" ; ")}`);
  assert(bad.length === 0, `${what} has ${bad.length} serious violations\n${lines.join("\n")}`);
  return `${result.violations.length} minor`;
}

const browser = await launch(config.chromium);
try {
  const page = await openPage(browser, base);

  await check("login: a wrong password is refused, clearly", async () => {
    await page.goto(`${base}${path}`);
    equal(new URL(page.url()).pathname, "/login", "without a session");
    await page.fill("[name=user]", config.user);
    await page.fill("[name=password]", "not the password");
    page.expectTrouble = /401/;
    await page.click("button[type=submit]");
    await page.waitForSelector("[role=alert]");
    page.expectTrouble = /(?!)/;
    assert((await page.textContent("[role=alert]")).includes("wrong"), "the page says why");
    return accessible(page, "the login page");
  });
  await check("login: leads to the page that was wanted", async () => {
    await page.fill("[name=password]", config.password);
    await Promise.all([page.waitForURL((url) => url.pathname === path), page.click("button[type=submit]")]);
  });

  await check("dashboard: every tile is drawn", async () => {
    await page.goto(home);
    await settled(page);
    const ms = await page.evaluate(() => Math.round(performance.now()));
    const states = await page.$$eval(".tile[data-src]", (tiles) => tiles.map((tile) => tile.dataset.state));
    assert(states.every((state) => state === "ready"), `states: ${states.join(" ")}`);
    await shot(page, "dashboard-light");
    return `${states.length} tiles, load to drawn ${ms} ms`;
  });
  await check("dashboard: every tile says how fresh it is, with its log position", async () => {
    const badges = await page.$$eval(".tile[data-src] .fresh", (all) => all.map((badge) => badge.innerText.trim()));
    for (const badge of badges) assert(/\d.* old · [0-9A-F]+\/[0-9A-F]+/.test(badge), `badge “${badge}”`);
    return badges[0];
  });

  for (const [report, rows] of Object.entries(expect.tiles ?? {})) {
    await check(`figures: ${report}`, async () => {
      const { tile, data, compared } = await compareTile(page, report, rows);
      const notes = [`${compared} values`];
      if (!["number", "table"].includes(tile.kind) && data.rows.length) {
        notes.push(await compareDrawing(page, tile, data), `${await compareReading(page, tile, data)} read`);
      }
      return notes.join(", ");
    });
  }

  await check("filter: goes into the URL, the tiles follow without a reload", async () => {
    await page.goto(home);
    await settled(page);
    const field = expect.filter
      ? page.locator(`.filters [name="${expect.filter.name}"]`)
      : page.locator(".filters select, .filters input:not([type=hidden])").last();
    const name = await field.getAttribute("name");
    const isSelect = (await field.evaluate((e) => e.tagName)) === "SELECT";
    const value = expect.filter?.value ?? (isSelect ? await field.locator("option").nth(1).getAttribute("value") : "2024-01-01");
    await page.evaluate(() => (globalThis.notReloaded = true));
    const start = performance.now();
    const answered = page.waitForResponse((response) => response.url().includes("/tiles/") && response.url().includes(`${name}=`));
    if (isSelect) await field.selectOption(value);
    else {
      await field.fill(value);
      await page.keyboard.press("Enter");
    }
    await answered;
    await page.waitForURL((url) => url.searchParams.get(name) === value);
    await page.waitForFunction(() => [...document.querySelectorAll(".tile[data-src]")].every((tile) => !tile.ariaBusy));
    const ms = Math.round(performance.now() - start);
    assert(await page.evaluate(() => globalThis.notReloaded), "the page was loaded anew");
    await page.reload();
    await settled(page);
    equal(await field.inputValue(), value, "after a reload the form");
    for (const [report, rows] of Object.entries(expect.filter?.tiles ?? {})) await compareTile(page, report, rows);
    await page.goBack();
    await until(() => new URL(page.url()).searchParams.get(name) !== value, "back leads to the unfiltered page");
    return `${name}=${value}, filter to redrawn ${ms} ms`;
  });

  let opened;
  await check("drill-down: a mark leads to its rows, the breadcrumb back", async () => {
    await page.goto(home);
    await settled(page);
    const index = await page.evaluate(async (wanted) => {
      for (const [i, tile] of [...document.querySelectorAll(".tile[data-src]")].entries()) {
        if (!tile.querySelector(".chart svg") || !["bar", "horizontal_bar"].includes(tile.dataset.kind)) continue;
        if (wanted && !tile.dataset.src) continue;
        const data = await fetch(tile.dataset.src).then((r) => r.json());
        if (data.links && (!wanted || data.report === wanted)) return i;
      }
      return -1;
    }, expect.drill?.report);
    assert(index >= 0, "no bar chart has a drill-down");
    const tile = page.locator(".tile[data-src]").nth(index);
    const data = await page.evaluate((url) => fetch(url).then((r) => r.json()), await tile.getAttribute("data-src"));
    const row = expect.drill?.row ?? Math.floor(data.rows.length / 2);
    // the middle of the mark's band
    const spot = await tile.locator(".chart").evaluate(
      (chart, { row, count, lying }) => {
        const svg = chart.querySelector("svg").getBoundingClientRect();
        const probe = document.createElement("i");
        document.body.append(probe);
        probe.style.color = getComputedStyle(document.documentElement).getPropertyValue("--c1");
        const colour = getComputedStyle(probe).color;
        const bars = [...chart.querySelectorAll("svg path")]
          .filter((path) => {
            probe.style.color = path.getAttribute("fill") ?? "";
            return path.getAttribute("fill") !== "none" && getComputedStyle(probe).color === colour;
          })
          .map((path) => path.getBoundingClientRect());
        probe.remove();
        const base = lying ? Math.min(...bars.map((b) => b.x)) : Math.max(...bars.map((b) => b.bottom));
        const standing = bars.filter((b) => Math.abs((lying ? b.x : b.bottom) - base) < 1.5);
        const bar = standing.length === count ? standing[row] : standing[0];
        return { x: bar.x + bar.width / 2 - svg.x, y: bar.y + bar.height / 2 - svg.y };
      },
      { row, count: data.rows.length, lying: data.chart === "horizontal_bar" },
    );
    await Promise.all([page.waitForURL((url) => url.pathname.startsWith("/reports/")), tile.locator(".chart svg").click({ position: spot })]);
    equal(new URL(page.url()).pathname + new URL(page.url()).search, data.links[row], "the opened page");
    opened = data.links[row];
    await settled(page);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert(wide <= 0, `the opened page is ${wide} px too wide`);
    const rows = await page.locator("tbody tr").count();
    assert(rows > 0, "the opened page has rows");
    if (expect.drill?.rows !== undefined) equal(rows, Math.min(expect.drill.rows, 1000), "rows of the opened page");
    const note = `${rows} rows`;
    const csv = await page.evaluate(async () => (await fetch(document.querySelector("a[download]").href)).text());
    if (rows < 1000) equal(csv.trimEnd().split("\r\n").length, rows + 1, "lines of the CSV");
    await shot(page, "drill");
    // the rows are all alike: some are enough
    await page.evaluate(() => [...document.querySelectorAll("tbody tr")].slice(15).forEach((tr) => tr.remove()));
    await accessible(page, "a report's page");
    const head = page.locator("thead th a").last();
    await head.click();
    await page.waitForURL(/_sort=/);
    assert(await page.locator("th[aria-sort]").count(), "the sort is announced");
    await page.locator(".crumbs a").click();
    await page.waitForURL((url) => url.pathname === path);
    equal(new URL(page.url()).search, query ? `?${query}` : "", "filters after coming back");
    return note;
  });

  await check("tile: data, PNG and SQL", async () => {
    await page.goto(home);
    await settled(page);
    const tile = page.locator(".tile[data-src]:has(.chart)").first();
    await tile.locator('[data-do="data"]').click();
    assert(await tile.locator(".data table").isVisible(), "the table is shown");
    const [download] = await Promise.all([page.waitForEvent("download"), tile.locator('[data-do="png"]').click()]);
    const bytes = readFileSync(await download.path());
    equal(bytes.subarray(1, 4).toString(), "PNG", "the image's type");
    await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
    await tile.locator('[data-do="sql"]').click();
    const sql = await until(() => page.evaluate(() => navigator.clipboard.readText()), "the SQL is on the clipboard");
    assert(/select/i.test(sql), `the clipboard holds ${sql.slice(0, 60)}`);
    return `${(bytes.length / 1024).toFixed(0)} KiB PNG`;
  });

  await check("keyboard: search, help, tiles", async () => {
    await page.goto(home);
    await settled(page);
    await page.keyboard.press("ArrowRight");
    equal(await page.evaluate(() => document.activeElement.id), "tile-0", "the first tile has the focus");
    await page.keyboard.press("ArrowRight");
    equal(await page.evaluate(() => document.activeElement.id), "tile-1", "the second tile has the focus");
    await page.keyboard.press("ArrowDown");
    assert(await page.evaluate(() => document.activeElement.id !== "tile-1" && document.activeElement.matches(".tile")), "down moves on");
    await page.keyboard.press("?");
    assert(await page.locator("#help[open]").count(), "? opens the help");
    await page.keyboard.press("Escape");
    await page.keyboard.press("/");
    await page.keyboard.type("load runs");
    await page.waitForSelector('#palette [role="option"]');
    await Promise.all([page.waitForURL(`${base}/runs`), page.keyboard.press("Enter")]);
  });

  await check("dark mode: chosen by hand, kept, redrawn", async () => {
    await page.goto(home);
    await settled(page);
    const colour = () => page.evaluate(() => [getComputedStyle(document.body.parentElement).backgroundColor, document.querySelector(".chart svg text")?.getAttribute("fill")].join());
    const before = await colour();
    await page.keyboard.press("t");
    await until(async () => (await colour()) !== before, "the colours change");
    const dark = await colour();
    await page.reload();
    await settled(page);
    equal(await colour(), dark, "after a reload");
    await shot(page, "dashboard-dark");
    const note = await accessible(page, "the dark dashboard");
    await page.keyboard.press("t");
    return note;
  });

  for (const at of ["/", path, "/reports", "/runs", "/cluster", "/proxy", "/backups", "/nowhere"]) {
    await check(`accessible: ${at}`, async () => {
      page.expectTrouble = at === "/nowhere" ? /404/ : /(?!)/;
      await page.goto(base + at);
      if (at === path) await settled(page);
      await shot(page, `page${at.replaceAll("/", "-")}`);
      return accessible(page, at);
    });
  }
  page.expectTrouble = /(?!)/;

  await check("tile: an error is told and can be tried again", async () => {
    await page.goto(home);
    await settled(page);
    page.expectTrouble = /503/;
    await page.route("**/api/v1/dashboards/**", (route) => route.fulfill({ status: 503, json: { error: { message: "the warehouse rests", hint: "wait" } } }));
    await page.locator(".filters").evaluate((form) => form.requestSubmit());
    await page.waitForSelector('.tile[data-state="stale"] [role=alert]');
    assert((await page.textContent(".tile [role=alert]")).includes("the warehouse rests"), "the reason is shown");
    await page.unroute("**/api/v1/dashboards/**");
    await page.locator('[data-do="retry"]').first().click();
    // the others are tried again by themselves once they are seen
    await until(async () => {
      const alert = page.locator(".tile [role=alert]").first();
      if ((await alert.count()) === 0) return true;
      await alert.scrollIntoViewIfNeeded({ timeout: 500 }).catch(() => undefined);
      return false;
    }, "the errors go away", 20_000);
    page.expectTrouble = /(?!)/;
  });

  await check("narrow screen and paper: nothing is cut off", async () => {
    await page.setViewportSize({ width: 400, height: 800 });
    for (const at of [path, "/", "/runs", "/cluster", "/proxy", "/backups", ...(opened ? [opened] : [])]) {
      await page.goto(base + at);
      const [wide, room] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert(wide <= room, `${at} is ${wide} px wide at ${room}`);
    }
    await page.goto(home);
    await settled(page);
    await shot(page, "dashboard-400");
    await page.setViewportSize({ width: 1360, height: 900 });
    await settled(page);
    const pdf = await page.pdf({ format: "A4", ...(config.shots ? { path: `${config.shots}/dashboard.pdf` } : {}) });
    assert(pdf.length > 10_000, "the print has content");
    await settled(page);
    const clipped = await page.$$eval(".chart svg", (all) => all.filter((svg) => Math.abs(svg.clientWidth - svg.closest(".chart").clientWidth) > 2).length);
    equal(clipped, 0, "charts of another width than their tile after the print");
    return `PDF ${(pdf.length / 1024).toFixed(0)} KiB`;
  });

  await check("without script: tables and filters work", async () => {
    const plain = await openPage(browser, base, { javaScriptEnabled: false, storageState: await page.context().storageState() });
    await plain.goto(home);
    assert(await plain.locator(".tile .data table").first().isVisible(), "tables are shown");
    equal(await plain.locator(".js-only:visible").count(), 0, "buttons that need script");
    await Promise.all([plain.waitForNavigation(), plain.click(".filters button[type=submit]")]);
    equal(new URL(plain.url()).pathname, path, "the form leads to");
    await plain.context().close();
  });

  await check("nothing went wrong on the way", async () => {
    assert(page.troubles.length === 0, page.troubles.join("\n"));
  });
} finally {
  await browser.close();
}
console.log(failures() ? `${failures()} checks failed` : "all checks passed");
process.exit(failures() ? 1 : 0);
