"use strict";
/* Draws the report's plots, follows the theme, sorts the table and offers the downloads. No request ever leaves it. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const report = (window.report = { drawn: new Set(), errors: [], theme: "light", points: false });
  const modes = {};
  for (const plot of Object.values(data.plots)) modes[plot.group] ??= Object.keys(plot.modes)[0];

  // -- theme ---------------------------------------------------------------------------------------------------

  const wish = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = remembered();
  function remembered() {
    try { return localStorage.getItem("landscape-theme"); } catch { return null; }
  }
  function setTheme(name) {
    report.theme = name;
    root.dataset.theme = name;
    const button = document.getElementById("theme");
    button.textContent = name === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(name === "dark"));
  }
  function colors() {
    const style = getComputedStyle(root);
    const palette = {};
    for (const name of ["paper", "text", "muted", "line", "accent", "hover"]) palette[name] = style.getPropertyValue(`--${name}`).trim();
    palette.grid = palette.line;
    for (let i = 0; i < 16; i++) {
      palette[`series${i}`] = style.getPropertyValue(`--s${i}`).trim();
      palette[`band${i}`] = palette[`series${i}`] + "33";
    }
    return palette;
  }

  // -- specifications ------------------------------------------------------------------------------------------

  const arrays = data.arrays;
  function format(value) {
    if (value === null) return "";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(5)));
  }
  function lookup(name) {
    if (!(name in arrays)) {
      const [how, parts, of] = name.split(":");
      arrays[name] = how === "fine" ? fine(arrays[of], Number(parts)) : near(of.slice(1), Number(parts));
    }
    return arrays[name];
  }
  /* Cubic interpolation (Keys 1981) along each axis: for the eye, never in a number; see grids.refined. */
  function between(values, parts) {
    const n = values.length;
    const at = (i) => (i < 0 ? 3 * values[0] - 3 * values[1] + values[2] : i < n ? values[i] : 3 * values[n - 1] - 3 * values[n - 2] + values[n - 3]);
    return Array.from({ length: (n - 1) * parts + 1 }, (_, k) => {
      const i = Math.min(Math.floor(k / parts), n - 2);
      const t = k / parts - i;
      const [a, b, c, d] = [at(i - 1), at(i), at(i + 1), at(i + 2)];
      return b + (t / 2) * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
    });
  }
  const transposed = (rows) => rows[0].map((_, j) => rows.map((row) => row[j]));
  function fine(values, parts) {
    if (parts === 1) return values;
    if (!Array.isArray(values[0])) return between(values, parts);
    const smooth = transposed(transposed(values.map((row) => between(row, parts))).map((column) => between(column, parts)));
    const [low, high] = [Math.min(...values.flat()), Math.max(...values.flat())];
    const slack = 0.01 * (high - low);
    return smooth.map((row) => row.map((v) => Math.min(high + slack, Math.max(low - slack, v))));
  }
  /* What is read off at every point of a fine grid: the nearest point that was computed, and its loss. */
  function near(i, parts) {
    const [x, y, z] = ["x", "y", "z"].map((name) => arrays[name + i]);
    const told = z.map((row, j) => row.map((loss, k) => `computed at (${format(x[k])}, ${format(y[j])})<br>loss <b>${format(loss)}</b>`));
    const index = (n) => Array.from({ length: (n - 1) * parts + 1 }, (_, k) => Math.round(k / parts));
    return index(y.length).map((j) => index(x.length).map((k) => told[j][k]));
  }
  function resolve(value, ink) {
    if (typeof value === "string") {
      if (value[0] === "@") return lookup(value.slice(1));
      const series = /^\$(series|band)(\d+)$/.exec(value);
      if (series) return ink[series[1] + (Number(series[2]) % 16)];
      return value[0] === "$" ? (ink[value.slice(1)] ?? value) : value;
    }
    if (Array.isArray(value)) return value.length && typeof value[0] === "object" ? value.map((v) => resolve(v, ink)) : value;
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, ink)]));
    return value;
  }
  function specification(plot) {
    const ink = colors();
    const spec = plot.modes[modes[plot.group]] ?? Object.values(plot.modes)[0];
    const layout = resolve(spec.layout, ink);
    const element = document.getElementById(plot.id);
    layout.paper_bgcolor = ink.paper;
    layout.plot_bgcolor = ink.paper;
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink.text };
    layout.hoverlabel = { bgcolor: ink.paper, bordercolor: ink.muted, font: { color: ink.text } };
    layout.showlegend ??= spec.data.filter((t) => t.showlegend !== false && t.name !== undefined && !["surface", "contour"].includes(t.type)).length > 1;
    layout.legend = { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)", font: { size: 12 } };
    const entries = layout.showlegend ? spec.data.filter((t) => t.showlegend !== false).length : 0;
    // On a phone the legend is one column: it must not eat the plot.
    if (entries > 3 && element.clientWidth < 420) element.style.height = `${340 + 19 * (entries - 3)}px`;
    if (layout.showlegend) layout.margin = { ...layout.margin, t: 34 };
    for (const axis of ["xaxis", "yaxis"]) {
      if (!layout[axis]) continue;
      layout[axis] = { gridcolor: ink.grid, linecolor: ink.muted, zerolinecolor: ink.line, exponentformat: "power", ticks: "outside", tickcolor: ink.muted, ticklen: 4, showline: true, ...layout[axis] };
    }
    layout.autosize = true;
    layout.dragmode = layout.scene ? "orbit" : "zoom";
    if (layout.scene) {
      if (report.camera) layout.scene.camera = report.camera;
      layout.scene.bgcolor = ink.paper;
    }
    if (element.clientWidth < 420) {
      for (const trace of spec.data) if (trace.colorbar) layout.margin = { ...layout.margin, r: 0 };
    }
    const traces = resolve(spec.data, ink);
    if (report.points) showPoints(traces, ink);
    for (const trace of traces) if (trace.colorbar) trace.colorbar.tickfont = { color: ink.text };
    return { data: traces, layout };
  }
  function showPoints(traces, ink) {
    for (const trace of [...traces]) {
      const { x, y } = trace.meta ?? {};
      if (!x) continue;
      if (trace.type === "surface") {
        // Lines through the computed points: they lie where two cross.
        const lines = (axis) => ({ show: true, start: axis[0], end: axis[axis.length - 1], size: axis[1] - axis[0], color: ink.text, width: 1 });
        trace.contours = { ...trace.contours, x: lines(x), y: lines(y) };
      } else {
        const marker = { size: 2.5, color: "#ffffff" };
        traces.splice(1, 0, { type: "scatter", mode: "markers", x: y.flatMap(() => x), y: y.flatMap((v) => x.map(() => v)), marker, hoverinfo: "skip", showlegend: false });
      }
    }
  }
  const config = { displaylogo: false, displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" };

  // -- drawing -------------------------------------------------------------------------------------------------

  async function unpackPlotly() {
    const packed = document.getElementById("plotly");
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    const script = document.createElement("script");
    // The page's policy compares the hash of this text before it runs.
    script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(script);
    packed.remove();
  }
  const plotly = unpackPlotly().catch((error) => report.errors.push(`plotly.js: ${error.message}`));
  async function draw(plot) {
    const element = document.getElementById(plot.id);
    const spec = specification(plot);
    try {
      if (!window.Plotly) throw new Error("this browser cannot unpack the page's drawing library: a newer one can");
      if (!report.drawn.has(plot.id)) element.replaceChildren();
      await Plotly.react(element, spec.data, spec.layout, config);
      if (!report.drawn.has(plot.id)) listen(plot, element);
      report.drawn.add(plot.id);
      element.dataset.drawn = "true";
    } catch (error) {
      report.errors.push(`${plot.id}: ${error.message}`);
      const words = document.createElement("p");
      words.className = "waiting";
      words.textContent = `This plot could not be drawn here (${error.message}); its numbers are in the downloads.`;
      element.replaceChildren(words);
    }
  }
  const pause = () => new Promise((done) => setTimeout(done, 0));
  async function drawAll(of = Object.values(data.plots)) {
    await plotly;
    for (const plot of of) {
      await draw(plot);
      await pause();
    }
  }
  function listen(plot, element) {
    if (!element.layout.scene) return;
    const follow = (change) => {
      const camera = change["scene.camera"];
      if (camera && !report.turning) turn(camera, plot.id);
    };
    element.on("plotly_relayouting", follow);
    element.on("plotly_relayout", follow);
    element.addEventListener("keydown", (event) => key(event, element));
  }

  // -- cameras: every surface is seen from the same side --------------------------------------------------------

  const START = JSON.stringify({ eye: { x: 1.32, y: -1.32, z: 0.95 }, center: { x: 0, y: 0, z: -0.27 }, up: { x: 0, y: 0, z: 1 } });
  async function turn(camera, from) {
    report.camera = camera;
    report.turning = true;
    try {
      const others = Object.values(data.plots).filter((p) => p.id !== from && report.drawn.has(p.id) && document.getElementById(p.id).layout.scene);
      await Promise.all(others.map((p) => Plotly.relayout(document.getElementById(p.id), { "scene.camera": camera })));
    } finally {
      report.turning = false;
    }
  }
  function key(event, element) {
    const camera = structuredClone(element._fullLayout.scene.camera);
    const eye = camera.eye;
    const radius = Math.hypot(eye.x, eye.y, eye.z);
    let around = Math.atan2(eye.y, eye.x);
    let up = Math.asin(eye.z / radius);
    let far = radius;
    const steps = { ArrowLeft: () => (around -= 0.12), ArrowRight: () => (around += 0.12), ArrowUp: () => (up += 0.1), ArrowDown: () => (up -= 0.1), "+": () => (far *= 0.9), "=": () => (far *= 0.9), "-": () => (far /= 0.9) };
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in steps || event.key === "0")) return;
    event.preventDefault();
    if (event.key === "0") return void turn(JSON.parse(START), null);
    steps[event.key]();
    up = Math.min(1.5, Math.max(-0.3, up));
    camera.eye = { x: far * Math.cos(up) * Math.cos(around), y: far * Math.cos(up) * Math.sin(around), z: far * Math.sin(up) };
    turn(camera, null);
  }

  // -- table ---------------------------------------------------------------------------------------------------

  const table = document.getElementById("summary-table");
  const original = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  function sortBy(column) {
    const head = heads[column];
    const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
    for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", next);
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = column === 0 ? x.localeCompare(y, undefined, { numeric: true }) : Number(x) - Number(y);
      return next === "descending" ? -order : order;
    };
    table.tBodies[0].append(...(next === "none" ? original : [...original].sort(compare)));
    document.getElementById("sorted").textContent = next === "none" ? "In the original order" : `Sorted by ${head.textContent.trim()}, ${next}`;
  }
  heads.forEach((head, i) => head.querySelector(".sort")?.addEventListener("click", () => sortBy(i)));

  // -- downloads -----------------------------------------------------------------------------------------------

  function download(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  function csv(rows) {
    // A leading apostrophe keeps a spreadsheet from running a name that looks like a formula.
    const cell = (v) => {
      const text = v === null || v === undefined ? "" : typeof v === "string" && /^[=+\-@\t\r]/.test(v) ? `'${v}` : String(v);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  }
  report.csv = (rows = data.table) => csv(rows);
  report.json = () => JSON.stringify(data.summary, null, 2) + "\n";
  document.getElementById("download-json").addEventListener("click", () => download("summary.json", "application/json", report.json()));
  document.getElementById("download-csv").addEventListener("click", () => download("summary.csv", "text/csv", report.csv()));
  for (const button of document.querySelectorAll("[data-image]")) {
    button.addEventListener("click", () => {
      const element = document.getElementById(button.dataset.for);
      Plotly.downloadImage(element, { format: button.dataset.image, filename: button.dataset.name ?? button.dataset.for, width: element.clientWidth, height: element.clientHeight, scale: button.dataset.image === "png" ? 3 : 1 });
    });
  }
  document.getElementById("copy")?.addEventListener("click", async (event) => {
    const button = event.currentTarget;
    const code = document.getElementById("command");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2500);
  });

  // -- choices, theme, print -----------------------------------------------------------------------------------

  for (const button of document.querySelectorAll(".switch button")) {
    button.addEventListener("click", () => {
      const { group, mode } = button.dataset;
      modes[group] = mode;
      for (const other of document.querySelectorAll(".switch button")) {
        if (other.dataset.group === group) other.setAttribute("aria-pressed", String(other.dataset.mode === mode));
      }
      report.busy = drawAll(Object.values(data.plots).filter((p) => p.group === group));
    });
  }
  document.getElementById("points")?.addEventListener("click", (event) => {
    report.points = !report.points;
    event.currentTarget.setAttribute("aria-pressed", String(report.points));
    report.busy = drawAll(Object.values(data.plots).filter((p) => p.group === "surface"));
  });
  // More surfaces than a browser keeps in 3-D: every picture can show any of them.
  for (const select of document.querySelectorAll("[data-choose]")) {
    select.addEventListener("change", () => {
      const plot = data.plots[select.dataset.choose];
      const scene = data.scenes[Number(select.value)];
      plot.modes = scene.modes;
      document.getElementById(`title-${plot.id}`).textContent = scene.title;
      document.getElementById(`caption-${plot.id}`).textContent = scene.caption;
      for (const button of document.querySelectorAll(`[data-image][data-for="${plot.id}"]`)) {
        button.setAttribute("aria-label", `Download ${scene.title} as ${button.dataset.image.toUpperCase()}`);
        button.dataset.name = `${plot.id}-checkpoint-${Number(select.value) + 1}`;
      }
      report.busy = drawAll([plot]);
    });
  }
  // Any column of numbers against any other, up to a step of the trainings.
  const scatter = data.scatter;
  if (scatter) {
    const [across, up, upTo] = ["scatter-x", "scatter-y", "scatter-step"].map((id) => document.getElementById(id));
    [across.value, up.value] = scatter.first.map(String);
    const show = () => {
      const plot = data.plots["scatter-plot"];
      const { data: traces, layout } = plot.modes[""];
      const last = upTo ? scatter.steps[Number(upTo.value)] : Infinity;
      const [x, y] = [across, up].map((select) => scatter.columns[Number(select.value)]);
      const take = (members, values) => members.map((i) => (scatter.at[i] === null || scatter.at[i] <= last ? values[i] : null));
      scatter.groups.forEach((members, n) => {
        for (const [axis, column] of [["x", x], ["y", y]]) {
          traces[n][axis] = take(members, column.values);
          const errors = take(members, column.errors).map((e) => e ?? 0);
          traces[n][`error_${axis}`] = { type: "data", array: errors, visible: errors.some((e) => e > 0) };
        }
      });
      layout.xaxis.title.text = x.axis;
      layout.yaxis.title.text = y.axis;
      if (upTo) document.getElementById("scatter-at").textContent = last;
      const pair = [Number(across.value), Number(up.value)].sort((a, b) => a - b).join("-");
      document.getElementById("caption-scatter-plot").textContent = scatter.correlations[pair] ?? "";
      report.busy = drawAll([plot]);
    };
    for (const select of [across, up]) select.addEventListener("change", show);
    upTo?.addEventListener("input", show);
  }
  document.getElementById("theme").addEventListener("click", () => {
    chosen = report.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("landscape-theme", chosen); } catch { /* a file: page may have no storage */ }
    setTheme(chosen);
    report.busy = drawAll();
  });
  wish.addEventListener("change", () => {
    if (chosen) return;
    setTheme(wish.matches ? "dark" : "light");
    report.busy = drawAll();
  });
  document.getElementById("print").addEventListener("click", () => window.print());
  const PAPER = 640; // pixels that A4 and Letter leave inside a card
  const heights = new Map();
  let before = null;
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) {
      details.dataset.was = String(details.open);
      details.open = true;
    }
    // The page is laid out for paper only after this event, so the plots are shrunk here to the widths given below.
    for (const canvas of document.querySelectorAll(".canvas")) {
      const alone = canvas.closest(".plots").children.length === 1 || canvas.closest(".wide");
      const [w, h] = [canvas.clientWidth, canvas.clientHeight];
      heights.set(canvas, canvas.style.height);
      const k = Math.min(1, (alone ? PAPER : PAPER / 2 - 38) / w);
      // A transform and a fixed size: a canvas that is resized here would be printed empty.
      Object.assign(canvas.style, { width: `${w}px`, height: `${h}px`, transform: `scale(${k})`, transformOrigin: "0 0", marginBottom: `${(k - 1) * h}px`, marginRight: `${(k - 1) * w}px` });
    }
    before = report.theme;
    if (before === "dark") {
      setTheme("light");
      for (const plot of Object.values(data.plots)) draw(plot);
    }
    for (const canvas of document.querySelectorAll(".canvas")) copyForPaper(canvas);
  });
  function copyForPaper(element) {
    // What WebGL drew is gone from its buffer when a page is printed: draw once more and copy it within this task.
    const drawn = element._fullLayout?.scene?._scene?.glplot;
    if (!drawn) return;
    drawn.redraw();
    const copy = document.createElement("canvas");
    copy.className = "paper-copy";
    copy.width = drawn.gl.drawingBufferWidth;
    copy.height = drawn.gl.drawingBufferHeight;
    copy.getContext("2d").drawImage(drawn.gl.canvas, 0, 0);
    element.append(copy);
  }
  window.addEventListener("afterprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = details.dataset.was === "true";
    for (const copy of document.querySelectorAll(".paper-copy")) copy.remove();
    for (const canvas of document.querySelectorAll(".canvas")) {
      Object.assign(canvas.style, { width: "", height: heights.get(canvas) ?? "", transform: "", marginBottom: "", marginRight: "" });
    }
    if (before === "dark") {
      setTheme("dark");
      report.busy = drawAll();
    }
  });

  setTheme(chosen ?? (wish.matches ? "dark" : "light"));
  report.busy = drawAll();
})();
