"use strict";
/* Where the bytes went: by method, by round and by client of one run, who took part, and what the final model is worth. */

Page.partsKey = () => Page.el("ul", { class: "key" }, ...Page.PARTS.map(([, text], i) =>
  Page.el("li", {}, Page.el("i", { style: `background:var(--p${i})` }), text)));

Page.partScale = { domain: Page.PARTS.map(([, text]) => text), range: Page.PARTS.map((_, i) => `var(--p${i})`), legend: false };

Page.plain = (width, height, more) => Plot.plot({
  width, height, style: { background: "transparent", color: "var(--ink)", fontSize: "11px" }, ...more,
});

Page.byMethod = () => {
  const rows = () => Page.report.groups.filter((group) => group.totals && !Page.state.hidden.has(group.label));
  return Page.figure({
    name: "bytes-by-method", title: "Bytes of a run", wide: true, legend: Page.legendOfParts,
    rows: () => [["series", ...Page.PARTS.map(([key]) => `${key}_bytes`)], ...rows().map((group) => [group.label, ...Page.PARTS.map(([key]) => group.totals[key])])],
    draw: (place, width) => {
      const shown = rows(), share = Page.state.share;
      if (!shown.length) { place.replaceChildren(Page.el("p", { class: "note" }, "No ledger to show.")); return; }
      const sums = new Map(shown.map((group) => [group.label, d3.sum(Object.values(group.totals))]));
      const data = shown.flatMap((group) => Page.PARTS.map(([key, text]) => ({ label: group.label, part: text, bytes: group.totals[key], value: group.totals[key] / (share ? sums.get(group.label) : 1) })));
      const longest = d3.max(shown, (group) => group.label.length);
      const margin = Math.min(16 + 6.4 * longest, width * 0.34);
      const name = (label) => (6.4 * label.length > margin ? `${label.slice(0, Math.floor(margin / 6.4) - 2)}…` : label);
      place.replaceChildren(Page.partsKey(), Page.plain(width, 46 + 34 * shown.length, {
        marginLeft: margin, marginRight: 64, color: Page.partScale,
        x: { label: null, tickFormat: share ? "%" : Page.ticks("B"), ticks: Math.max(3, width / 110), grid: false, domain: share ? [0, 1] : undefined },
        y: { label: null, domain: shown.map((group) => group.label), tickFormat: name, tickSize: 0 },
        marks: [Plot.gridX({ stroke: "var(--grid)", strokeOpacity: 1 }),
          Plot.barX(data, { x: "value", y: "label", fill: "part", insetTop: 3, insetBottom: 3, order: Page.partScale.domain, title: (row) => `${row.label}\n${row.part}: ${Page.amount(row.bytes, "B")} (${Page.percent(row.bytes / sums.get(row.label))})`, tip: true }),
          Plot.text(shown, { x: (group) => (share ? 1 : sums.get(group.label)), y: "label", text: (group) => Page.amount(sums.get(group.label), "B"), textAnchor: "start", dx: 6, fill: "var(--ink)" })],
      }));
    },
  });
};

/** Stacked parts against rounds or clients. binned: {starts, each: [part][bin]}. */
Page.stacked = ({ name, title, hint, binned, count, label }) => {
  const rows = binned.starts.flatMap((start, i) => Page.PARTS.map(([, text], part) => ({
    from: start, to: binned.starts[i + 1] ?? count, part: text, bytes: binned.each[part][i],
  })));
  return Page.figure({
    name, title, hint, legend: Page.legendOfParts,
    rows: () => [[label.toLowerCase(), ...Page.PARTS.map(([key]) => `${key}_bytes`)], ...binned.starts.map((start, i) => [start, ...binned.each.map((part) => part[i])])],
    draw: (place, width) => place.replaceChildren(Page.partsKey(), Page.plain(width, 230, {
      marginLeft: 54, marginRight: 12, marginBottom: 36, color: Page.partScale,
      x: { label, labelAnchor: "center", labelArrow: "none", domain: [0, count], ticks: Math.max(3, Math.min(width / 80, count)), tickFormat: Page.ticks("") },
      y: { label: null, tickFormat: Page.ticks("B"), ticks: 5 },
      marks: [Plot.gridY({ stroke: "var(--grid)", strokeOpacity: 1, ticks: 5 }),
        Plot.rectY(rows, { x1: "from", x2: "to", y: "bytes", fill: "part", order: Page.partScale.domain, shapeRendering: "crispEdges", insetRight: width / binned.starts.length > 5 ? 1 : 0,
          title: (row) => `${label} ${row.to - row.from > 1 ? `${row.from}–${row.to - 1}` : row.from}\n${row.part}: ${Page.amount(row.bytes, "B")}`, tip: true })],
    })),
  });
};

