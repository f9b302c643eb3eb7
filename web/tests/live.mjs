// A dashboard left open while the platform works: figures move, end up right, and the login ends with its password.
//
//   node web/tests/live.mjs --url https://127.0.0.1:8400 --password-file F [--dashboard loans] [--live SECONDS]
//
// The caller works on the platform meanwhile; they talk in lines. The script says `watching` when the page is
// drawn and `moved` when a figure changed. It then reads a line `COLUMN=NUMBER`, waits until the page shows that
// number, says `equal`, reads any line, and waits until the page leads to the login by itself.
// Nothing is loaded anew by the script. Exit code 0 when every check passed, else 1.
import { createInterface } from "node:readline";
import { assert, check, equal, failures, launch, logIn, openPage, settings, settled, until } from "./check.mjs";

const config = settings();
const limit = config.liveMs || 60_000;
const said = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const browser = await launch(config.chromium);
try {
  const page = await openPage(browser, config.base);
  await logIn(page, config);
  await page.goto(`${config.base}/dashboards/${config.dashboard}`);
  await settled(page);
  await page.evaluate(() => (globalThis.notReloaded = true));
  const figures = () => page.$$eval("dd[data-column]", (all) => Object.fromEntries(all.map((dd) => [dd.dataset.column, dd.textContent])));
  const badge = () => page.locator(".tile .fresh .lsn").first().textContent();

  await check("live: a figure moves without a reload, and its log position with it", async () => {
    const [before, lsn] = [await figures(), await badge()];
    console.log("watching");
    const moved = await until(async () => {
      const now = await figures();
      return Object.keys(before).find((name) => now[name] !== before[name]);
    }, "a figure changes", limit);
    assert((await badge()) !== lsn, "the figure moved, its log position did not");
    equal(await page.getAttribute("#live", "data-level"), "good", "the live indicator");
    return `${moved}: ${before[moved]} became ${(await figures())[moved]}`;
  });
  console.log("moved");

  await check("live: the figure becomes what the primary holds", async () => {
    const [name, wanted] = (await said.next()).value.split("=");
    const exact = (text) => (text ?? "").replace(/[^\d.-]/g, "");
    await until(async () => exact((await figures())[name]) === wanted, `${name} becomes ${wanted}`, limit).catch(async (error) => {
      throw new Error(`${error.message}; it is ${(await figures())[name]}`);
    });
    assert(await page.evaluate(() => globalThis.notReloaded), "the page was loaded anew");
    return `${name} ${wanted}`;
  });
  console.log("equal");

  await check("login: ends with its password, and the page says so by itself", async () => {
    await said.next();
    const start = performance.now();
    page.expectTrouble = /401/;
    await page.waitForURL((url) => url.pathname === "/login", { timeout: 25_000 });
    assert(page.troubles.length === 0, page.troubles.join("\n"));
    return `after ${Math.round(performance.now() - start)} ms`;
  });
} finally {
  await browser.close();
}
process.exit(failures() ? 1 : 0);
