// The page of the cluster left open while the primary changes: it shows the new one, and what happened, by itself.
//
//   node web/tests/cluster.mjs --url https://127.0.0.1:8400 --password-file F [--shots DIR]
//
// The caller works on the cluster meanwhile; they talk in lines. The script says `watching` when the page is there,
// reads a line `OLD NEW`, and waits until the page shows that NEW is the primary after OLD.
// Nothing is loaded anew by the script. Exit code 0 when every check passed, else 1.
import { createInterface } from "node:readline";
import { assert, check, equal, failures, launch, logIn, openPage, settings, until } from "./check.mjs";

const config = settings();
const said = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const browser = await launch(config.chromium);
try {
  const page = await openPage(browser, config.base);
  await logIn(page, config);
  await page.click("nav >> text=Cluster");
  await page.waitForSelector("#standing");
  await page.evaluate(() => (globalThis.notReloaded = true));
  const events = () => page.$$eval("table.log tbody tr", (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));

  await check("cluster: the open page shows another primary and why", async () => {
    console.log("watching");
    const [old, primary] = (await said.next()).value.split(" ");
    const headline = () => page.textContent("#standing");
    await until(async () => (await headline()) === `${primary} is the primary and accepts writes`, `${primary} becomes the primary`, 60_000).catch(async (error) => {
      throw new Error(`${error.message}; it says: ${await headline()}`);
    });
    assert(await page.evaluate(() => globalThis.notReloaded), "the page was loaded anew");
    const row = (await page.$$eval("[aria-labelledby=nodes] tbody tr", (rows) => rows.map((row) => row.innerText))).find((row) => row.startsWith(primary));
    assert(/primary\s/.test(row) && row.includes("accepts writes"), `the node's row: ${row}`);
    const all = await events();
    const promotion = all.find(([, , , kind]) => kind === "promotion");
    assert(promotion[4].startsWith(`${primary} accepts writes`), promotion.join(" | "));
    assert(/writes were away for up to \d+ ms/.test(promotion[4]), promotion.join(" | "));
    const election = all.find(([, , , kind]) => kind === "election");
    equal(election[4], `${primary} elected after ${old}: is handed over to ${primary}`, "the newest election");
    assert(election[2].endsWith(promotion[2]), "both are of one term");
    if (config.shots) await page.screenshot({ path: `${config.shots}/cluster.png`, fullPage: true });
    assert(page.troubles.length === 0, page.troubles.join("\n"));
    return promotion[4];
  });
  await check("cluster: what operators did is there", async () => {
    const all = (await events()).map((row) => row[4]);
    for (const words of ["failover paused by an operator", "failover resumed by an operator"]) assert(all.includes(words), all.join("\n"));
  });
} finally {
  await browser.close();
}
process.exit(failures() ? 1 : 0);
