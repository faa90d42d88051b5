/* The page: who asks whom, when. */

import { Problem, get, score } from "./api.js";
import { announce, byId, node } from "./dom.js";
import { addMessage, controlOf, fillForm, readForm, showPaper, switchMode } from "./form.js";
import { read, write } from "./links.js";
import { watch } from "./live.js";
import { bodyOf, follow } from "./recorded.js";
import { Result } from "./result.js";

let asked = null; // {request} or {request, recorded}, of what is shown
let asking = new AbortController();
const result = new Result({
  onAskAgain: ({ temperature }) => {
    const body = { ...asked.request, temperature };
    fillForm(body);
    ask(body, result.place);
  },
});

function tell(error) {
  const box = byId("problem");
  const control = controlOf(error.field ?? "");
  const retry = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  const named = error.field && !error.message.startsWith(error.field) ? node("code", {}, error.field) : null;
  const sentence = error.message.replace(/[^.!?]$/, "$&.");
  box.replaceChildren(node("b", {}, `${error.title ?? "The page failed"}. `), ...(named ? [named, ": "] : []), sentence + retry);
  box.tabIndex = -1;
  if (!control) return box.focus();
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", "problem");
  const folded = control.closest("details");
  if (folded) folded.open = true;
  return control.focus();
}

function forgive() {
  byId("problem").replaceChildren();
  for (const control of document.querySelectorAll("[aria-invalid]")) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-describedby");
  }
}

/** Runs `act`, of which only the newest counts, and tells what went wrong. */
async function busy(act) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  forgive();
  byId("ask").setAttribute("aria-busy", "true");
  try {
    await act(signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) console.error(error);
    tell(error);
  } finally {
    if (!signal.aborted) byId("ask").removeAttribute("aria-busy");
  }
}

/** What the teacher that is compared with answers: {label, answer}, null where there is none. */
async function second(body, signal) {
  if (!byId("compare").value) return null;
  const { server, label, ...changes } = JSON.parse(byId("compare").value);
  return { label, answer: await score({ ...body, ...changes }, { signal, server }) };
}

async function showScores(body, place, signal) {
  const [first, other] = await Promise.allSettled([score(body, { signal }), second(body, signal)]);
  if (first.status === "rejected") throw first.reason;
  asked = { request: body };
  byId("result-title").textContent = "What the teacher thinks";
  result.show({ label: body.adapter || first.value.teacher, answer: first.value }, other.value, place);
  if (other.status === "rejected") throw other.reason;
}

const ask = (body, place = {}) => busy((signal) => showScores(body, place, signal));

function open(number, place = {}) {
  return busy(async (signal) => {
    const answer = await get(`/v1/requests/${number}`, { signal, urgent: true });
    asked = { request: bodyOf(answer), recorded: number };
    fillForm(asked.request);
    result.show({ label: "", answer }, null, place);
    byId("result-title").textContent = `Recorded request ${number}`;
    byId("result").scrollIntoView({ block: "start" });
  });
}

function followLink() {
  let link = null;
  try {
    link = read(location.hash);
  } catch (error) {
    tell(new Problem(error.message, { title: "This link is torn" }));
  }
  if (!link) return;
  if (link.recorded !== undefined) open(link.recorded, link);
  else {
    fillForm(link.request);
    ask(link.request, link);
  }
}

async function copyLink() {
  const link = new URL(write({ ...asked, ...result.place }), location.href).href;
  try {
    await navigator.clipboard.writeText(link);
    byId("copy-link").textContent = "Copied";
    announce("The link is copied");
  } catch {
    history.replaceState(null, "", link);
    byId("copy-link").textContent = "See the address";
    announce("The link stands in the address bar");
  }
  setTimeout(() => { byId("copy-link").textContent = "Copy link"; }, 2000);
}

const option = (select, value, text) => byId(select).append(node("option", { value }, text));

function showInfo(info) {
  const [teacher] = info.teachers;
  byId("teacher-line").textContent = `${teacher.name}: ${teacher.model || "no model"} (${teacher.engine}, ${teacher.dtype} on ${teacher.device})`;
  byId("top-k").max = Math.min(info.limits.max_top_k, teacher.vocabulary_size);
  for (const name of info.http.tokenizers) option("tokenizer", name, name);
  byId("teacher-label").hidden = info.teachers.length < 2;
  const compare = (label, choice) => option("compare", JSON.stringify({ label, ...choice }), label);
  for (const one of info.teachers) {
    option("teacher", one.name, one.name);
    if (info.teachers.length > 1) compare(`teacher ${one.name}`, { teacher: one.name, adapter: "" });
    for (const { name } of one.adapters) {
      option("adapter", name, name);
      compare(`adapter ${name}`, { teacher: one.name, adapter: name });
    }
  }
  if (teacher.adapters.length) compare("without an adapter", { adapter: "" });
  for (const server of info.http.compare_with) compare(server, { server });
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  busy((signal) => showScores(readForm(), {}, signal));
});
byId("ask").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  byId("ask").requestSubmit();
});
byId("ask").addEventListener("change", (event) => {
  if (event.target.name === "mode") switchMode(event.target.value);
});
byId("segmentation").addEventListener("change", showPaper);
byId("add-message").addEventListener("click", () => addMessage().querySelector("textarea").focus());
byId("copy-link").addEventListener("click", copyLink);
addEventListener("hashchange", followLink);

/** Says who teaches here; waits for a model that is being loaded. */
async function meet() {
  for (;;) {
    try {
      showInfo(await get("/v1/info"));
      return;
    } catch (error) {
      if (!error.retryAfter) return tell(error);
      byId("teacher-line").textContent = `${error.message} …`;
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
    }
  }
}

addMessage();
watch();
follow((number) => open(number));
await meet();
followLink();
