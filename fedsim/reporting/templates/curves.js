"use strict";
/* A measure against rounds, bits, bytes or seconds: lines, 95 % intervals, theory, and a readout under the pointer. */

/** Whether a measure's axis is logarithmic; an accuracy's never is. */
Page.ylog = (measure) => Page.state.ylog && measure.kind !== "accuracy";

/** The points of a group that its scales can show. */
Page.points = (group, measure, axis) => {
  const curve = group.curves[measure.key]?.[axis];
  if (!curve) return [];
  const { xlog } = Page.state, ylog = Page.ylog(measure);
  return curve.x.map((x, i) => ({ x, mean: curve.mean[i], half: curve.half?.[i] ?? null, n: curve.n }))
    .filter((point) => point.mean != null && (!xlog || point.x > 0) && (!ylog || point.mean > 0));
};

/** The predicted curve of a group: known for the excess loss, round by round. */
Page.predicted = (group, measure, axis) => {
  const promise = group.theory;
  if (!Page.state.theory || !promise?.curve || measure.key !== promise.measure || axis !== "rounds") return [];
  return promise.curve.x.map((x, i) => ({ x, mean: promise.curve.y[i] })).filter((point) => !Page.state.xlog || point.x > 0);
};

/** The range of the vertical axis. Theory may reach beyond it and is cut: it can be far above what happens. */
Page.range = (series, ylog) => {
  const means = series.flatMap((one) => one.points.map((point) => point.mean));
  let [low, high] = d3.extent(means);
  if (ylog) return [low / 1.25, high * 1.25];
  const ends = series.flatMap((one) => one.points.flatMap((point) => [point.mean - (point.half ?? 0), point.mean + (point.half ?? 0)]));
  const room = (high - low) * 0.25 || Math.abs(high) * 0.1 || 1;
  low = Math.max(d3.min(ends), low - room);
  high = Math.min(d3.max(ends), high + room);
  const edge = low === high ? room : (high - low) * 0.04;
  return [low - edge, high + edge];
};

/** Places of at most eight marks along a line, apart from those of the other lines. */
Page.marked = (points, group) => {
  const every = Math.max(1, Math.ceil(points.length / 8));
  return points.filter((_, i) => i % every === group % every || points.length === 1);
};

Page.drawCurves = (measure) => (place, width) => {
  const axis = Page.report.axes.find((one) => one.key === Page.state.axis);
  const series = Page.shown().map((group) => ({ group, points: Page.points(group, measure, axis.key), theory: Page.predicted(group, measure, axis.key) }))
    .filter((one) => one.points.length);
  if (!series.length) {
    place.replaceChildren(Page.el("p", { class: "note" }, Page.shown().length ? "Nothing to draw on these axes: values are missing, or not positive." : "Every series is hidden."));
    return;
  }
  const ylog = Page.ylog(measure), domain = Page.range(series, ylog);
  const floor = ylog ? domain[0] / 10 : -Infinity;
  const marks = [];
  for (const { group, points, theory } of series) {
    const colour = Page.colour(group.i), dash = Page.dash(group.i);
    if (Page.state.intervals && points.some((point) => point.half != null)) {
      marks.push(Plot.areaY(points, { x: "x", y1: (point) => Math.max(point.mean - (point.half ?? 0), floor), y2: (point) => point.mean + (point.half ?? 0), fill: colour, fillOpacity: 0.16, clip: true }));
    }
    if (theory.length) marks.push(Plot.lineY(theory, { x: "x", y: "mean", stroke: colour, strokeWidth: 1.3, strokeDasharray: "1 4", clip: true }));
    marks.push(Plot.lineY(points, { x: "x", y: "mean", stroke: colour, strokeWidth: 2, strokeDasharray: dash || undefined }));
    marks.push(Plot.dot(Page.marked(points, group.i), { x: "x", y: "mean", fill: colour, symbol: Page.symbol(group.i), r: 3.4 }));
  }
  const format = measure.kind === "accuracy" ? Page.percent : Page.tick;
  const yticks = ylog ? Page.decades(domain) : d3.ticks(...domain, 6);
  const along = d3.extent(series.flatMap((one) => one.points.map((point) => point.x)));
  const xticks = Page.state.xlog ? Page.decades(along) : d3.ticks(...along, Math.max(3, Math.floor(width / 95)));
  const plot = Plot.plot({
    width, height: Math.round(Math.max(230, Math.min(width * 0.56, 400))), marginLeft: 56, marginRight: 18, marginBottom: 38,
    style: { background: "transparent", color: "var(--ink)", fontSize: "11px" },
    x: { type: Page.state.xlog ? "log" : "linear", domain: along[0] === along[1] ? undefined : along },
    y: { type: ylog ? "log" : "linear", domain },
    marks: [
      Plot.gridY(yticks, { stroke: "var(--grid)", strokeOpacity: 1 }),
      // Plot would leave out labels of a logarithmic axis: as `text`, all of them are shown.
      Plot.axisY(yticks, { label: null, text: (value) => format(value), tickSize: 0 }),
      Plot.axisX(xticks, { label: axis.label, labelArrow: "none", labelAnchor: "center", text: Page.ticks(axis.unit), tickSize: 4 }),
      ...marks,
    ],
  });
  place.replaceChildren(plot);
  Page.readout(place, plot, series, measure, axis);
};

