"use strict";
/* The page put together: cards, table, toolbar, charts, one run in detail; and, while a run goes, its news. */

Page.series = (label, i) => [Page.el("i", { class: "swatch", style: `background:${Page.colour(i)}` }), label];

Page.value = (interval, text) =>
  !interval ? ["–"] : [text(interval[0]), interval[1] == null ? null : Page.el("small", {}, `± ${text(interval[1], 2)}`)];

Page.drawCards = () => Page.byId("cards").replaceChildren(...Page.report.cards.map(({ value, text }) =>
  Page.el("div", { class: "card" }, Page.el("b", {}, value), Page.el("span", {}, text))));

Page.drawSummary = () => {
  const { groups, measures, target } = Page.report;
  const columns = [{ name: "Method", cell: (group) => Page.series(group.label, group.i) },
    { name: "Seeds", cell: (group) => [`${group.runs.length}`, group.unfinished ? Page.el("small", {}, `${group.unfinished} unfinished`) : null] }];
  for (const measure of measures.filter((one) => one.summary)) {
    columns.push({ name: measure.label, cell: (group) => Page.value(group.final[measure.key], (value, digits) => Page.measured(measure, value, digits)) });
  }
  columns.push({ name: "Rounds", cell: (group) => Page.amount(group.rounds) },
    { name: "Up", cell: (group) => Page.value(group.sent.up, (value, digits) => Page.amount(value, "B", digits)) },
    { name: "Down", cell: (group) => Page.value(group.sent.down, (value, digits) => Page.amount(value, "B", digits)) });
  if (target) {
    const most = d3.max(groups, (group) => group.reach?.bytes?.[0] ?? 0), least = d3.min(groups.filter((group) => group.reach?.bytes), (group) => group.reach.bytes[0]);
    for (const axis of Page.report.axes.filter((one) => one.reach)) {
      columns.push({ name: `${axis.short} to target`, cell: (group) => {
        const cost = group.reach?.[axis.key];
        if (!cost) return [axis.key === "bytes" ? "not reached" : "–"];
        const found = Page.value(cost, (value, digits) => Page.amount(value, axis.unit, digits));
        if (axis.key !== "bytes") return found;
        const partly = group.reached[0] < group.reached[1] ? Page.el("small", {}, `${group.reached[0]} of ${group.reached[1]} seeds`) : null;
        return [Page.el("span", { class: cost[0] === least ? "best" : "" }, found[0]), found[1], partly, Page.el("span", { class: "meter", style: `width:${Math.max(2, (100 * cost[0]) / most)}%`, "aria-hidden": "true" })];
      } });
    }
  }
  Page.byId("summary").replaceChildren(Page.table(columns, groups.map((group, i) => ({ ...group, i })), "Summary of the methods"));
  Page.byId("summary-hint").textContent = Page.report.hint;
};

Page.drawLegend = () => Page.byId("legend").replaceChildren(...Page.report.groups.map((group, i) => Page.el("button", {
  type: "button", "aria-pressed": String(!Page.state.hidden.has(group.label)),
  click: (event) => {
    const { hidden } = Page.state;
    if (!hidden.delete(group.label)) hidden.add(group.label);
    event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(group.label)));
    Page.redraw();
  },
}, Page.mark(i), group.label)));

Page.drawToolbar = () => {
  const { state, report } = Page;
  if (!report.axes.some((axis) => axis.key === state.axis)) state.axis = report.axes.some((axis) => axis.key === "bytes") ? "bytes" : report.axes[0].key;
  const scales = [["linear", "Linear"], ["log", "Log"]];
  const set = (name, value) => { state[name] = value; Page.redraw(); };
  Page.byId("toolbar").replaceChildren(
    Page.segments("axis", "Against", report.axes.map((axis) => [axis.key, axis.label]), state.axis, (value) => set("axis", value)),
    Page.segments("xscale", "x", scales, state.xlog ? "log" : "linear", (value) => set("xlog", value === "log")),
    Page.segments("yscale", "y", scales, state.ylog ? "log" : "linear", (value) => set("ylog", value === "log")),
    Page.check("95 % intervals", state.intervals, (on) => set("intervals", on)),
    ...(report.groups.some((group) => group.theory?.curve) ? [Page.check("Theory", state.theory, (on) => set("theory", on))] : []));
};

