// The interactive front: a budget moves the selection and the command, a click pins a network beside the full one.

const byId = (id) => document.getElementById(id);
const MOST_PINS = 3;
const pins = []; // candidates, the latest last
let front, scale; // what is shown

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const percent = (value) => (value === null ? "-" : `${(100 * value).toFixed(2)}%`);

function number(value) {
  if (value === null || value === undefined) return "-";
  return Number(value.toPrecision(4)).toString();
}

function inUnit(of, value) { // a value with its unit
  return value === null || value === undefined ? "-" : `${number(value / of.factor)} ${of.unit}`;
}

// As `select` tries them: those that keep the budget at the upper end of their interval first, then by metric.
function bestWithin(budget) {
  const risky = (c) => (scale.cost === "latency" && c.latency_high !== null && c.latency_high > budget ? 1 : 0);
  const keeping = front.candidates.filter((c) => c[scale.cost] <= budget);
  keeping.sort((a, b) => risky(a) - risky(b) || b.score - a.score || a.latency - b.latency ||
    (a.architecture < b.architecture ? -1 : a.architecture > b.architecture ? 1 : 0));
  return keeping[0] || null;
}

// The slider counts steps of a round size, so that a budget has few digits and is the same in the command.
function setSlider() {
  const values = front.candidates.map((c) => c[scale.cost] / scale.factor);
  if (front.full && front.full[scale.cost]) values.push(front.full[scale.cost] / scale.factor);
  const low = Math.min(...values), high = Math.max(...values);
  const rough = ((high - low) || high) / 150;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const slider = byId("budget");
  slider.dataset.step = step;
  slider.dataset.digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  slider.min = Math.max(1, Math.floor(low / step) - 1);
  slider.max = Math.ceil(high / step) + 1;
  slider.step = 1;
  const start = scale.cost === "latency" && front.start_ms ? front.start_ms / scale.factor / step : NaN;
  slider.value = Math.round(Number.isFinite(start) ? start : (Number(slider.min) + Number(slider.max)) / 2);
}

function budgetText() {
  const slider = byId("budget");
  return (Number(slider.value) * Number(slider.dataset.step)).toFixed(Number(slider.dataset.digits));
}

function commandFor(chosen) {
  if (front.select) return `${front.select[0]} ${scale.option} ${budgetText()}${scale.unit} ${front.select[1]}`;
  return chosen ? chosen.export : "";
}

function described(c) {
  const sure = c.latency_high === null ? "" : ` (95% of networks: up to ${number(c.latency_high)} ms)`;
  const measured = c.measured_ms === null ? "" :
    `; measured: ${number(c.measured_ms)} ms, ${percent(c.measured_score)} on ${c.measured_samples} samples of the report split`;
  return `${c.architecture} on ${c.deployment}: predicted ${front.percentile} ${number(c.latency)} ms${sure}, ` +
    `${front.metric} ${percent(c.score)} (${c.source})${measured}`;
}

function hover(c) {
  const lines = [
    `<b>${escaped(c.architecture)}</b>`, `${escaped(c.deployment)}`, `${escaped(front.metric)} ${percent(c.score)}, ${escaped(c.source)}`,
    ...front.scales.map((s) => `${s.cost === "latency" ? `predicted ${front.percentile}` : s.title}: ${inUnit(s, c[s.cost])}`),
  ];
  if (c.measured_ms !== null) lines.push(`measured ${front.percentile}: ${number(c.measured_ms)} ms; report split: ${percent(c.measured_score)}`);
  return lines.join("<br>");
}

