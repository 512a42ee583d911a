"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 600px)");

// The buttons are named: among those that Plotly has by default is one that sends the plot to its maker's server.
const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

function lying(figure) {
  return figure.series.some((series) => series.style === "bars");
}

function draw() {
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(`--${name}`).trim();
  const hues = ["s1", "s2", "s3", "s4"].map(colour);
  for (const figure of figures) {
    let next = 0;
    const traces = figure.series.map((series) => trace(series, figure, colour, () => hues[next++ % hues.length]));
    const displayModeBar = narrow.matches || lying(figure) ? false : "hover";
    Plotly.react(figure.id, traces, layout(figure, colour), { ...config, displayModeBar });
  }
}

function trace(series, figure, colour, hue) {
  const { style, name, x, y, text } = series;
  const common = { name, x, y, hovertext: text, hoverinfo: "text" };
  if (style === "bars") {
    const bar = { x: y, y: x, orientation: "h", text: series.shown, textposition: "auto", textangle: 0 };
    return { ...common, ...bar, type: "bar", marker: { color: hue() } };
  }
  const own = style === "faint" ? colour("faint") : style === "star" ? colour("star") : hue();
  const marker = { color: own, size: style === "star" ? 15 : 9, symbol: style === "star" ? "star" : "circle" };
  const line = { color: own, width: 2, shape: style === "steps" ? "hv" : "linear" };
  const mode = style === "line" || style === "steps" ? "lines+markers" : "markers";
  const bars = series.more && {
    type: "data", symmetric: false, array: series.more, arrayminus: series.less, color: own, thickness: 1, width: 3,
  };
  return { ...common, type: "scatter", mode, marker, line, ...(bars && style !== "steps" ? { error_y: bars } : {}) };
}

function layout(figure, colour) {
  const axis = (of) => ({
    title: { text: of.title, standoff: 10 }, type: of.type === "log" ? "log" : "-", tickformat: of.share ? ".3~%" : "", exponentformat: "power", ...(of.type === "log" ? { dtick: 1 } : {}),
    automargin: true, gridcolor: colour("rule"), zerolinecolor: colour("faint"), linecolor: colour("rule"),
  });
  const bars = lying(figure);
  const across = (y) => (bars ? { yref: "paper", y0: 0, y1: 1, x0: y, x1: y } : { xref: "paper", x0: 0, x1: 1, y0: y, y1: y });
  const edge = (y) => (bars ? { yref: "paper", y: 1, x: y } : { xref: "paper", x: 1, y, xanchor: "right" });
  const lines = figure.limits.map(({ y }) => ({ type: "line", ...across(y), line: { color: colour("star"), dash: "dash", width: 1 } }));
  const names = figure.limits.map(({ y, name }) => ({
    ...edge(y), text: name, showarrow: false, yanchor: "bottom", font: { color: colour("star"), size: 11 },
  }));
  const axes = bars
    ? { xaxis: axis(figure.y), yaxis: { ...axis(figure.x), autorange: "reversed" } }
    : { xaxis: axis(figure.x), yaxis: axis(figure.y) };
  return {
    ...axes, shapes: lines, annotations: names,
    font: { family: "inherit", color: colour("ink"), size: narrow.matches ? 11 : 12 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 56, r: 12, t: bars ? 20 : 8, b: 40 },
    showlegend: figure.series.length > 1, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("faint"), activecolor: colour("ink") },
    hoverlabel: { align: "left", bgcolor: colour("card"), bordercolor: colour("faint"), font: { color: colour("ink") } },
  };
}

function sort(heading) {
  const table = heading.closest("table");
  const at = [...heading.parentNode.children].indexOf(heading);
  const down = heading.getAttribute("aria-sort") === "ascending";
  const key = (row) => row.cells[at].dataset.value ?? row.cells[at].textContent;
  const compare = (a, b) => {
    const [first, second] = [Number(key(a)), Number(key(b))];
    return Number.isNaN(first) || Number.isNaN(second) ? key(a).localeCompare(key(b)) : first - second;
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? compare(b, a) : compare(a, b)));
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  table.tBodies[0].append(...rows);
}

for (const heading of document.querySelectorAll("th")) heading.addEventListener("click", () => sort(heading));
dark.addEventListener("change", draw);
narrow.addEventListener("change", draw);
draw();