Page.drawFigures = () => {
  const { report } = Page;
  const shown = report.measures.filter((measure) => report.groups.some((group) => group.curves[measure.key]));
  Page.figures = shown.map((measure, i) => Page.figure({
    name: measure.key, title: measure.label, wide: i === 0, hint: measure.hint,
    draw: Page.drawCurves(measure), rows: () => Page.curveRows(measure),
  }));
  Page.byId("charts").replaceChildren(...(shown.length ? Page.figures : [Page.el("p", { class: "note" }, "No evaluation yet.")]));
  const method = Page.byMethod();
  Page.figures.push(method);
  const unit = Page.segments("share", "Show", [["bytes", "Bytes"], ["share", "Share of the total"]], Page.state.share ? "share" : "bytes", (value) => { Page.state.share = value === "share"; method.redraw(); });
  Page.byId("bytes").replaceChildren(Page.el("div", { class: "toolbar" }, unit), method);
  Page.figures.forEach((figure) => figure.fit());
};

Page.drawTheory = () => {
  const rows = Page.report.groups.map((group, i) => ({ ...group.theory, label: group.label, i })).filter((row) => row.reasons);
  if (rows.length && rows.every((row) => !row.theorem && row.rate == null)) {
    const reasons = [...new Set(rows.flatMap((row) => row.reasons))];
    Page.byId("theory").replaceChildren(Page.el("p", { class: "hint" }, `No theorem covers these experiments: ${reasons.join("; ")}.`));
    return;
  }
  Page.byId("theory").replaceChildren(...(!rows.length ? [] : [
    Page.el("h3", { class: "above" }, "What theory says"),
    Page.el("p", { class: "hint" }, "Dotted in the excess loss against rounds: the expected course, in the quadratic that touches the loss at its minimum; where none is known, (1 − rate)ᵏ times the first excess, plus the floor. Where no theorem holds at the step in use, nothing is promised."),
    Page.table([
      { name: "Method", cell: (row) => Page.series(row.label, row.i) },
      { name: "Theorem", cell: (row) => [row.theorem || "none", row.source ? Page.el("small", { class: "wrap" }, row.source) : null] },
      { name: "Rate, a round", cell: (row) => Page.number(row.rate, 3) },
      { name: "Floor of the loss", cell: (row) => (row.floor != null && row.floor < 1e-15 ? "0" : Page.number(row.floor, 3)) },
      { name: "Step in use", cell: (row) => [Page.number(row.step, 3), row.admissible ? Page.el("small", {}, `at most ${Page.number(row.admissible, 3)}`) : null] },
      { name: "Promised", cell: (row) => [row.covered ? "yes" : "no", ...row.reasons.map((reason) => Page.el("small", { class: "wrap" }, reason))] },
    ], rows, "What theory says about the methods")]));
};

Page.redraw = () => [...Page.figures, ...Page.details].forEach((figure) => figure.redraw());

