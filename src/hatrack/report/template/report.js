"use strict";
(() => {
  const read = (id) => { const element = document.getElementById(id); return element ? JSON.parse(element.textContent) : {}; };
  const root = document.documentElement, tables = read("tables"), specs = read("specs"), styles = read("styles");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme || (prefersDark.matches ? "dark" : "light");
  const boxes = [...document.querySelectorAll("#choose input")];
  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.value);
  let views = [];

  async function draw() {
    views.forEach((view) => view.finalize());
    const drawn = [...document.querySelectorAll("[data-chart]")].map(async (element) => {
      const spec = structuredClone(specs[element.dataset.chart]);
      spec.config = styles[theme()];
      spec.width = "container";
      spec.height = 270;
      spec.autosize = { type: "fit", contains: "padding" };
      spec.params.find((parameter) => parameter.name === "chosen").value = chosen();
      const actions = { export: true, source: false, compiled: false, editor: false };
      // Level 1 reports errors; a chart of no method at all is what was asked for, and no reason to warn.
      const result = await vegaEmbed(element, spec, { renderer: "svg", logLevel: 1, actions, downloadFileName: element.dataset.chart });
      return result.view;
    });
    views = await Promise.all(drawn);
    root.dataset.drawn = String(views.length);
    root.dataset.milliseconds = String(Math.round(performance.now()));
  }

  function choose() {
    const methods = chosen();
    views.forEach((view) => view.signal("chosen", methods).runAsync());
    document.querySelectorAll(".grid [data-method]").forEach((part) => { part.hidden = !methods.includes(part.dataset.method); });
  }

  function csv(rows) {
    const keys = [...new Set(rows.flatMap(Object.keys))];
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
    };
    return [keys, ...rows.map((row) => keys.map((key) => row[key]))].map((line) => line.map(cell).join(",")).join("\n") + "\n";
  }

  function download(name, kind) {
    const columns = tables[name].columns;
    const rows = tables[name].rows.map((row) => Object.fromEntries(columns.map((key, place) => [key, row[place]])));
    const text = kind === "csv" ? csv(rows) : JSON.stringify(rows, null, 1) + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind === "csv" ? "text/csv" : "application/json" }));
    link.download = name + "." + kind;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "theme") {
      root.dataset.theme = theme() === "dark" ? "light" : "dark";
      draw();
    } else if (button.dataset.choose) {
      boxes.forEach((box) => { box.checked = button.dataset.choose === "all"; });
      choose();
    } else if (button.dataset.table) {
      download(button.dataset.table, button.dataset.kind);
    }
  });
  boxes.forEach((box) => box.addEventListener("change", choose));
  prefersDark.addEventListener("change", () => { if (!root.dataset.theme) draw(); });
  draw().then(choose);
})();
