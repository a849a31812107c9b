"use strict";

// Draws the charts that are open, those that are unfolded, and all of them again when colours, width
// or the paper change; makes tables sortable; shows a chart's numbers when asked.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const areas = [...document.querySelectorAll("[data-chart]")];
  const views = new Map();
  const READ_AT_MOST = 200;

  const spec = (name) => JSON.parse(document.getElementById(`spec-${name}`).textContent);

  function theme() {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const [text, muted, line, page] = ["text", "muted", "line", "page"].map(colour);
    const words = { labelColor: muted, titleColor: text };
    return {
      background: "transparent",
      font: getComputedStyle(document.body).fontFamily,
      axis: { ...words, gridColor: line, gridOpacity: 0.6, domainColor: muted, tickColor: muted },
      legend: words,
      header: words,
      title: { color: text, subtitleColor: muted },
      view: { stroke: line },
      text: { color: text },
      rule: { color: muted },
      style: { halo: { stroke: page, fill: page, strokeWidth: 3, strokeJoin: "round" } },
    };
  }

  // As `fitted` in tracking/charts/base.py.
  function fit(chart, width) {
    const rules = chart.usermeta?.panels;
    if (!rules) return { ...chart, width, autosize: { type: "fit-x", contains: "padding" } };
    const columns = Math.max(1, Math.min(rules.most, Math.floor(width / rules.least)));
    const each = Math.floor(width / columns) - rules.margin;
    return { ...chart, columns, concat: chart.concat.map((one) => ({ ...one, width: each })) };
  }

  const MENU = 38; // pixels that Vega-Embed leaves at the right to its menu, which a phone goes without
  const PAPER = 700; // pixels between the margins of A4

  async function draw(area) {
    const name = area.dataset.chart;
    views.get(name)?.finalize();
    views.set(name, null);
    const onPaper = root.classList.contains("paper");
    const wide = innerWidth >= 640 && !onPaper;
    const width = onPaper ? PAPER : area.clientWidth - (wide ? MENU : 0);
    try {
      const embedded = await vegaEmbed(area, fit(spec(name), width), {
        renderer: "svg",
        ast: true, // no code is made of expressions, so that a strict policy can be kept
        config: theme(),
        logLevel: 2, // warnings too: a test wants none
        tooltip: { theme: dark.matches ? "dark" : "light" },
        downloadFileName: name,
        actions: wide && { export: true, source: false, compiled: false, editor: false },
      });
      views.set(name, embedded);
      // Vega calls some groups of marks symbols, which would need a name.
      for (const group of area.querySelectorAll('[role="graphics-symbol"]:not([aria-label])')) {
        group.setAttribute("role", "graphics-object");
      }
      area.classList.add("drawn");
    } catch (error) {
      area.textContent = `This chart could not be drawn: ${error.message}`;
      console.error(name, error);
    }
  }

  // What is folded has no width: it is drawn when it is unfolded.
  const isOpen = (area) => area.closest("details:not([open])") === null;

  function drawOpen() {
    views.forEach((view) => view?.finalize());
    views.clear();
    areas.filter(isOpen).forEach(draw);
  }
  for (const area of areas) {
    area.closest("details")?.addEventListener("toggle", () => {
      if (isOpen(area) && !views.has(area.dataset.chart)) draw(area);
    });
  }
  // At once, and not when they come near the screen: a picture of the page is taken without scrolling.
  drawOpen();
  dark.addEventListener("change", drawOpen);
  let width = innerWidth;
  let resized;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => {
      if (innerWidth !== width) drawOpen(); // on a phone the height changes with every scroll
      width = innerWidth;
    }, 200);
  });
  for (const [event, onPaper] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      root.classList.toggle("paper", onPaper);
      drawOpen();
    });
  }

  // Where MLflow shows the page, in a frame without an origin, links within it lead nowhere.
  if (location.protocol === "blob:" || location.protocol === "about:") {
    for (const link of document.querySelectorAll('a[href^="#"]')) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        document.querySelector(link.hash).scrollIntoView();
      });
    }
  }

  // A table that is wider than its place says so.
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      target.classList.toggle("scrolls", target.scrollWidth > target.clientWidth + 1);
    }
  });
  for (const area of document.querySelectorAll(".wide:not(.chart)")) sizes.observe(area);

  // Sorting.
  function value(row, column) {
    const text = row.cells[column].textContent;
    const number = parseFloat(text.replace("−", "-"));
    return column === 0 || Number.isNaN(number) ? text : number;
  }

  function compare(one, two) {
    if (typeof one !== typeof two) return typeof one === "number" ? -1 : 1;
    return typeof one === "number" ? two - one : one.localeCompare(two, "en", { numeric: true });
  }

  function sort(table, column) {
    const head = table.tHead.rows[0].cells[column];
    const words = column === 0 ? ["ascending", "descending"] : ["descending", "ascending"];
    const turned = head.ariaSort === words[0];
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    head.ariaSort = words[turned ? 1 : 0];
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [value(row, column), row]);
    keyed.sort(([one], [two]) => (turned ? compare(two, one) : compare(one, two)));
    body.append(...keyed.map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table.numbers")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      button.addEventListener("click", () => sort(table, column));
      cell.append(button);
    });
  }

  // The numbers behind a chart: of each of its data sets what is drawn of it, as its axes call it.
  function titles(node, data, every = new Map()) {
    const name = node.data?.name ?? data;
    if (typeof node.field === "string") {
      if (!every.has(name)) every.set(name, new Map());
      const own = every.get(name);
      own.set(node.field, node.title || own.get(node.field) || node.field);
    }
    for (const [key, part] of Object.entries(node)) {
      const isPart = part !== null && typeof part === "object" && !["datasets", "sort"].includes(key);
      if (isPart) titles(part, name, every);
    }
    return every;
  }

  function shown(value) {
    if (typeof value === "number") return String(Number(value.toPrecision(6)));
    return value === null || value === undefined ? "–" : String(value);
  }

  function rowsTable(rows, columns, number) {
    const table = document.createElement("table");
    const most = rows.length > READ_AT_MOST ? `, the first ${READ_AT_MOST}` : "";
    table.createCaption().textContent = `Data ${number}: ${rows.length} rows${most}`;
    const head = table.createTHead().insertRow();
    for (const [, title] of columns) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = title;
      head.append(cell);
    }
    const body = table.createTBody();
    for (const row of rows.slice(0, READ_AT_MOST)) {
      const line = body.insertRow();
      for (const [field] of columns) line.insertCell().textContent = shown(row[field]);
    }
    return table;
  }

  function dataTables(chart) {
    const every = titles(chart);
    const tables = [];
    for (const [name, rows] of Object.entries(chart.datasets ?? {})) {
      const columns = [...(every.get(name) ?? [])].filter(([field]) => rows.some((row) => field in row));
      if (columns.length) tables.push(rowsTable(rows, columns, tables.length + 1));
    }
    return tables;
  }

  for (const details of document.querySelectorAll("details.data")) {
    details.addEventListener(
      "toggle",
      () => {
        dataTables(spec(details.dataset.of)).forEach((table, index) => {
          const region = document.createElement("div");
          region.className = "wide";
          region.tabIndex = 0;
          region.setAttribute("role", "region");
          region.setAttribute("aria-label", `Data ${index + 1} of ${details.dataset.of}`);
          region.append(table);
          details.append(region);
        });
      },
      { once: true },
    );
  }
})();
