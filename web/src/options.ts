// TileData → the options of a chart.
import type { EChartsCoreOption } from "echarts/core";
import { type Format, positions, spoken, type TileData } from "./data";
import { el, reducedMotion } from "./dom";

interface Theme {
  ink: string;
  muted: string;
  line: string;
  surface: string;
  series: string[];
}

/** The colours of the style sheet as they are now. */
export function theme(): Theme {
  const style = getComputedStyle(document.documentElement);
  const value = (name: string): string => style.getPropertyValue(name).trim();
  return {
    ink: value("--ink"),
    muted: value("--ink-2"),
    line: value("--line"),
    surface: value("--surface"),
    series: [1, 2, 3, 4, 5, 6, 7].map((i) => value(`--c${i}`)),
  };
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

function axisText(format: Format): (value: number) => string {
  return (value) => (format === "percent" ? `${compact.format(value * 100)} %` : compact.format(value));
}

function number(value: string | number | boolean | null | undefined): number | null {
  if (value === null || value === undefined || value === "") return null;
  const parsed = Number(value);
  return Number.isFinite(parsed) ? parsed : null;
}

/** A tooltip for one row, made of texts only. */
function tip(data: TileData, row: number, colors: string[]): HTMLElement {
  const { x, ys } = positions(data);
  const lines = ys.map((y, i) => {
    const mark = el("i");
    mark.style.background = colors[data.chart === "pie" ? row % colors.length : i % colors.length] ?? "";
    const value = el("b", undefined, spoken(data, row, y));
    return el("div", "tip-row", mark, el("span", undefined, data.columns[y]?.label ?? ""), value);
  });
  if (data.chart === "pie" && ys[0] !== undefined) {
    const y = ys[0];
    const total = data.rows.reduce((sum, r) => sum + (number(r[y]) ?? 0), 0);
    const share = total ? ((number(data.rows[row]?.[y]) ?? 0) / total) * 100 : 0;
    lines.push(el("div", "tip-row", el("i"), el("span", undefined, "Share"), el("b", undefined, `${share.toFixed(1)} %`)));
  }
  const note = data.links ? [el("div", "tip-note", "Click for the rows")] : [];
  return el("div", "tip-body", el("div", "tip-title", data.texts[row]?.[x] ?? ""), ...lines, ...note);
}

// without quotes: the drawing's own attributes would end at them when it is saved as an image
const FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, sans-serif";

function base(data: TileData, colors: Theme, still: boolean): EChartsCoreOption {
  const calm = still || reducedMotion.matches;
  return {
    color: colors.series,
    backgroundColor: "transparent",
    textStyle: { fontFamily: FONT, fontSize: 12, color: colors.muted },
    animation: !calm,
    animationDuration: 250,
    animationDurationUpdate: 350,
    animationEasing: "cubicOut",
    tooltip: {
      trigger: data.chart === "pie" ? "item" : "axis",
      axisPointer: { type: data.chart === "line" ? "line" : "shadow", lineStyle: { color: colors.muted, type: "solid" }, shadowStyle: { color: colors.muted, opacity: 0.1 } },
      confine: true,
      transitionDuration: calm ? 0 : 0.15,
      className: "tip",
      backgroundColor: colors.surface,
      borderColor: colors.line,
      borderWidth: 1,
      padding: [8, 10],
      textStyle: { color: colors.ink, fontSize: 12, fontFamily: FONT },
      formatter: (params: unknown) => {
        const first = (Array.isArray(params) ? params[0] : params) as { dataIndex?: number } | undefined;
        return first?.dataIndex === undefined ? "" : tip(data, first.dataIndex, colors.series);
      },
    },
  };
}

function pie(data: TileData, colors: Theme, width: number, still: boolean): EChartsCoreOption {
  const { x, ys } = positions(data);
  const y = ys[0] ?? 0;
  const total = data.rows.reduce((sum, row) => sum + (number(row[y]) ?? 0), 0);
  // each share rounded by itself: the chart's own percentages are bent so that they add up to 100
  const share = (value: unknown) => ((Number(value) / total) * 100).toFixed(1);
  return {
    ...base(data, colors, still),
    series: [
      {
        id: "slices",
        type: "pie",
        radius: width < 340 ? ["38%", "62%"] : ["46%", "74%"],
        center: ["50%", "52%"],
        minShowLabelAngle: 3,
        padAngle: 1,
        cursor: data.links ? "pointer" : "default",
        itemStyle: { borderRadius: 3 },
        label: { color: colors.ink, fontSize: 12, lineHeight: 15, formatter: (slice: { name: string; value: unknown }) => `${slice.name}\n${share(slice.value)} %` },
        labelLine: { length: 8, length2: 8, lineStyle: { color: colors.line } },
        emphasis: { scaleSize: 4 },
        data: data.rows.map((row, i) => ({ name: data.texts[i]?.[x] ?? "", value: number(row[y]) ?? 0 })),
      },
    ],
  };
}

function cartesian(data: TileData, colors: Theme, width: number, still: boolean): EChartsCoreOption {
  const { x, ys } = positions(data);
  const lying = data.chart === "horizontal_bar";
  const formats = [...new Set(ys.map((y) => data.columns[y]?.format ?? "plain"))].slice(0, 2);
  const names = data.rows.map((_, i) => data.texts[i]?.[x] ?? "");
  const format = data.columns[x]?.format;
  const ordered = format === "month" || format === "date";
  // names are all written, slanted if need be; of dates in their order some are enough
  const all = !lying && !ordered && names.length <= 16;
  const slanted = all && Math.max(0, ...names.map((name) => name.length)) * 6.8 + 8 > (width - 60) / names.length;
  const category = {
    id: "category",
    type: "category",
    data: names,
    inverse: lying,
    boundaryGap: data.chart !== "line",
    axisTick: { show: false },
    axisLine: { lineStyle: { color: colors.line } },
    axisLabel: { color: colors.muted, hideOverlap: !all, ...(all ? { interval: 0 } : {}), ...(slanted ? { rotate: 38, width: 90, overflow: "truncate" } : {}), ...(lying ? { width: Math.min(150, width * 0.34), overflow: "truncate" } : {}) },
  };
  const values = formats.map((format, i) => ({
    id: `values-${i}`,
    type: "value",
    position: lying ? "bottom" : i ? "right" : "left",
    splitNumber: lying && width < 420 ? 3 : 4,
    axisLabel: { color: colors.muted, formatter: axisText(format), hideOverlap: true },
    splitLine: { show: i === 0, lineStyle: { color: colors.line } },
  }));
  const legend = ys.length > 1;
  return {
    ...base(data, colors, still),
    grid: { left: 4, right: formats.length > 1 && !lying ? 4 : 14, top: legend ? 34 : 12, bottom: 4, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
    ...(legend ? { legend: { top: 0, left: 0, icon: "roundRect", itemWidth: 10, itemHeight: 10, textStyle: { color: colors.muted } } } : {}),
    xAxis: lying ? values : category,
    yAxis: lying ? category : values,
    series: ys.map((y, i) => {
      const axis = Math.max(0, formats.indexOf(data.columns[y]?.format ?? "plain"));
      const common = {
        id: data.columns[y]?.name ?? String(i),
        name: data.columns[y]?.label ?? "",
        data: data.rows.map((row) => number(row[y])),
        cursor: data.links ? "pointer" : "default",
        ...(lying ? { xAxisIndex: axis } : { yAxisIndex: axis }),
      };
      return data.chart === "line"
        ? { ...common, type: "line", showSymbol: data.rows.length < 40, symbol: "circle", symbolSize: 5, lineStyle: { width: 2 }, areaStyle: ys.length === 1 ? { opacity: 0.1 } : undefined, emphasis: { focus: "none" } }
        : { ...common, type: "bar", barMaxWidth: lying ? 18 : 42, barCategoryGap: data.rows.length > 40 ? "12%" : "28%", barGap: data.rows.length > 40 ? "0%" : "12%", itemStyle: { borderRadius: lying ? [0, 3, 3, 0] : [3, 3, 0, 0] }, color: colors.series[i % colors.series.length] };
    }),
  };
}

/** `still` draws at once, without animation. */
export function options(data: TileData, width: number, still: boolean): EChartsCoreOption {
  const colors = theme();
  return data.chart === "pie" ? pie(data, colors, width, still) : cartesian(data, colors, width, still);
}
