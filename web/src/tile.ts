// One tile: draws its data, fetches them anew, answers its buttons and keys.
import { BarChart, LineChart, PieChart } from "echarts/charts";
import { GridComponent, LegendComponent, TooltipComponent } from "echarts/components";
import * as echarts from "echarts/core";
import { SVGRenderer } from "echarts/renderers";
import { positions, spoken, type TileData } from "./data";
import { $, announce, download, el, toast } from "./dom";
import { asOf, type Freshness, tick } from "./live";
import { options, theme } from "./options";
import { figures, table } from "./table";

echarts.use([BarChart, LineChart, PieChart, GridComponent, LegendComponent, TooltipComponent, SVGRenderer]);

const KINDS: Record<string, string> = { bar: "Bar chart", horizontal_bar: "Bar chart", line: "Line chart", pie: "Pie chart" };
const TIMEOUT_MS = 30_000;

interface Failure {
  error?: { message?: string; hint?: string | null };
}

export class Tile {
  readonly element: HTMLElement;
  data: TileData | undefined;
  /** Whether newer data may be there than what is shown. */
  outdated = false;
  visible = false;
  /** When the last try failed (`performance.now`); infinite after a success. */
  failedAt = Infinity;
  source: string;
  private chart: echarts.ECharts | undefined;
  private mark = -1;
  private printing = false;
  private fetching: AbortController | undefined;

  constructor(element: HTMLElement) {
    this.element = element;
    this.source = element.dataset["src"] ?? "";
    const embedded = $('script[type="application/json"]', element)?.textContent;
    if (embedded) this.take(JSON.parse(embedded) as TileData, true);
    else if (element.dataset["state"] === "loading") this.outdated = true;
    else this.failedAt = performance.now();
    element.addEventListener("click", (event) => this.onClick(event));
    const place = this.place;
    if (place) {
      place.addEventListener("keydown", (event) => this.onKey(event));
      place.addEventListener("blur", () => this.leave());
      new ResizeObserver(() => this.redraw(false)).observe(place);
    }
  }

  private get place(): HTMLElement | null {
    return $(".chart", this.element);
  }

  /** Whether the page fetches newer data by itself (a sorted list of rows does not move under the reader). */
  get isLive(): boolean {
    return !("static" in this.element.dataset) && this.source !== "";
  }

  async refresh(): Promise<void> {
    this.outdated = false;
    this.fetching?.abort();
    const control = new AbortController();
    this.fetching = control;
    const timer = setTimeout(() => control.abort(new Error("no answer in time")), TIMEOUT_MS);
    this.element.setAttribute("aria-busy", "true");
    try {
      const response = await fetch(this.source, { signal: control.signal, headers: { Accept: "application/json" } });
      if (response.status === 401) {
        location.reload();
        return;
      }
      const body: unknown = await response.json();
      if (!response.ok) {
        const failure = (body as Failure).error;
        this.fail(failure?.message ?? `the server answered ${response.status}`, failure?.hint ?? "");
        return;
      }
      this.take(body as TileData, false);
    } catch (error) {
      if (this.fetching === control) this.fail("the tile could not be loaded", error instanceof Error ? error.message : "");
    } finally {
      clearTimeout(timer);
      if (this.fetching === control) {
        this.fetching = undefined;
        this.element.removeAttribute("aria-busy");
      }
    }
  }

  /** The watermark moved, but nothing that this tile shows. */
  stamp(freshness: Freshness): void {
    const badge = $(".fresh", this.element);
    if (!badge) return;
    badge.dataset["asOf"] = String(asOf(freshness));
    const said = `Log position ${freshness.lsn}, load run ${freshness.run_id}`;
    badge.title = `Everything committed on the primary up to log position ${freshness.lsn} (load run ${freshness.run_id})`;
    let lsn = $(".lsn", badge);
    if (!lsn) {
      const link = el("a", undefined, el("span", "lsn"));
      badge.replaceChildren(el("span", "dot"), " ", el("span", "age"), el("span", "when print-only"), " · ", link);
      lsn = $(".lsn", badge);
    }
    if (lsn) lsn.textContent = freshness.lsn;
    const when = $(".when", badge);
    if (when) when.textContent = `as of ${new Date(asOf(freshness) / 1000).toISOString().slice(0, 19)}Z`;
    const run = $("a", badge);
    run?.setAttribute("href", `/runs?run=${freshness.run_id}#run-${freshness.run_id}`);
    run?.setAttribute("aria-label", said);
    tick();
  }