Page.tick = (value) => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? d3.format(".3~e")(value) : d3.format(".4~g")(value));

/** Ticks of a logarithmic axis: powers of ten, and 2 and 5 times them where there are few decades. */
Page.decades = ([low, high]) => {
  const span = Math.log10(high / low), found = [];
  const steps = span > 3 ? [1] : span > 0.8 ? [1, 2, 5] : null;
  if (!steps) return d3.ticks(low, high, 6);
  const apart = Math.max(1, Math.ceil(span / 8));
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    if (power % apart) continue;
    for (const step of steps) {
      const value = +`${step}e${power}`;
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
};

/** What every line comes to at one place: by pointer, touch or arrow keys. */
Page.readout = (place, plot, series, measure, axis) => {
  const svg = d3.select(plot).select("svg").empty() ? d3.select(plot) : d3.select(plot).select("svg");
  const x = plot.scale("x"), y = plot.scale("y");
  const cursor = svg.append("g").attr("class", "cursor").attr("visibility", "hidden");
  const height = +svg.attr("height");
  const line = cursor.append("line").attr("y1", 12).attr("y2", height - 36).attr("stroke", "var(--soft)").attr("stroke-dasharray", "3 3");
  const dots = series.map(({ group }) => cursor.append("circle").attr("r", 4).attr("fill", Page.colour(group.i)).attr("stroke", "var(--card)").attr("stroke-width", 1.5));
  const box = Page.el("div", { class: "readout", hidden: true });
  const spoken = Page.el("div", { class: "skip", "aria-live": "polite" });
  place.append(box, spoken);
  const [from, to] = x.range;
  let at = null;
  const hide = () => { at = null; box.hidden = true; cursor.attr("visibility", "hidden"); };
  const show = (pixel, speak) => {
    at = Math.max(from, Math.min(to, pixel));
    const wanted = x.invert(at), rows = [];
    series.forEach(({ group, points }, i) => {
      const point = points[d3.bisector((one) => one.x).center(points, wanted)];
      const near = wanted <= points[points.length - 1].x * 1.02 || points.length === 1;
      dots[i].attr("visibility", near ? "inherit" : "hidden").attr("cx", x.apply(point.x)).attr("cy", y.apply(point.mean));
      if (near) rows.push([group, point]);
    });
    rows.sort((a, b) => (measure.kind === "accuracy" ? b[1].mean - a[1].mean : a[1].mean - b[1].mean));
    line.attr("x1", at).attr("x2", at);
    cursor.attr("visibility", "visible");
    const where = `${axis.label.toLowerCase()}: ${Page.amount(wanted, axis.unit)}`;
    const said = ([group, point]) => Page.measured(measure, point.mean) + (point.half == null ? "" : ` ± ${Page.measured(measure, point.half, 2)}`);
    box.replaceChildren(Page.el("strong", {}, where), Page.el("table", {}, ...rows.map(([group, point]) => Page.el("tr", {},
      Page.el("td", {}, Page.el("i", { style: `background:${Page.colour(group.i)}` })), Page.el("td", {}, group.label), Page.el("td", {}, said([group, point]))))));
    box.hidden = false;
    const left = at > (from + to) / 2 ? at - box.offsetWidth - 14 : at + 14;
    box.style.left = `${Math.max(0, Math.min(left, place.clientWidth - box.offsetWidth))}px`;
    if (speak) spoken.textContent = [where, ...rows.map((row) => `${row[0].label} ${said(row)}`)].join("; ");
  };
  const pixel = (event) => d3.pointer(event, svg.node())[0];
  svg.on("pointermove", (event) => show(pixel(event))).on("pointerleave", hide);
  const figure = svg.node();
  figure.setAttribute("tabindex", "0");
  figure.setAttribute("role", "group");
  figure.setAttribute("aria-roledescription", "chart");
  figure.setAttribute("aria-label", `${measure.label} against ${axis.label.toLowerCase()}, ${series.length} series; arrow keys read values`);
  svg.on("blur", hide).on("keydown", (event) => {
    const step = (to - from) / (event.shiftKey ? 10 : 50);
    const moves = { ArrowLeft: (at ?? from) - step, ArrowRight: at == null ? from : at + step, Home: from, End: to };
    if (event.key === "Escape") hide();
    else if (event.key in moves) { event.preventDefault(); show(moves[event.key], true); }
  });
};

/** The rows of a chart, as they are shown: mean and interval of every visible series. */
Page.curveRows = (measure) => {
  const axis = Page.state.axis;
  const rows = Page.shown().flatMap((group) => {
    const curve = group.curves[measure.key]?.[axis];
    return !curve ? [] : curve.x.map((x, i) => {
      const half = curve.half?.[i] ?? null;
      return [group.label, x, curve.mean[i], half == null ? null : curve.mean[i] - half, half == null ? null : curve.mean[i] + half, curve.n];
    });
  });
  return [["series", axis, measure.key, "low_95", "high_95", "seeds"], ...rows];
};
