"use strict";
/* What every part of the page uses: elements made of text (never of HTML), numbers as text, colours, the state. */
const Page = {
  report: JSON.parse(document.getElementById("data").textContent),
  state: { axis: null, xlog: false, ylog: true, hidden: new Set(), intervals: true, theory: true, share: false, run: null, open: { toml: false, manifest: true } },
  COLOURS: 8,
  SYMBOLS: ["circle", "square", "triangle", "diamond2", "star", "cross", "wye", "hexagon"],
  DASHES: ["", "7 3", "2 3", "8 3 2 3"],
  PARTS: [["up", "Up"], ["down", "Down"], ["first", "First models"], ["catch_up", "Catch-up"], ["overhead", "Overhead"]],
};

/** An element with attributes and children; strings become text nodes, functions listeners. */
Page.el = (tag, given = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
};

Page.byId = (id) => document.getElementById(id);

/** A number with so many digits, fit for a table. */
Page.number = (value, digits = 4) => {
  if (value == null) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return d3.format(`.${digits - 1}~e`)(value);
  if (size < 1e-4) return d3.format(`.${Math.min(digits, 3) - 1}~e`)(value);
  return d3.format(size >= 100 && digits > 2 ? ",.0f" : `.${digits}~r`)(value);
};

/** A quantity of an axis or part: bytes and bits with a decimal unit, seconds, or a plain count. */
Page.amount = (value, unit, digits = 3) => {
  if (value == null) return "–";
  if (unit === "s") return value >= 7200 ? `${d3.format(".3~g")(value / 3600)} h` : `${d3.format(".3~g")(value)} s`;
  if (!unit) return d3.format(",.0f")(value);
  const found = d3.format(`.${digits}~s`)(value).match(/^(.*?)([a-zµ]*)$/i);
  return `${found[1]}\u00a0${found[2]}${unit}`;
};

Page.percent = (value, digits = 4) => (value == null ? "–" : `${d3.format(`.${digits}~r`)(100 * value)} %`);

/** Labels of ticks: with a unit, "1.5 MB"; without, "1.5k". */
Page.ticks = (unit) => (value) => (unit && unit !== "s" && value ? Page.amount(value, unit) : d3.format("~s")(value));

/** How a measure's values read. */
Page.measured = (measure, value, digits = 4) => (measure.kind === "accuracy" ? Page.percent(value, digits) : Page.number(value, digits));

Page.colour = (group) => `var(--s${group % Page.COLOURS})`;
Page.dash = (group) => Page.DASHES[Math.floor(group / Page.COLOURS) % Page.DASHES.length];
Page.symbol = (group) => Page.SYMBOLS[group % Page.SYMBOLS.length];
Page.shapes = {
  circle: d3.symbolCircle, square: d3.symbolSquare, triangle: d3.symbolTriangle, diamond2: d3.symbolDiamond2,
  star: d3.symbolStar, cross: d3.symbolCross, wye: d3.symbolWye, hexagon: d3.symbolDiamond,
};

/** The line and the mark of a group, as they are in the charts. */
Page.mark = (group) => {
  const svg = d3.create("svg").attr("width", 30).attr("height", 14).attr("aria-hidden", "true");
  svg.append("line").attr("x1", 1).attr("x2", 29).attr("y1", 7).attr("y2", 7).attr("stroke", Page.colour(group))
    .attr("stroke-width", 2.4).attr("stroke-dasharray", Page.dash(group) || null);
  svg.append("path").attr("transform", "translate(15,7)").attr("fill", Page.colour(group))
    .attr("d", d3.symbol(Page.shapes[Page.symbol(group)], 44)());
  return svg.node();
};

/** Values of the style sheet for one theme, for what is painted or leaves the page. */
Page.paint = (theme) => {
  const holder = Page.el("div", { "data-theme": theme, hidden: true });
  document.body.append(holder);
  const style = getComputedStyle(holder);
  const read = (name) => style.getPropertyValue(name).trim();
  const names = ["--ink", "--soft", "--card", "--line", "--grid", "--heat0", "--heat1", "--accent"];
  for (let i = 0; i < Page.COLOURS; i++) names.push(`--s${i}`);
  Page.PARTS.forEach((_, i) => names.push(`--p${i}`));
  const found = Object.fromEntries(names.map((name) => [name, read(name)]));
  holder.remove();
  return found;
};

Page.theme = () => document.documentElement.dataset.theme;

/** A group of radio buttons in one row. choices: [value, text] pairs. */
Page.segments = (name, title, choices, chosen, choose) =>
  Page.el("fieldset", {}, Page.el("legend", {}, title),
    Page.el("div", { class: "segments" }, ...choices.map(([value, text]) =>
      Page.el("label", {}, Page.el("input", { type: "radio", name, value, checked: value === chosen, change: () => choose(value) }),
        Page.el("span", {}, text)))));

Page.check = (text, on, turn) =>
  Page.el("label", { class: "check" }, Page.el("input", { type: "checkbox", checked: on, change: (event) => turn(event.target.checked) }), text);

/** A table. columns: {name, cell(row), class}; the first one heads its row. On a narrow screen each row is a card. */
Page.table = (columns, rows, label) =>
  Page.el("div", { class: "panel scroll" }, Page.el("table", { class: "data stack", "aria-label": label },
    Page.el("thead", {}, Page.el("tr", {}, ...columns.map((column) => Page.el("th", { scope: "col" }, column.name)))),
    Page.el("tbody", {}, ...rows.map((row) => Page.el("tr", {}, ...columns.map((column, i) =>
      Page.el(i ? "td" : "th", i ? { "data-name": column.name } : { scope: "row" }, ...[column.cell(row)].flat())))))));