  redraw(recolour: boolean): void {
    if (!this.data || !this.place || this.printing) return;
    this.chart?.resize();
    this.draw(recolour);
  }

  /** Draws for paper: at once, at about the width of a column, scaled to it by its view box. */
  beforePrint(): void {
    const { chart, data, place } = this;
    if (!chart || !data || !place) return;
    this.printing = true;
    const columns = Number(/\bw(\d+)\b/.exec(this.element.className)?.[1] ?? 12);
    const width = columns >= 8 ? 680 : 330;
    const height = data.chart === "horizontal_bar" ? place.clientHeight : 230;
    chart.resize({ width, height });
    chart.setOption(options(data, width, true), { notMerge: true });
    // drawing waits for the next frame otherwise, and paper has none
    chart.getZr().flush();
    $("svg", place)?.setAttribute("viewBox", `0 0 ${width} ${height}`);
  }

  afterPrint(): void {
    if (!this.printing) return;
    this.printing = false;
    const svg = this.place && $("svg", this.place);
    svg?.removeAttribute("viewBox");
    this.chart?.resize({ width: "auto", height: "auto" });
    this.draw(true);
  }

  toggleData(): void {
    const button = $('[data-do="data"]', this.element);
    if (!button) return;
    const open = this.element.classList.toggle("open");
    button.setAttribute("aria-expanded", String(open));
    announce(open ? "data shown" : "data hidden");
  }

  private take(data: TileData, first: boolean): void {
    const same = this.data?.hash === data.hash && this.data.csv === data.csv;
    this.data = data;
    this.failedAt = Infinity;
    this.element.dataset["state"] = "ready";
    $(".message", this.element)?.replaceChildren();
    this.stamp(data.freshness);
    if (same) return;
    if (!first) {
      const rows = $(".data", this.element);
      if (rows) {
        const fresh = table(data);
        const head = $("thead", rows);
        // a report's page has links in its header that sort: they stay
        if (head && $("a", head)) $("thead", fresh[0] as HTMLElement)?.replaceWith(head);
        rows.replaceChildren(...fresh);
      }
      const numbers = $(".numbers", this.element);
      if (numbers) figures(numbers, data);
      $("header a[download]", this.element)?.setAttribute("href", data.csv);
      $("header h2 a", this.element)?.setAttribute("href", data.page);
    }
    this.draw(false);
  }

  private fail(message: string, hint: string): void {
    this.failedAt = performance.now();
    this.element.dataset["state"] = this.data ? "stale" : "error";
    const retry = el("button", "quiet", "Try again");
    retry.dataset["do"] = "retry";
    const box = el("div", "problem", el("p", undefined, el("strong", undefined, message)), ...(hint ? [el("p", undefined, hint)] : []), retry);
    box.setAttribute("role", "alert");
    $(".message", this.element)?.replaceChildren(box);
  }

  private draw(replace: boolean): void {
    const { data, place } = this;
    if (!data || !place) return;
    const empty = data.rows.length === 0;
    place.classList.toggle("is-empty", empty);
    place.dataset["empty"] = this.source.includes("=") ? "No rows match these filters" : "No rows yet";
    if (data.chart === "horizontal_bar") place.style.height = `${Math.max(120, Math.min(data.rows.length, 40) * 26 + 36)}px`;
    const kind = KINDS[data.chart] ?? "Chart";
    place.tabIndex = 0;
    place.setAttribute("role", "application");
    place.setAttribute("aria-roledescription", "chart");
    const enter = data.links ? ", Enter opens its rows" : "";
    place.setAttribute("aria-label", `${data.title}. ${kind} of ${data.rows.length} marks. Arrow keys go from mark to mark${enter}; d shows the data as a table.`);
    if (place.clientWidth === 0 || this.printing) return;
    if (!this.chart) {
      this.chart = echarts.init(place, null, { renderer: "svg" });
      this.listen(this.chart);
    }
    this.chart.setOption(options(data, place.clientWidth, false), replace ? { notMerge: true } : { replaceMerge: ["series", "xAxis", "yAxis"] });
  }

