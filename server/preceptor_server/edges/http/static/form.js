/* The form as the body of a request, and back. Knows no server. */

import { Problem } from "./api.js";
import { byId, choose, node } from "./dom.js";

const NAMES = ["tokenizer", "segmentation", "teacher", "adapter"];
let mode = "text";

function setMode(next) {
  mode = next;
  document.querySelector(`input[name=mode][value=${mode}]`).checked = true;
  for (const part of document.querySelectorAll("[data-modes]")) part.hidden = !part.dataset.modes.split(" ").includes(mode);
}

/** Another way to type a request; JSON begins as what stands in the form. */
export function switchMode(next) {
  if (next === "json") {
    try {
      byId("body-json").value = JSON.stringify(readForm(), null, 1);
    } catch {
      // What cannot be read as a request stays in the form.
    }
  }
  setMode(next);
}

function numbersIn(id, field, isWhole = true) {
  const parts = byId(id).value.split(/[\s,[\]]+/).filter(Boolean);
  const wrong = parts.find((part) => (isWhole ? !/^\d+$/.test(part) : part !== "null" && !Number.isFinite(Number(part))));
  if (wrong !== undefined) throw new Problem(`“${wrong}” is not a ${isWhole ? "token id" : "number"}`, { field });
  return parts.map((part) => (part === "null" ? null : Number(part)));
}

export function addMessage(role = "user", content = "") {
  const row = node("div", { class: "message" },
    node("input", { "aria-label": "Role", list: "roles", value: role, class: "role" }),
    node("textarea", { "aria-label": "What was said", rows: 2, "data-field": "prompt" }),
    node("button", { type: "button", class: "quiet", "aria-label": "Remove this message" }, "×"));
  row.querySelector("textarea").value = content;
  row.querySelector("button").addEventListener("click", () => {
    row.remove();
    byId("add-message").focus();
  });
  byId("messages").append(row);
  return row;
}

const messages = () => [...byId("messages").children].map((row) => ({
  role: row.querySelector("input").value, content: row.querySelector("textarea").value,
}));

function promptOf() {
  if (mode === "chat") return { messages: messages() };
  if (mode === "ids") return { [byId("ids-of").value]: numbersIn("prompt-ids", "prompt") };
  const text = byId("prompt-text").value;
  return byId("omit-special").checked ? { text, omit_special_tokens: true } : { text };
}

function responseOf() {
  const given = mode === "ids" ? { ids: numbersIn("response-ids", "responses") } : { text: byId("response-text").value };
  if (!Object.values(given)[0].length) return null;
  const student = numbersIn("student-logprobs", "student_logprobs", false);
  return student.length ? { ...given, student_logprobs: student } : given;
}

function typedBody() {
  let body = null;
  try {
    body = JSON.parse(byId("body-json").value);
  } catch (error) {
    throw new Problem(`This is not JSON: ${error.message}`, { field: "body" });
  }
  if (typeof body !== "object" || body === null || Array.isArray(body)) throw new Problem("This is not an object", { field: "body" });
  return body;
}

/** The body of /v1/topk. Throws a Problem where it cannot be one. */
export function readForm() {
  if (mode === "json") return typedBody();
  const body = { prompt: promptOf() };
  const response = responseOf();
  if (response) body.responses = [response];
  else if (byId("positions").value !== "next") body.positions = byId("positions").value;
  body.top_k = Number(byId("top-k").value);
  body.temperature = Number(byId("temperature").value);
  for (const name of NAMES) if (byId(name).value) body[name] = byId(name).value;
  if (body.segmentation === "paper") body.paper_token_ids = numbersIn("paper-ids", "paper_token_ids");
  return body;
}

/** Fills the form; what it has no field for makes it show the request as JSON. */
export function fillForm(body) {
  const [prompt, [response = {}]] = [body.prompt ?? {}, body.responses ?? []];
  const kind = ["student_ids", "teacher_ids"].find((name) => prompt[name]);
  if (kind) byId("ids-of").value = kind;
  byId("prompt-ids").value = kind ? prompt[kind].join(" ") : "";
  byId("prompt-text").value = prompt.text ?? "";
  byId("omit-special").checked = Boolean(prompt.omit_special_tokens);
  byId("messages").replaceChildren();
  for (const { role, content } of prompt.messages ?? [{ role: "user", content: "" }]) addMessage(role, content);
  byId("response-text").value = response.text ?? "";
  byId("response-ids").value = (response.ids ?? []).join(" ");
  byId("student-logprobs").value = (response.student_logprobs ?? []).map(String).join(" ");
  byId("positions").value = body.positions ?? "next";
  byId("top-k").value = body.top_k ?? 20;
  byId("temperature").value = body.temperature ?? 1;
  for (const name of NAMES) choose(byId(name), body[name] ?? "");
  byId("paper-ids").value = (body.paper_token_ids ?? []).join(" ");
  setMode(kind ? "ids" : prompt.messages ? "chat" : "text");
  showPaper();
  if (!isSame(body)) {
    byId("body-json").value = JSON.stringify(body, null, 1);
    setMode("json");
  }
}

export const showPaper = () => { byId("paper").hidden = byId("segmentation").value !== "paper"; };

const sorted = (value) => {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
};
const plain = ({ responses = [], positions = "next", ...body }) => JSON.stringify(sorted({
  top_k: 20, temperature: 1, ...body, ...(responses.length ? { responses } : { positions }),
}));

function isSame(body) {
  try {
    return plain(readForm()) === plain(body);
  } catch {
    return false; // what the form cannot hold, JSON can
  }
}

/** The visible control that a refused field belongs to, if there is one. */
export function controlOf(field) {
  if (mode === "json") return byId("body-json");
  const controls = [...document.querySelectorAll("#ask [data-field]")].filter((one) => !one.closest("[hidden]"));
  const fitting = controls.filter((one) => field && field.includes(one.dataset.field));
  return fitting.sort((one, other) => other.dataset.field.length - one.dataset.field.length)[0] ?? null;
}