Page.copy = (text) => {
  const button = Page.el("button", { type: "button", class: "quiet", click: async () => {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = Page.el("textarea", {}, text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  } }, "Copy");
  return button;
};

/** Something that can be folded, and stays as the reader left it. */
Page.foldable = (name, ...children) =>
  Page.el("details", { open: Page.state.open[name], toggle: (event) => { Page.state.open[name] = event.target.open; } }, ...children);

Page.drawRun = () => {
  const { report, state } = Page;
  const picker = Page.byId("run");
  if (state.run == null || state.run >= report.runs.length) state.run = 0;
  picker.replaceChildren(...report.runs.map((run, i) => Page.el("option", { value: i, selected: i === state.run }, run.label)));
  const run = report.runs[state.run];
  Page.byId("run-name").textContent = run.label;
  const figures = [];
  if (run.rounds) figures.push(
    Page.stacked({ name: "bytes-by-round", title: "Bytes of a round", hint: "sum over clients", binned: run.rounds, count: run.presence.count.rounds, label: "Round" }),
    Page.stacked({ name: "bytes-by-client", title: "Bytes of a client", hint: "over the run", binned: run.clients, count: run.presence.count.clients, label: "Client" }),
    Page.presence(run));
  if (run.final) figures.push(Page.atClients(run, "loss", "Loss of the final model, by client", "loss"));
  if (run.final?.accuracy) figures.push(Page.atClients(run, "accuracy", "Accuracy of the final model, by client", "accuracy"));
  Page.details = figures;
  const kinds = run.kinds && Page.table([
    { name: "Frames", cell: (row) => row.name }, { name: "Count", cell: (row) => Page.amount(row.frames) },
    { name: "Formula bits", cell: (row) => Page.amount(row.formula_bits, "bit") }, { name: "Payload", cell: (row) => Page.amount(row.payload_bytes, "B") },
    { name: "Overhead", cell: (row) => Page.amount(row.frame_bytes - row.payload_bytes, "B") }, { name: "On the wire", cell: (row) => Page.amount(row.frame_bytes, "B") },
  ], run.kinds, "Frames by direction and kind");
  Page.byId("one").replaceChildren(
    Page.el("div", { class: "charts" }, ...figures), ...run.notes.map((note) => Page.el("p", { class: "hint" }, note)), ...(kinds ? [kinds] : []),
    Page.el("div", { class: "panel" },
      Page.el("div", { class: "heading" }, Page.el("h3", {}, "Run it again"), Page.copy(run.command)), Page.el("pre", { class: "line" }, run.command),
      Page.foldable("toml", Page.el("summary", {}, "experiment.toml"),
        Page.el("div", { class: "toolbar" }, Page.copy(run.toml), Page.el("button", { type: "button", class: "quiet", click: () => Page.save("experiment.toml", new Blob([run.toml], { type: "application/toml" })) }, "Save")),
        Page.el("pre", { tabindex: "0" }, run.toml))),
    Page.el("div", { class: "panel" }, Page.foldable("manifest", Page.el("summary", {}, "Manifest"),
      Page.el("dl", {}, ...run.manifest.flatMap(([key, value]) => [Page.el("dt", {}, key), Page.el("dd", {}, value)])))));
  figures.forEach((figure) => figure.fit());
};

/** What the controls and charts depend on: while it stays, news are drawn into those that are there. */
Page.shape = ({ axes, measures, groups }) => JSON.stringify([axes, measures, groups.map((group) => [group.label, Object.keys(group.curves), !!group.theory])]);

Page.drawAll = () => {
  Page.byId("lead").textContent = Page.report.lead;
  Page.byId("notes").textContent = Page.report.notes.join(" ");
  Page.drawCards();
  Page.drawSummary();
  Page.drawTheory();
  const shape = Page.shape(Page.report);
  if (shape === Page.drawn) Page.figures.forEach((figure) => figure.redraw());
  else for (const draw of [Page.drawToolbar, Page.drawLegend, Page.drawFigures]) draw();
  Page.drawn = shape;
  Page.drawRun();
};

Page.setTheme = (theme) => {
  document.documentElement.dataset.theme = theme;
  const button = Page.byId("theme");
  button.setAttribute("aria-pressed", String(theme === "dark"));
  button.textContent = theme === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Use the ${theme === "dark" ? "light" : "dark"} theme`);
};

/** Asks the server of `fedsim watch` for news until the run has ended. Nothing of the kind in a page on disk. */
Page.follow = () => {
  const sign = Page.byId("live");
  sign.hidden = false;
  const say = (text, going) => { sign.textContent = text; sign.classList.toggle("stopped", !going); };
  say("live", true);
  const ask = async () => {
    try {
      const answer = await fetch("data.json", { cache: "no-cache" });
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      if (text !== Page.newest) { Page.newest = text; Page.report = JSON.parse(text); Page.drawAll(); }
      if (Page.report.ended) { say("the run has ended", false); return; }
      say("live", true);
    } catch { say("the server of this page is gone", false); return; }
    setTimeout(ask, 1000);
  };
  ask();
};

{
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  Page.setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { Page.setTheme(dark.matches ? "dark" : "light"); Page.redraw(); });
  Page.figures = [];
  Page.details = [];
  Page.byId("theme").addEventListener("click", () => { Page.setTheme(Page.theme() === "dark" ? "light" : "dark"); Page.redraw(); });
  Page.byId("print").addEventListener("click", () => window.print());
  Page.byId("run").addEventListener("change", (event) => { Page.state.run = +event.target.value; Page.drawRun(); });
  let before = null;
  window.addEventListener("beforeprint", () => { before = Page.theme(); Page.setTheme("light"); Page.redraw(); });
  window.addEventListener("afterprint", () => { Page.setTheme(before); Page.redraw(); });
  Page.drawAll();
  if (Page.report.live) Page.follow();
}