function drawFront(chosen) {
  const x = (c) => c[scale.cost] / scale.factor;
  const traces = DATA.deployments.map((style) => {
    const own = front.candidates.filter((c) => c.deployment === style.name);
    return {
      type: "scatter", mode: "markers", name: escaped(style.name), x: own.map(x), y: own.map((c) => 100 * c.score),
      text: own.map(hover), hovertemplate: "%{text}<extra></extra>", customdata: own.map((c) => front.candidates.indexOf(c)),
      marker: { color: style.color, symbol: style.symbol, size: 11 },
    };
  }).filter((trace) => trace.x.length);
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const ring = (name, of, size, symbol) => ({
    type: "scatter", mode: "markers", name, x: of.map(x), y: of.map((c) => 100 * c.score), hoverinfo: "skip",
    marker: { symbol, size, color: ink, line: { width: 2.5, color: ink } },
  });
  // Room for a ring around any mark and for any budget, so that no mark moves when a ring or the budget does.
  const room = ring("", front.candidates, 22, "circle-open"), { min, max, dataset } = byId("budget");
  for (const end of [min, max]) { room.x.push(end * dataset.step); room.y.push(room.y[0]); }
  traces.push({ ...room, opacity: 0, showlegend: false });
  const exported = front.candidates.filter((c) => c.measured_ms !== null);
  if (exported.length) traces.push(ring("exported and measured", exported, 17, "square-open"));
  if (pins.length) traces.push(ring("pinned", pins, 17, "diamond-open"));
  if (chosen) traces.push(ring("within the budget", [chosen], 22, "circle-open"));
  const full = front.full;
  if (full && full[scale.cost] && full.score !== null) {
    traces.push({
      type: "scatter", mode: "markers", name: "full network", x: [full[scale.cost] / scale.factor], y: [100 * full.score],
      text: [`<b>full network</b><br>${escaped(full.architecture)}<br>${escaped(full.deployment)}<br>${escaped(front.metric)} ${percent(full.score)}, search split`],
      hovertemplate: "%{text}<extra></extra>", marker: { symbol: "star", size: 15, color: ink },
    });
  }
  const what = scale.cost === "latency" ? `predicted latency of a call, ${front.percentile}` : scale.title;
  return draw(byId("front-plot"), {
    data: traces,
    layout: {
      uirevision: `${front.title} ${scale.cost}`, hovermode: "closest",
      xaxis: { title: { text: `${what}, ${scale.unit}` } }, yaxis: { title: { text: `${front.metric}, search split${front.samples ? `, n=${front.samples}` : ""}, %` } },
      shapes: [{ type: "line", x0: Number(budgetText()), x1: Number(budgetText()), y0: 0, y1: 1, yref: "paper", line: { color: ink, width: 2, dash: "dash" } }],
    },
  });
}

// Text that breaks between words only, as architectures and commands must.
function words(element, text) {
  element.replaceChildren(...text.split(" ").flatMap((word) => {
    const span = document.createElement("span");
    span.className = "word";
    span.textContent = word;
    return [" ", span];
  }).slice(1));
}

function cell(row, text, { header, number: right } = {}) {
  const element = document.createElement(header ? "th" : "td");
  if (header) element.scope = header;
  if (right) element.className = "number";
  if (text.includes("L[")) words(element, text);
  else element.textContent = text;
  row.append(element);
  return element;
}

function drawPins(chosen) {
  const full = front.full;
  const columns = [
    ...(full ? [{ title: "full network", of: full }] : []),
    ...(chosen ? [{ title: "within the budget", of: chosen }] : []),
    ...pins.map((of, index) => ({ title: `pin ${index + 1}`, of, pin: index })),
  ];
  const table = byId("pins");
  table.replaceChildren();
  const head = table.createTHead().insertRow();
  cell(head, "");
  for (const column of columns) {
    const th = cell(head, column.title, { header: "col" });
    if (column.pin === undefined) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Remove";
    button.setAttribute("aria-label", `Remove pin ${column.pin + 1}`);
    button.addEventListener("click", () => { pins.splice(column.pin, 1); update(); byId("pin-selection").focus(); });
    th.append(" ", button);
  }
  const rows = [
    ["architecture", (c) => c.architecture], ["deployment", (c) => c.deployment || "-"],
    ...front.scales.map((s) => [s.cost === "latency" ? `predicted ${front.percentile}` : s.title, (c) => inUnit(s, c[s.cost])]),
    [`${front.metric}, search split`, (c) => percent(c.score) + (c.source && !c.source.startsWith("measured") ? ` (${c.source})` : "")],
    [`measured ${front.percentile}`, (c) => (c.measured_ms === null ? "not yet" : `${number(c.measured_ms)} ms`)],
    [`${front.metric}, report split`, (c) => (c.measured_score === null ? "not yet" : `${percent(c.measured_score)}, n=${c.measured_samples}`)],
    ["artifact", (c) => c.artifact || "none"],
  ];
  const body = table.createTBody();
  for (const [name, value] of rows) {
    const row = body.insertRow();
    cell(row, name, { header: "row" });
    for (const column of columns) cell(row, value(column.of));
  }
  const row = body.insertRow();
  cell(row, "drawn", { header: "row" });
  for (const column of columns) {
    const drawing = [...document.querySelectorAll("#drawings template")].find((t) => t.dataset.architecture === column.of.architecture);
    if (drawing) cell(row, "").append(drawing.content.cloneNode(true));
    else cell(row, "-");
  }
}