Page.presence = (run) => {
  const { clients, rounds, rows, count } = run.presence;
  const share = (text, i) => parseInt(text[i], 36) / 35;
  const cells = rows.flatMap((text) => Array.from(text, (_, i) => share(text, i)));
  const total = (starts, all) => [...starts, all];
  const edges = { x: total(rounds, count.rounds), y: total(clients, count.clients) };
  return Page.figure({
    name: "presence", title: "Who took part", wide: true, legend: () => [],
    hint: clients.length < count.clients || rounds.length < count.rounds ? "binned: the share of a cell's clients and rounds" : "one cell a client and round",
    rows: () => [["client", "round", "share"], ...rows.flatMap((text, row) => Array.from(text, (_, i) => [clients[row], rounds[i], +share(text, i).toFixed(3)]))],
    draw: (place, width) => {
      const paint = Page.paint(Page.theme());
      const plot = Page.plain(width, Math.max(110, Math.min(300, 60 + 11 * clients.length)), {
        marginLeft: 54, marginRight: 12, marginBottom: 36, color: { type: "linear", domain: [0, 1], range: [paint["--heat0"], paint["--heat1"]] },
        x: { label: "Round", labelAnchor: "center", labelArrow: "none", domain: [0, count.rounds], ticks: Math.max(3, width / 90), tickFormat: Page.ticks("") },
        y: { label: null, domain: [count.clients, 0], ticks: Math.min(6, count.clients), tickFormat: (value) => (Number.isInteger(value) ? d3.format("~s")(value) : "") },
        marks: [Plot.raster(cells, { width: rounds.length, height: clients.length, x1: 0, y1: 0, x2: count.rounds, y2: count.clients, imageRendering: "pixelated" })],
      });
      const caption = Page.el("div", { class: "hint", "aria-live": "polite" }, " ");
      place.replaceChildren(plot, caption);
      const x = plot.scale("x"), y = plot.scale("y");
      plot.setAttribute("role", "img");
      plot.setAttribute("aria-label", `Who took part: ${count.clients} clients, ${count.rounds} rounds`);
      plot.addEventListener("pointerleave", () => { caption.textContent = " "; });
      plot.addEventListener("pointermove", (event) => {
        const [px, py] = d3.pointer(event, plot);
        const column = d3.bisectRight(edges.x, x.invert(px)) - 1, row = d3.bisectRight(edges.y, y.invert(py)) - 1;
        if (!(row in rows) || !(column in rounds)) { caption.textContent = " "; return; }
        const span = (starts, i, all, one) => { const last = (starts[i + 1] ?? all) - 1; return last > starts[i] ? `${one}s ${starts[i]}–${last}` : `${one} ${starts[i]}`; };
        caption.textContent = `${span(clients, row, count.clients, "Client")}, ${span(rounds, column, count.rounds, "round")}: ${Page.percent(+share(rows[row], column).toFixed(2))}`;
      });
    },
  });
};

/** The final model at every client: bars where there are few, dots where there are many. */
Page.atClients = (run, key, title, kind) => {
  const { size } = run.final;
  const data = run.final[key].map((value, client) => ({ client, value, size: size[client] }));
  const known = data.filter((row) => row.value != null);
  const mean = d3.sum(known, (row) => row.value * row.size) / d3.sum(known, (row) => row.size);
  const format = kind === "accuracy" ? Page.percent : Page.number;
  return Page.figure({
    name: `client-${key}`, title, hint: `all samples: ${format(mean)}; clients: ${format(d3.min(known, (row) => row.value))} to ${format(d3.max(known, (row) => row.value))}`, legend: () => [],
    rows: () => [["client", "samples", key], ...data.map((row) => [row.client, row.size, row.value])],
    draw: (place, width) => {
      const title = (row) => `Client ${row.client}\n${format(row.value)}\n${d3.format(",")(row.size)} samples`;
      const few = data.length <= 80;
      const marks = few
        ? Plot.rectY(data, { x1: "client", x2: (row) => row.client + 1, y: "value", fill: "var(--accent)", fillOpacity: 0.75, insetLeft: 1, insetRight: 1, title, tip: true })
        : Plot.dot(data, { x: "client", y: "value", fill: "var(--accent)", fillOpacity: 0.6, r: 2.2, title, tip: true });
      place.replaceChildren(Page.plain(width, 220, {
        marginLeft: 54, marginRight: 12, marginBottom: 36,
        x: { label: "Client", labelAnchor: "center", labelArrow: "none", domain: [0, data.length], ticks: Math.max(3, Math.min(width / 70, data.length)), tickFormat: Page.ticks("") },
        y: { label: null, ticks: 5, zero: few && kind !== "accuracy", domain: few && kind === "accuracy" ? [0, 1] : undefined, tickFormat: kind === "accuracy" ? (value) => Page.percent(value) : Page.tick },
        marks: [Plot.gridY({ stroke: "var(--grid)", strokeOpacity: 1, ticks: 5 }), marks, Plot.ruleY([mean], { stroke: "var(--ink)", strokeDasharray: "4 3" })],
      }));
    },
  });
};
