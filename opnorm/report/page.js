// The page's own script: draws the charts, keeps their highlighting in step, sorts the table, saves figures.
(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const plots = [...document.querySelectorAll(".plot[data-chart]")];
  const drawn = new Map(); // element -> {result, width}
  // ink: the baseline's color in the specs; note: that of text and lines inside a chart; paper: the look of saved figures
  const { ink: INK, note: NOTE, paper } = JSON.parse(document.getElementById("theme").textContent);
  let picked = []; // the methods that are highlighted, none: all

  // Colors are CSS variables, so that dark mode and printing need no redrawing.
  const screen = {
    background: "transparent",
    font: "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif",
    view: { stroke: null },
    axis: {
      labelColor: "var(--soft)", titleColor: "var(--soft)", gridColor: "var(--grid)", domainColor: "var(--faint)",
      tickColor: "var(--faint)", titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12, titlePadding: 8,
    },
    axisY: { domain: false, ticks: false, minExtent: 36 },
    axisX: { grid: false },
    legend: { labelColor: "var(--ink)", labelFontSize: 13, rowPadding: 5, offset: 14 },
    title: { color: "var(--ink)", fontSize: 13, fontWeight: 600, offset: 10 },
    concat: { spacing: 28 },
  };

  const methodsOf = (spec) => spec.datasets.styles.map((style) => style.method);

  const ruler = document.createElement("canvas").getContext("2d");
  function legendColumns(spec, width) {
    ruler.font = `13px ${screen.font}`;
    const widest = Math.max(0, ...methodsOf(spec).map((name) => ruler.measureText(name).width));
    return { columns: Math.max(1, Math.floor(width / (widest + 34))), labelLimit: Math.max(80, width - 40) };
  }

  // The spec for a width: one panel fills it; several make a grid, on a phone a column.
  function fitted(spec, width, config, less = 0) {
    const variable = config === screen ? { [INK]: "var(--ink)", [NOTE]: "var(--soft)" } : {};
    const recolored = (part) => JSON.parse(JSON.stringify(part), (_, value) => variable[value] ?? value);
    const { rows, styles } = spec.datasets;
    const copy = { ...recolored({ ...spec, datasets: null }), datasets: { rows, styles: recolored(styles) } };
    const { columns, labelLimit } = legendColumns(spec, width);
    const eachLegend = (node) => {
      if (!node || typeof node !== "object") return;
      for (const [name, value] of Object.entries(node)) {
        if (name === "legend" && value && typeof value === "object") Object.assign(value, { columns, labelLimit });
        else eachLegend(value);
      }
    };
    eachLegend(copy.vconcat);
    const grid = copy.vconcat[0];
    const most = width < 560 ? 1 : width < 900 ? 2 : grid.columns;
    grid.columns = Math.min(most, grid.concat.length);
    const room = (width - less - (grid.columns - 1) * 28) / grid.columns - 52;
    for (const panel of grid.concat) panel.width = Math.max(120, Math.floor(room));
    return copy;
  }

  const overflow = (element) => {
    const svg = element.querySelector("svg.marks");
    return svg ? Math.ceil(Number(svg.getAttribute("width")) - element.clientWidth) : 0;
  };

  async function embed(element, spec, config, less) {
    return vegaEmbed(element, fitted(spec, element.clientWidth, config, less), {
      mode: "vega-lite", renderer: "svg", actions: false, config, defaultStyle: false,
      tooltip: { theme: "custom" },
    });
  }

  async function draw(element) {
    const spec = specs[element.dataset.chart];
    const width = element.clientWidth;
    try {
      drawn.get(element)?.result.finalize();
      let result = await embed(element, spec, screen, 0);
      // long labels take room that no formula foresees, and more of it where the panels are narrower
      for (let tries = 0, less = 0; tries < 3 && Math.abs(overflow(element) + 2) > 3; tries++) {
        less += overflow(element) + 2;
        result.finalize();
        result = await embed(element, spec, screen, less);
      }
      drawn.set(element, { result, width });
      showPicked(result.view);
      result.view.addDataListener("pick_store", (_, tuples) => pick(tuples.map((tuple) => tuple.values[0])));
      result.view.addEventListener("dblclick", () => pick([]));
      element.dataset.state = "drawn";
    } catch (error) {
      element.dataset.state = "failed";
      element.textContent = `This chart could not be drawn: ${error.message}`;
      console.error(error);
    }
  }

  const tuples = () => picked.map((name) => ({ fields: [{ type: "E", field: "method" }], values: [name] }));

  function showPicked(view) {
    const now = view.data("pick_store").map((tuple) => tuple.values[0]);
    if (JSON.stringify(now) !== JSON.stringify(picked)) view.data("pick_store", tuples()).runAsync();
  }

  function pick(names) {
    if (JSON.stringify(names) === JSON.stringify(picked)) return;
    picked = names;
    for (const { result } of drawn.values()) showPicked(result.view);
    for (const row of document.querySelectorAll("tr[data-method]")) {
      const on = picked.includes(row.dataset.method);
      row.classList.toggle("picked", on);
      row.querySelector("th button").setAttribute("aria-pressed", on);
    }
    const note = document.getElementById("picked");
    note.hidden = picked.length === 0;
    note.querySelector("span").textContent = `Highlighted: ${picked.join(", ")}`;
  }
  document.querySelector("#picked button").addEventListener("click", () => pick([]));

  // ---- the table ----
  const swatches = {};
  for (const spec of Object.values(specs)) for (const { method, color } of spec.datasets.styles) swatches[method] = color;

  for (const row of document.querySelectorAll("#table tbody tr, .part tbody tr")) {
    const head = row.querySelector("th");
    const method = head.textContent;
    if (!(method in swatches)) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = method;
    button.setAttribute("aria-pressed", false);
    button.style.setProperty("--swatch", swatches[method] === INK ? "var(--ink)" : swatches[method]);
    button.addEventListener("click", () =>
      pick(picked.includes(method) ? picked.filter((name) => name !== method) : [...picked, method]));
    head.replaceChildren(button);
    row.dataset.method = method;
  }

  function sort(head, order) {
    for (const other of head.parentElement.children) other.setAttribute("aria-sort", other === head ? order : "none");
    const body = head.closest("table").tBodies[0];
    const text = head.classList.contains("text");
    const key = (row) => {
      const value = row.cells[head.cellIndex]?.dataset.sort;
      return value === undefined || value === "" ? null : text ? value : Number(value);
    };
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null); // not known: last, both ways
      return sign * (text ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    };
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  }

  for (const button of document.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const flip = { ascending: "descending", descending: "ascending" };
      sort(head, flip[head.getAttribute("aria-sort")] ?? button.dataset.first);
    });
  }

  // ---- the page of a study that is under way reloads itself, and keeps what its reader has chosen ----
  const heads = () => [...document.querySelectorAll("thead th[aria-sort]")];
  const nameOf = (head) => // the same in the next page, which may have more tables
    JSON.stringify([head.closest("section").id, head.closest("[aria-label]")?.ariaLabel, head.textContent]);
  const details = () => [...document.querySelectorAll("details")];

  const sections = () => [...document.querySelectorAll("section[id]:not(#progress)")];
  function placeOf(scroll) { // the section at the top of the window, and how far it is from there
    const first = scroll > 0 && sections().find((section) => section.getBoundingClientRect().bottom > 0);
    return first ? [first.id, first.getBoundingClientRect().top] : null;
  }
  function goTo(place) {
    const section = place && document.getElementById(place[0]);
    if (section) scrollBy({ top: section.getBoundingClientRect().top - place[1], behavior: "instant" });
  }

  function reload() {
    const chosen = {
      picked,
      place: placeOf(scrollY),
      heights: Object.fromEntries(plots.map((element) => [element.dataset.chart, element.offsetHeight])),
      sorted: heads().filter((head) => head.ariaSort !== "none").map((head) => [nameOf(head), head.ariaSort]),
      open: details().filter((part) => part.open).map((part) => part.querySelector("summary").textContent),
    };
    history.replaceState({ opnorm: chosen }, "");
    history.scrollRestoration = "manual"; // the browser would scroll smoothly to another place
    location.reload();
  }

  const chosen = history.state?.opnorm;
  let moved = false; // by the reader, while the charts are drawn
  for (const kind of ["wheel", "touchmove", "pointerdown", "keydown"])
    addEventListener(kind, () => (moved = true), { once: true, passive: true });
  history.replaceState(null, ""); // a reload by hand begins anew
  // nothing is drawn yet; what will be, follows
  pick(chosen?.picked ?? JSON.parse(document.getElementById("highlight").textContent));
  if (chosen) {
    for (const part of details()) part.open = chosen.open.includes(part.querySelector("summary").textContent);
    for (const head of heads()) {
      const order = new Map(chosen.sorted).get(nameOf(head));
      if (order) sort(head, order);
    }
    for (const element of plots) element.style.minHeight = `${chosen.heights[element.dataset.chart] ?? 0}px`;
    goTo(chosen.place);
  }

  const { written } = document.documentElement.dataset; // only while the study is under way
  if (written) {
    let touched = 0;
    let drawnAt = 0; // when its charts were drawn; before that, nobody has seen it
    for (const kind of ["scroll", "pointermove", "pointerdown", "keydown"])
      addEventListener(kind, () => (touched = performance.now()), { passive: true, capture: true });
    setInterval(() => {
      if (document.documentElement.dataset.state !== "ready") return;
      const now = performance.now();
      drawnAt ||= now;
      // drawing takes a tenth of the time at most; an old page, of a study that was stopped, is looked at ever more rarely
      const pause = Math.max(10_000, 10 * drawnAt, (Date.now() - 1000 * Number(written)) / 10);
      if (now > drawnAt + pause && now - touched > 3000 && !document.hidden) reload();
    }, 1000);
  }

  // ---- saving ----
  function download(name, url) {
    const link = document.createElement("a");
    link.download = name;
    link.href = url;
    link.click();
  }

  function csv(rows) {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    const cell = (value) => (/[",\n]/.test(String(value ?? "")) ? `"${String(value).replaceAll('"', '""')}"` : value ?? "");
    return [names, ...rows.map((row) => names.map((name) => row[name]))].map((r) => r.map(cell).join(",")).join("\n") + "\n";
  }

  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", async () => {
      const element = button.closest("section").querySelector(".plot");
      const spec = specs[element.dataset.chart];
      const kind = button.dataset.save;
      const name = `${element.dataset.chart}.${kind}`;
      if (kind === "csv") {
        download(name, URL.createObjectURL(new Blob([csv(spec.datasets.rows)], { type: "text/csv" })));
        return;
      }
      const aside = document.createElement("div"); // drawn again in black on white
      const result = await vegaEmbed(aside, fitted(spec, element.clientWidth, paper), {
        mode: "vega-lite", renderer: "svg", actions: false, config: paper,
      });
      if (picked.length) await result.view.data("pick_store", tuples()).runAsync();
      download(name, await result.view.toImageURL(kind, 2));
      result.finalize();
    });
  }

  // ---- drawing, and again when the width changes (a phone that is turned) ----
  (async () => {
    for (const element of plots) await draw(element);
    for (const element of plots) element.style.minHeight = "";
    if (chosen && !moved) goTo(chosen.place);
    document.documentElement.dataset.state = "ready";
    let timer;
    addEventListener("resize", () => {
      clearTimeout(timer);
      timer = setTimeout(async () => {
        for (const element of plots) if (element.clientWidth !== drawn.get(element)?.width) await draw(element);
      }, 200);
    });
  })();
})();
