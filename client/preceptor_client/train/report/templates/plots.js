"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set();
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  /* "--name" stands for a colour of the stylesheet, but for texts of the run: names, points and labels stay as they are. */
  const texts = new Set(["name", "text", "x", "y", "ticktext", "hovertemplate"]);
  const painted = (value) => {
    if (typeof value === "string") return value.startsWith("--") ? colour(value) : value;
    if (Array.isArray(value)) return value.map(painted);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, part]) => [key, texts.has(key) ? part : painted(part)]));
  };
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const axis = () => ({
    gridcolor: colour("--rule"), linecolor: colour("--rule"), zerolinecolor: colour("--quiet"), automargin: true,
  });
  function drawOne(figure, index) {
    const layout = painted(figure.layout);
    const traces = painted(figure.traces)
      .filter((trace) => !hidden.has(trace.name))
      .map((trace) => ({ ...trace, name: escaped(trace.name ?? ""), text: trace.text?.map(escaped) }));
    const hasBars = traces.some((trace) => trace.type === "bar");
    const isNamed = layout.showlegend ?? traces.length > 1;
    Plotly.react("plot-" + index, traces, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "x unified",
      font: { color: colour("--soft"), family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--rule"), font: { color: colour("--ink") } },
      margin: { l: 48, r: 14, t: isNamed ? 30 : 12, b: 38 }, showlegend: isNamed,
      legend: { orientation: "h", x: 0, y: 1.03, yanchor: "bottom", traceorder: "normal" }, bargap: hasBars ? 0.25 : undefined, dragmode: false,
      ...layout,
      xaxis: { ...axis(), ...layout.xaxis }, yaxis: { ...axis(), hoverformat: ".3~g", ...layout.yaxis },
    }, { displayModeBar: false, responsive: true });
  }
  const draw = () => figures.forEach(drawOne);
  document.querySelectorAll("[data-run]").forEach((box) => box.addEventListener("change", () => {
    if (box.checked) hidden.delete(box.dataset.run); else hidden.add(box.dataset.run);
    draw();
  }));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
