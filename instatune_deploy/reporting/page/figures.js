"use strict";
// Draws the page's figures in the colours of its theme, and again when the theme changes.

const DATA = JSON.parse(document.getElementById("data").textContent);
// These buttons alone: plotly.js has one that uploads a chart.
const CONFIG = {
  responsive: true, displaylogo: false, plotlyServerURL: "",
  // Two clicks on two marks are two clicks: taken for a double click, the second would count for the first's mark.
  doubleClick: false, doubleClickDelay: 1,
  displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false,
  modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "pan2d", "resetScale2d"]],
};

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const narrow = window.innerWidth < 640;
  const axis = (given) => ({
    gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"), zeroline: false,
    automargin: true, ...given, title: { standoff: 8, ...(given && given.title) },
  });
  const axes = Object.keys(layout).filter((key) => /^[xy]axis/.test(key));
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 13 },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--ink") },
    margin: { l: narrow ? 44 : 60, r: narrow ? 8 : 20, t: 12, b: 48 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    ...layout,
    ...Object.fromEntries(axes.map((key) => [key, axis(layout[key])])),
  };
}

// Marks get a thin edge of the text's colour, which shows them on any ground.
function edged(trace) {
  if (!trace.marker || (trace.marker.line && trace.marker.line.width)) return trace;
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  return { ...trace, marker: { ...trace.marker, line: { width: 0.75, color: ink } } };
}

function draw(element, figure) {
  return Plotly.react(element, figure.data.map(edged), themed(figure.layout), CONFIG);
}

const redraw = [];
for (const element of document.querySelectorAll("[data-figure]")) {
  const figure = DATA.figures[element.dataset.figure];
  redraw.push(() => draw(element, figure));
}
function drawAll() { for (const again of redraw) again(); }
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

async function copy(button, text) {
  const before = "Copy";
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    const range = document.createRange();
    range.selectNodeContents(button.parentElement.querySelector("code"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    button.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => { button.textContent = before; }, 2500);
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copy(button, button.dataset.copy));
}
