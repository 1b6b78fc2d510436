"use strict";
/* SVG, PNG and CSV of a figure, in light colours whatever the page's: for papers. */

Page.save = (name, blob) => {
  const link = Page.el("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};

/** A figure's SVG that stands alone: variables resolved, a title and a legend above it. */
Page.standalone = (svg, title, legend) => {
  const paint = Page.paint("light");
  const width = +svg.getAttribute("width"), height = +svg.getAttribute("height");
  const outer = d3.create("svg").attr("xmlns", "http://www.w3.org/2000/svg").attr("font-family", "Helvetica, Arial, sans-serif")
    .attr("font-size", 11).attr("fill", paint["--ink"]).attr("color", paint["--ink"]);
  outer.append("text").attr("x", 8).attr("y", 18).attr("font-size", 13).attr("font-weight", 600).text(title);
  let x = 8, y = 36;
  for (const [text, mark] of legend) {
    const room = 38 + 6.2 * text.length;
    if (x > 8 && x + room > width) [x, y] = [8, y + 18];
    const part = outer.append("g").attr("transform", `translate(${x},${y - 11})`);
    part.node().append(mark);
    part.append("text").attr("x", 34).attr("y", 11).text(text);
    x += room + 8;
  }
  const inner = svg.cloneNode(true);
  inner.querySelectorAll(".cursor").forEach((node) => node.remove());
  inner.setAttribute("y", y + 8);
  outer.node().append(inner);
  outer.attr("viewBox", `0 0 ${width} ${height + y + 8}`).attr("width", width).attr("height", height + y + 8);
  outer.insert("rect", ":first-child").attr("width", "100%").attr("height", "100%").attr("fill", "#fff");
  const text = new XMLSerializer().serializeToString(outer.node());
  return {
    text: text.replace(/var\((--[\w-]+)\)/g, (whole, name) => paint[name] ?? (name === "--plot-background" ? "#fff" : "currentColor")),
    width, height: height + y + 8,
  };
};

Page.saveSvg = (name, made) => Page.save(`${name}.svg`, new Blob([made.text], { type: "image/svg+xml" }));

/** Three pixels a unit: about 300 dpi at the width of a column. */
Page.savePng = (name, made, scale = 3) => {
  const image = new Image();
  image.onload = () => {
    const canvas = Page.el("canvas", { width: made.width * scale, height: made.height * scale });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => Page.save(`${name}.png`, blob), "image/png");
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(made.text)}`;
};

/** Rows of values as CSV. A text that a spreadsheet would take for a formula gets an apostrophe. */
Page.csv = (rows) => rows.map((row) => row.map((value) => {
  if (typeof value === "number" || value == null) return value ?? "";
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}).join(",")).join("\r\n") + "\r\n";

Page.saveCsv = (name, rows) => Page.save(`${name}.csv`, new Blob([Page.csv(rows)], { type: "text/csv" }));

/** A figure: caption with what it can be saved as, a place to draw in, and what draws there: draw(place, width). */
Page.figure = ({ name, title, hint, wide, draw, rows, legend }) => {
  const place = Page.el("div", { class: "canvas" });
  const legends = () => (legend ?? Page.legendOfGroups)();
  const made = () => Page.standalone(place.querySelector("svg"), title, legends());
  const button = (kind, save) => Page.el("button", { type: "button", click: save, "aria-label": `Save ${title} as ${kind}` }, kind);
  const figure = Page.el("figure", { class: wide ? "wide" : "", "data-name": name },
    Page.el("figcaption", {}, Page.el("h3", {}, title), hint ? Page.el("span", { class: "hint" }, hint) : null, Page.el("span", { class: "space" }),
      button("SVG", () => Page.saveSvg(name, made())), button("PNG", () => Page.savePng(name, made())),
      button("CSV", () => Page.saveCsv(name, rows()))),
    place);
  let width = 0;
  figure.redraw = () => { if (width) draw(place, width); };
  figure.fit = () => {
    const now = Math.floor(place.clientWidth);
    if (now && now !== width) { width = now; figure.redraw(); }
  };
  new ResizeObserver(figure.fit).observe(place);
  return figure;
};

Page.shown = () => Page.report.groups.map((group, i) => ({ ...group, i })).filter((group) => !Page.state.hidden.has(group.label));
Page.legendOfGroups = () => Page.shown().map((group) => [group.label, Page.mark(group.i)]);
Page.legendOfParts = () => Page.PARTS.map(([, text], i) =>
  [text, d3.create("svg:rect").attr("x", 16).attr("width", 12).attr("height", 12).attr("fill", `var(--p${i})`).node()]);