  private listen(chart: echarts.ECharts): void {
    chart.on("click", (params) => {
      if (this.data?.chart === "pie") this.open(params.dataIndex);
    });
    // the whole band of a bar can be clicked, not only its ink
    chart.getZr().on("click", (event) => {
      const point = [event.offsetX, event.offsetY];
      if (!this.data || this.data.chart === "pie" || !chart.containPixel("grid", point)) return;
      const at = chart.convertFromPixel({ gridIndex: 0 }, point);
      this.open(Math.round(this.data.chart === "horizontal_bar" ? (at[1] ?? -1) : (at[0] ?? -1)));
    });
  }

  private open(row: number): void {
    const link = this.data?.links?.[row];
    if (link) location.assign(link);
  }

  private onClick(event: Event): void {
    const button = event.target instanceof Element ? event.target.closest<HTMLElement>("[data-do]") : null;
    switch (button?.dataset["do"]) {
      case "data":
        this.toggleData();
        break;
      case "png":
        void this.savePng();
        break;
      case "sql":
        void navigator.clipboard
          .writeText(this.statement())
          .then(() => toast("SQL copied"))
          .catch(() => toast("The browser did not allow copying"));
        break;
      case "retry":
        void this.refresh();
        break;
    }
  }

  /** The report's SQL, under the values that its parameters have here. */
  private statement(): string {
    const given = [...new URLSearchParams(this.source.split("?")[1] ?? "")];
    const lines = given.filter(([name, value]) => value && !name.startsWith("_")).map(([name, value]) => `-- :${name} = ${value.replace(/\s+/g, " ")}\n`);
    return lines.join("") + (this.data?.sql ?? "");
  }

  private onKey(event: KeyboardEvent): void {
    const { data } = this;
    if (!data || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const last = data.rows.length - 1;
    if (step) this.show(this.mark < 0 ? (step > 0 ? 0 : last) : Math.max(0, Math.min(last, this.mark + step)));
    else if (event.key === "Home") this.show(0);
    else if (event.key === "End") this.show(last);
    else if (event.key === "Enter" && this.mark >= 0) this.open(this.mark);
    else if (event.key === "Escape") this.element.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  private show(row: number): void {
    const { data, chart } = this;
    if (!data || !chart || row < 0) return;
    chart.dispatchAction({ type: "downplay" });
    chart.dispatchAction({ type: "highlight", seriesIndex: 0, dataIndex: row });
    chart.dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex: row });
    this.mark = row;
    const { x, ys } = positions(data);
    announce(`${data.texts[row]?.[x] ?? ""}: ${ys.map((y) => `${data.columns[y]?.label ?? ""} ${spoken(data, row, y)}`).join(", ")}`);
  }

  private leave(): void {
    this.mark = -1;
    this.chart?.dispatchAction({ type: "hideTip" });
    this.chart?.dispatchAction({ type: "downplay" });
  }

  /** The drawing with its title and date, at twice its size. */
  private async savePng(): Promise<void> {
    const { chart, data } = this;
    if (!chart || !data) return;
    const colors = theme();
    const image = new Image();
    image.src = chart.getDataURL({ type: "svg" });
    await image.decode();
    const [width, height, top, bottom] = [chart.getWidth(), chart.getHeight(), 52, 24];
    const canvas = document.createElement("canvas");
    canvas.width = (width + 24) * 2;
    canvas.height = (height + top + bottom) * 2;
    const context = canvas.getContext("2d");
    if (!context) return;
    context.scale(2, 2);
    context.fillStyle = colors.surface;
    context.fillRect(0, 0, width + 24, height + top + bottom);
    context.fillStyle = colors.ink;
    context.font = "600 14px system-ui, sans-serif";
    context.fillText(data.title, 12, 23);
    context.fillStyle = colors.muted;
    context.font = "12px system-ui, sans-serif";
    context.fillText($(".measure", this.element)?.textContent ?? "", 12, 41);
    context.drawImage(image, 12, top, width, height);
    context.fillStyle = colors.muted;
    context.font = "11px system-ui, sans-serif";
    context.fillText(`as of ${new Date(asOf(data.freshness) / 1000).toISOString()} · ${data.freshness.lsn}`, 12, height + top + 15);
    canvas.toBlob((blob) => {
      if (blob) download(`${data.report}.png`, blob);
    });
  }
}
