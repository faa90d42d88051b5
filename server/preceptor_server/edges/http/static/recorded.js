/* The list of what was scored last: one long poll, while somebody looks. */

import { get } from "./api.js";
import { byId, node } from "./dom.js";
import { nats } from "./words.js";

const KEPT = 200; // rows of the list
const WAIT_SECONDS = 25;
const PAUSE_MS = 5000; // after a poll that failed

function rowOf(record, onOpen) {
  const isOpenable = record.outcome === "ok";
  const open = isOpenable && node("button", { type: "button", class: "quiet", "aria-label": `Open recorded request ${record.number}` }, `${record.number}`);
  if (open) open.addEventListener("click", () => onOpen(record.number));
  const number = (value) => node("td", { class: "number" }, value);
  const at = new Date(1000 * record.at);
  const failed = node("span", { class: "why" }, record.outcome.toLowerCase().replaceAll("_", " "));
  return node("tr", {}, node("td", {}, open || `${record.number}`), node("td", {}, node("time", { datetime: at.toISOString() }, at.toLocaleTimeString())),
    node("td", {}, record.caller.startsWith(record.transport) ? record.caller : `${record.caller} (${record.transport})`), node("td", { class: "preview", title: record.preview }, record.preview),
    number(`${record.num_responses}`), number(`${record.num_positions}`), number(`${record.top_k}`),
    number(isOpenable ? nats(record.mean_sampled_logprob) : failed), number(record.total_ms?.toFixed(0) ?? "–"));
}

function show(answer, onOpen) {
  byId("recorded-scroll").hidden = !answer.is_recording;
  byId("recorded-about").textContent = answer.is_recording
    ? "Recorded by the server, over gRPC and HTTP alike; the oldest make room."
    : "Recording is off, for prompts are other people's. Start the server with --http.record 100 to keep the last hundred.";
  byId("records").prepend(...answer.records.toReversed().map((record) => rowOf(record, onOpen)));
  while (byId("records").children.length > KEPT) byId("records").lastChild.remove();
  if (answer.is_recording && !byId("records").children.length) byId("recorded-about").textContent = "Nothing was scored yet.";
}

const seen = () => new Promise((resolve) => {
  if (!document.hidden) resolve();
  else document.addEventListener("visibilitychange", resolve, { once: true });
});
const pause = () => new Promise((resolve) => { setTimeout(resolve, PAUSE_MS); });

export async function follow(onOpen) {
  let last = 0;
  let wait = 0;
  for (;;) {
    await seen();
    const leave = new AbortController();
    const hide = () => { if (document.hidden) leave.abort(); };
    document.addEventListener("visibilitychange", hide);
    try {
      const answer = await get(`/v1/requests?after=${last}&limit=${KEPT}&wait_seconds=${wait}`, { signal: leave.signal });
      const isOther = answer.last < last; // the server was started again
      if (isOther) byId("records").replaceChildren();
      show(answer, onOpen);
      if (!answer.is_recording) return;
      last = isOther ? 0 : answer.records.at(-1)?.number ?? last;
      wait = WAIT_SECONDS;
    } catch (error) {
      if (error.name !== "AbortError") {
        byId("recorded-about").textContent = `${error.message} Trying again.`;
        await pause();
      }
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
  }
}

/** The body that asks what a recorded request asked, in the teacher's ids that it was scored by. */
export function bodyOf(answer) {
  const body = { prompt: { teacher_ids: answer.prompt_ids }, top_k: answer.top_k, temperature: answer.temperature };
  const responses = answer.responses.filter((response) => response.ids.length).map((response) => ({
    ids: response.ids,
    ...(response.status.includes("excluded") ? { score_mask: response.status.map((status) => status !== "excluded") } : {}),
    ...(response.student_logprobs ? { student_logprobs: response.student_logprobs } : {}),
  }));
  if (responses.length) body.responses = responses;
  for (const [name, value] of [["tokenizer", answer.tokenizer_id], ["adapter", answer.adapter], ["teacher", answer.teacher], ["segmentation", answer.segmentation]]) {
    if (value) body[name] = value;
  }
  return body;
}
