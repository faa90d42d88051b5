/* What one teacher thinks at one position, as nodes. Knows no server. */

import { coverage, entropyOf, minusInfinity, rowOf, supportAt, teacherSpan } from "./maths.js";
import { node } from "./dom.js";
import { nats, percent, signed, visible, whyNoScore } from "./words.js";

const SHOWN = 128; // tokens of a support that are listed
const READ = 40; // tokens that the teacher read, likewise

export const textOf = (answer, id) => answer.texts[id] || `<${id}>`;
const teacherText = (answer, id) => answer.teacher_texts[id] || `<${id}>`;
const both = (logprob) => `${nats(logprob)} (${percent(Math.exp(logprob))})`;
const fact = ([name, value]) => [node("dt", {}, name), node("dd", {}, value)];

function bar(share, kind = "") {
  const drawn = node("span", { class: `fill ${kind}` });
  drawn.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return node("span", { class: "track", "aria-hidden": "true" }, drawn);
}

function supportRow(cells, share, kind) {
  const [rank, text, ...numbers] = cells;
  return node("tr", { class: kind }, node("td", { class: "number" }, rank), node("th", { scope: "row", title: text }, text),
    node("td", {}, bar(share, kind)), numbers.map((one) => node("td", { class: "number" }, one)));
}

/** The support as a table with bars: of the whole vocabulary, or renormalised inside it at another temperature. */
function supportTable(answer, row, { k, to, ownId }) {
  const isOther = to !== answer.temperature;
  const logprobs = isOther ? supportAt(row.logprobs, { k, from: answer.temperature, to }) : row.logprobs;
  const widest = Math.exp(minusInfinity(logprobs[0]));
  const rows = row.ids.slice(0, Math.min(k, SHOWN)).map((id, index) => {
    const logprob = minusInfinity(logprobs[index]);
    if (minusInfinity(row.logprobs[index]) === -Infinity) return null; // fills the row up
    const share = Math.exp(logprob);
    const isOwn = id === ownId && row.rank !== null;
    const text = visible(textOf(answer, id));
    return supportRow([String(index + 1), text, percent(share), nats(logprob)], share / widest, isOwn ? "own" : "");
  });
  const listed = row.ids.length > k ? `outside top ${k}` : "outside";
  const { outside } = coverage(row, k);
  const rest = isOther
    ? node("tr", { class: "rest" }, node("td"), node("th", { scope: "row", colspan: 4 }, `${listed}: needs a new forward`))
    : supportRow(["", listed, percent(outside), nats(Math.log(outside))], outside / widest, "rest");
  const note = k > SHOWN ? node("p", { class: "soft" }, `The likeliest ${SHOWN} of ${k} are listed.`) : null;
  const heads = ["", "token", "", isOther ? "inside" : "probability", "logprob"];
  return [
    node("div", { class: "support", tabindex: "0", role: "region", "aria-label": "The teacher's support" },
      node("table", {}, node("caption", {}, `The teacher would say${isOther ? `, inside its top ${k} at T = ${to}` : ""}`),
        node("thead", {}, node("tr", {}, heads.map((head) => node(head ? "th" : "td", head ? { scope: "col" } : {}, head)))),
        node("tbody", {}, rows, rest))),
    note,
  ];
}

function candidateFacts(answer, response, n) {
  if (!response.candidate_ids || n < 0) return [];
  return response.candidate_ids[n].map((id, index) =>
    [`candidate ${visible(textOf(answer, id))}`, both(minusInfinity(response.candidate_logprobs[n][index]))]);
}

function teacherTokens(answer, response, position) {
  const span = teacherSpan(response, position);
  if (!span) return null;
  const texts = response.teacher_ids.slice(...span).slice(0, READ).map((id) => teacherText(answer, id));
  if (texts.length === 1 && texts[0] === textOf(answer, response.ids[position])) return null;
  return node("p", { class: "read-as" }, "The teacher read here: ", texts.map((text) => [node("code", {}, visible(text)), " "]));
}

function scoredFacts(answer, response, row, { k, to, apart }) {
  const { inside, hasSampled } = coverage(row, k);
  const student = response.student_logprobs ? minusInfinity(response.student_logprobs[row.position]) : null;
  const isSampled = response.ids.length > 0;
  const facts = [];
  if (isSampled) facts.push(["teacher's logprob", both(row.sampled)]);
  if (isSampled && apart !== null) facts.push(["against the other, nats", signed(apart)]);
  if (student !== null) facts.push(["student's logprob", both(student)], ["log-ratio, nats", signed(row.sampled - student)]);
  if (isSampled) facts.push(["rank of the token", row.rank === null ? `outside the top ${row.ids.length}` : String(row.rank)]);
  if (isSampled && k < row.ids.length) facts.push([`in its top ${k}`, hasSampled ? "yes" : "no"]);
  facts.push([`mass in its top ${k}`, percent(inside)]);
  if (row.entropy !== null) facts.push(["entropy, nats", nats(row.entropy)]);
  if (to !== answer.temperature) {
    const renormalised = supportAt(row.logprobs, { k, from: answer.temperature, to });
    facts.push([`entropy inside, T = ${to}`, nats(entropyOf(renormalised))]);
    if (isSampled) facts.push([`logprob inside, T = ${to}`, hasSampled ? both(renormalised[row.rank - 1]) : "not inside"]);
  }
  return facts;
}

/** Nodes for a position of a response; `n` is its row, -1 where it has none. */
export function detailNodes(answer, response, { position, n, k, to, heading = "", apart = null }) {
  const total = response.ids.length;
  const id = total ? response.ids[position] : null;
  const title = id === null ? "What may follow" : visible(textOf(answer, id));
  const where = id === null ? "behind the prompt" : `token ${position + 1} of ${total}, id ${id}`;
  const head = [heading && node("p", { class: "soft" }, heading), node("h3", { tabindex: "-1", class: id === null ? "" : "text" }, title),
    node("p", { class: "soft" }, where)];
  if (n < 0) {
    const why = node("p", { class: "why" }, node("b", {}, "No score: "), whyNoScore(response.status[position]));
    return [...head, why, teacherTokens(answer, response, position)].filter(Boolean);
  }
  const row = rowOf(response, n);
  const facts = [...scoredFacts(answer, response, row, { k, to, apart }), ...candidateFacts(answer, response, n)];
  return [...head, node("dl", {}, facts.map(fact)), teacherTokens(answer, response, position),
    supportTable(answer, row, { k, to, ownId: id })].flat().filter(Boolean);
}
