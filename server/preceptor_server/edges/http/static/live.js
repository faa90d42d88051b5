/* The queue and the throughput, once a second, while somebody looks. */

import { get } from "./api.js";
import { byId, node } from "./dom.js";

const KEPT = 60;
const [WIDTH, HEIGHT] = [120, 28];

/** The points of a polyline through the values, newest at the right end. */
export function sparkPoints(values) {
  const most = Math.max(...values, 1e-9);
  const step = WIDTH / (KEPT - 1);
  return values.map((value, index) =>
    `${(WIDTH - (values.length - 1 - index) * step).toFixed(1)},${(HEIGHT - 1 - (value / most) * (HEIGHT - 3)).toFixed(1)}`).join(" ");
}

function show(stats, history) {
  byId("spark-line").setAttribute("points", sparkPoints(history));
  byId("spark").setAttribute("aria-label", `Positions per second, last minute; now ${stats.positions_per_second.toFixed(1)}`);
  const facts = [["positions/s", stats.positions_per_second.toFixed(stats.positions_per_second < 10 ? 1 : 0)],
    ["waiting", `${stats.queue_tokens.toLocaleString("en")} tokens`], ["state", stats.is_serving ? "serving" : "not serving"]];
  byId("live-facts").replaceChildren(...facts.map(([name, value]) => node("div", {}, node("dt", {}, name), node("dd", {}, value))));
}

export function watch() {
  const history = [];
  const tick = async () => {
    if (document.hidden) return;
    try {
      const stats = await get("/v1/stats");
      history.push(stats.positions_per_second);
      if (history.length > KEPT) history.shift();
      show(stats, history);
    } catch (error) {
      const state = error.retryAfter ? "not yet serving" : "no answer";
      byId("live-facts").replaceChildren(node("div", {}, node("dt", {}, "state"), node("dd", {}, state)));
    }
  };
  tick();
  setInterval(tick, 1000);
}
