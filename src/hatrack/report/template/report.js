"use strict";
(() => {
  const root = document.documentElement, tables = JSON.parse(document.getElementById("tables").textContent);
  const tip = document.getElementById("tip"), prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme || (prefersDark.matches ? "dark" : "light");
  const boxes = [...document.querySelectorAll("#choose input")];

  function choose() {
    const hidden = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    document.querySelectorAll(".grid [data-method], .chart [data-method]").forEach((part) => {
      part.toggleAttribute("hidden", hidden.has(part.dataset.method));
    });
  }

  function rowsOf(name) {
    const { columns, rows } = tables[name];
    return rows.map((row) => Object.fromEntries(columns.map((key, place) => [key, row[place]])));
  }

  function csv(name) {
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
    };
    return [tables[name].columns, ...tables[name].rows].map((line) => line.map(cell).join(",")).join("\n") + "\n";
  }

  // The chart as a file of its own: with the colours that variables have now, and the names of its lines below.
  function drawing(name) {
    const svg = document.querySelector(`[data-chart="${name}"] svg`).cloneNode(true), style = getComputedStyle(root);
    svg.querySelectorAll("[hidden]").forEach((part) => part.remove());
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const add = (tag, attributes, text = "") => {
      const part = document.createElementNS(svg.namespaceURI, tag);
      Object.entries(attributes).forEach(([key, value]) => part.setAttribute(key, value));
      part.textContent = text;
      svg.append(part);
      return part;
    };
    const lines = [...document.querySelectorAll("#choose label")].filter((label) =>
      [...svg.querySelectorAll("[data-method]")].some((part) => part.dataset.method === label.control.value));
    lines.forEach((label, place) => {
      const y = height + 18 * place + 12, line = getComputedStyle(label.querySelector("line"));
      add("line", { x1: 12, x2: 58, y1: y - 4, y2: y - 4, stroke: line.stroke, "stroke-width": 3, "stroke-dasharray": line.strokeDasharray });
      add("text", { x: 66, y, "font-size": "12px", fill: "var(--ink)" }, label.control.value);
    });
    const size = { width, height: height + 18 * lines.length + 6 };
    Object.entries({ ...size, viewBox: `0 0 ${size.width} ${size.height}`, "font-family": style.fontFamily }).forEach(([key, value]) => svg.setAttribute(key, value));
    svg.prepend(add("rect", { ...size, fill: "var(--bg)" }));
    const text = new XMLSerializer().serializeToString(svg).replace(/var\((--[\w-]+)\)/g, (_, variable) => style.getPropertyValue(variable).trim());
    return { ...size, blob: new Blob([text], { type: "image/svg+xml" }) };
  }

  async function painted({ width, height, blob }) {
    const image = new Image(), canvas = document.createElement("canvas"), address = URL.createObjectURL(blob);
    image.src = address;
    await image.decode();
    URL.revokeObjectURL(address);
    [canvas.width, canvas.height] = [2 * width, 2 * height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  }

  const makers = {
    csv: (table) => new Blob([csv(table)], { type: "text/csv" }),
    json: (table) => new Blob([JSON.stringify(rowsOf(table), null, 1) + "\n"], { type: "application/json" }),
    svg: (table, chart) => drawing(chart).blob,
    png: (table, chart) => painted(drawing(chart)),
  };

  async function download(button) {
    const { table, kind } = button.dataset, chart = button.closest("figure")?.querySelector("[data-chart]").dataset.chart;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await makers[kind](table, chart));
    link.download = (kind === "svg" || kind === "png" ? chart : table) + "." + kind;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function showTable(button) {
    const place = button.parentElement, shown = place.querySelector(".data");
    button.setAttribute("aria-expanded", String(!shown));
    if (shown) { shown.remove(); return; }
    const { columns, rows } = tables[button.dataset.table], most = 200;
    const box = document.createElement("div"), table = box.appendChild(document.createElement("table"));
    Object.assign(box, { className: "data scroll", tabIndex: 0, role: "region", ariaLabel: `Table ${button.dataset.table}` });
    table.className = "figures";
    const add = (part, cells, tag) => {
      const row = part.insertRow();
      cells.forEach((cell) => { row.appendChild(document.createElement(tag)).textContent = cell ?? "–"; });
    };
    add(table.createTHead(), columns, "th");
    const body = table.createTBody();
    rows.slice(0, most).forEach((row) => add(body, row, "td"));
    if (rows.length > most) box.append(`the first ${most} of ${rows.length} rows; the files have all of them`);
    place.append(box);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "theme") root.dataset.theme = theme() === "dark" ? "light" : "dark";
    else if (button.dataset.choose) {
      boxes.forEach((box) => { box.checked = button.dataset.choose === "all"; });
      choose();
    } else if (button.dataset.kind === "table") showTable(button);
    else if (button.dataset.table) download(button);
  });

  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest("[data-tip]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const { clientX: x, clientY: y } = event, right = innerWidth - tip.offsetWidth - 8;
    tip.style.left = Math.max(8, Math.min(x + 12, right)) + "px";
    tip.style.top = (y > tip.offsetHeight + 24 ? y - tip.offsetHeight - 12 : y + 16) + "px";
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  const closed = [];
  addEventListener("beforeprint", () => {
    closed.push(...document.querySelectorAll("details:not([open])"));
    closed.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => closed.splice(0).forEach((part) => { part.open = false; }));

  boxes.forEach((box) => box.addEventListener("change", choose));
  choose();
  root.dataset.drawn = String(document.querySelectorAll(".chart svg").length);
  root.dataset.milliseconds = String(Math.round(performance.now()));
})();