function togglePin(candidate) {
  const at = pins.indexOf(candidate);
  if (at >= 0) pins.splice(at, 1);
  else pins.push(candidate);
  if (pins.length > MOST_PINS) pins.shift();
  update();
}

function listCandidates() {
  const table = byId("candidates");
  table.replaceChildren();
  const head = table.createTHead().insertRow();
  for (const name of ["architecture", "deployment"]) cell(head, name, { header: "col" });
  for (const s of front.scales) cell(head, `${s.cost === "latency" ? `predicted ${front.percentile}` : s.title}, ${s.unit}`, { header: "col", number: true });
  cell(head, `${front.metric}, search split`, { header: "col", number: true });
  cell(head, "", {});
  const body = table.createTBody();
  for (const c of front.candidates) {
    const row = body.insertRow();
    cell(row, c.architecture);
    cell(row, c.deployment);
    for (const s of front.scales) cell(row, number(c[s.cost] / s.factor), { number: true });
    cell(row, percent(c.score), { number: true }).title = c.source;
    const button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", () => togglePin(c));
    cell(row, "").append(button);
  }
}

function markCandidates(chosen) {
  front.candidates.forEach((c, index) => {
    const row = byId("candidates").tBodies[0].rows[index], button = row.querySelector("button");
    row.classList.toggle("selected", c === chosen);
    button.textContent = pins.includes(c) ? "Unpin" : "Pin";
    button.setAttribute("aria-label", `${button.textContent} ${c.architecture} on ${c.deployment}`);
  });
}

function update() {
  const chosen = bestWithin(Number(budgetText()) * scale.factor);
  const budget = `${budgetText()} ${scale.unit}`;
  byId("budget-value").textContent = budget;
  byId("budget").setAttribute("aria-valuetext", budget);
  words(byId("selection"), chosen ? described(chosen) : `No candidate is predicted to keep ${budget}.`);
  words(byId("command"), chosen ? commandFor(chosen) : "");
  byId("export").hidden = !chosen;
  byId("command-note").textContent = !chosen ? "" : front.select ?
    "It exports this network and measures the file; where the file misses the budget, the next best is tried." :
    "select goes by the recipe's own objectives: this exports the network as it is.";
  byId("pin-selection").disabled = !chosen || pins.includes(chosen);
  drawPins(chosen);
  markCandidates(chosen);
  return drawFront(chosen);
}

function chooseScale(index) {
  scale = front.scales[index];
  setSlider();
  update();
}

function chooseFront(index) {
  front = DATA.fronts[index];
  pins.length = 0;
  byId("scale-choice").replaceChildren(...front.scales.map((s, i) => new Option(s.title, i)));
  listCandidates();
  chooseScale(0);
}

if (byId("front")) {
  chooseFront(0);
  byId("front-choice").addEventListener("change", (event) => chooseFront(Number(event.target.value)));
  byId("scale-choice").addEventListener("change", (event) => chooseScale(Number(event.target.value)));
  byId("budget").addEventListener("input", update);
  byId("pin-selection").addEventListener("click", () => {
    const chosen = bestWithin(Number(budgetText()) * scale.factor);
    if (chosen && !pins.includes(chosen)) togglePin(chosen);
  });
  byId("copy-command").addEventListener("click", (event) => copy(event.target, byId("command").textContent));
  let last = { index: -1, at: 0 };
  byId("front-plot").on("plotly_click", (event) => {
    const index = event.points[0].customdata, at = performance.now();
    const twice = index === last.index && at - last.at < 600; // a tap comes as a touch, then as a mouse's click
    last = { index, at };
    if (index !== undefined && !twice) togglePin(front.candidates[index]);
  });
  redraw.push(update);
}
drawAll();
