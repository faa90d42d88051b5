"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const embedded = (id) => JSON.parse(byId(id).textContent);
  const links = embedded("links"); /* to the teacher's page: one for each rollout, or none at all */
  const rollouts = embedded("rollouts").map((row, index) => ({ ...row, link: links[index] }));
  const LIMIT = 5; /* nats at which the colour is full */
  const node = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const shade = (signal) => {
    const strength = 0.62 * Math.sqrt(Math.min(1, Math.abs(signal) / LIMIT));
    return `rgba(var(${signal < 0 ? "--negative" : "--positive"}), ${strength.toFixed(3)})`;
  };
  const isScored = (token) => token.support !== undefined;
  /* A scored token without a signal is one that the teacher cannot write: minus infinity. */
  const signalOf = (token) => (token.signal === null ? -Infinity : token.signal);
  const nats = (value) => value === -Infinity ? "−∞" : (value < 0 ? "−" : "") + Math.abs(value).toFixed(3);
  const percent = (value) => value === 0 ? "0%" : value < 0.0001 ? "<0.01%" : (100 * value).toFixed(value < 0.01 ? 2 : 1) + "%";
  const status = (name) => name.replaceAll("_", " ");
  const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\r", "␍").replaceAll("\t", "⇥").replaceAll(" ", "␣");

  function tokenText(text) {
    const parts = [];
    for (const part of text.split(/(\n|\r|\t)/)) {
      if (part === "\n" || part === "\r") parts.push(node("span", { className: "mark" }, "⏎"), part);
      else if (part === "\t") parts.push(node("span", { className: "mark" }, "⇥"), part);
      else if (part) parts.push(part);
    }
    return parts;
  }
  function tokenNode(token, index) {
    const made = node("span", { className: "token", id: "token-" + index }, ...tokenText(token.text));
    made.setAttribute("role", "option");
    made.dataset.index = index;
    if (isScored(token)) made.style.background = shade(signalOf(token));
    else made.classList.add("none");
    made.title = isScored(token) ? `signal ${nats(signalOf(token))} nats` : `no score: ${status(token.status)}`;
    return made;
  }
  function bar(label, probability, kind = "") {
    const fill = node("u");
    fill.style.width = `${100 * Math.min(1, Math.max(0, probability))}%`;
    return node("div", { className: `bar ${kind}` }, node("span", { title: label }, label), node("span", {}, fill),
      node("span", {}, percent(probability)));
  }
  function logprob(value, missing) {
    return value === null ? missing : `${nats(value)} (${percent(Math.exp(value))})`;
  }
  function supportNodes(token) {
    const own = token.teacher_logprob === null ? 0 : Math.exp(token.teacher_logprob);
    const isOwn = ([text, p]) => text === token.text && Math.abs(p - own) <= 0.01 * own + 1e-6;
    const listed = token.support.reduce((sum, [, p]) => sum + p, 0);
    const between = Math.max(0, 1 - listed - token.tail_mass);
    return [
      node("h4", { style: "margin: 0 0 .3rem; font-weight: 550" }, "The teacher would say"),
      ...token.support.map((one) => bar(visible(one[0]), one[1], isOwn(one) ? "own" : "")),
      bar("rest of its top K", between, "rest"),
      bar("outside its top K", token.tail_mass, "rest"),
    ];
  }
  /* Text in place of a link where there is none: its title says why. */
  function linkNodes(link, text, suffix = "") {
    if (!link) return [];
    if (!link.href) return [node("span", { className: "soft no-link", title: link.title }, `${text}: no link`)];
    const properties = { href: link.href + suffix, title: link.title, target: "_blank", rel: "noopener noreferrer" };
    return [node("a", properties, `${text} ↗`)];
  }
  function showDetail(token, index, total) {
    const facts = [["token", `id ${token.id}, ${index + 1} of ${total}`],
      ["student's logprob", logprob(token.student_logprob, "not measured")]];
    if (isScored(token)) {
      facts.push(["teacher's logprob", logprob(token.teacher_logprob, "−∞ (cannot write it)")]);
      facts.push(["signal, nats", nats(signalOf(token))]);
      facts.push(["loss, nats", token.loss === null ? "not measured" : nats(token.loss)]);
    } else facts.push(["no score", status(token.status)]);
    const list = node("dl", {}, ...facts.flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]));
    const asked = linkNodes(current.link, "explain this position", `&response=0&position=${index}`);
    byId("detail").replaceChildren(node("h3", {}, visible(token.text)), list, ...(isScored(token) ? supportNodes(token) : []),
      ...(asked.length ? [node("p", { className: "asked" }, ...asked)] : []));
  }

  let current = null;
  let selected = 0;
  function select(index, isSeen = true) {
    selected = Math.min(current.tokens.length - 1, Math.max(0, index));
    const box = byId("tokens");
    box.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    const chosen = box.children[selected];
    if (!chosen) return;
    chosen.setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", chosen.id);
    if (isSeen) chosen.scrollIntoView({ block: "nearest" });
    showDetail(current.tokens[selected], selected, current.tokens.length);
  }
  function showRollout(row) {
    current = row;
    const cut = row.finish_reason === "length" ? "cut at the limit" : "ended by itself";
    const scored = row.tokens.filter(isScored).length;
    byId("about").textContent = `${row.tokens.length} tokens, ${scored} scored, ${cut}`;
    byId("ask").replaceChildren(...linkNodes(row.link, "ask the teacher again"));
    byId("prompt").textContent = row.prompt;
    byId("tokens").replaceChildren(...row.tokens.map(tokenNode));
    byId("detail").replaceChildren();
    /* The widest disagreement is what a reader looks for first. */
    const sizes = row.tokens.map((token) => (isScored(token) ? Math.abs(signalOf(token)) : -1));
    byId("tokens").scrollTop = 0;
    select(sizes.indexOf(Math.max(...sizes)), false);
  }
  const steps = [...new Set(rollouts.map((row) => row.step))];
  const ofStep = (step) => rollouts.filter((row) => row.step === step);
  function fillRollouts() {
    const rows = ofStep(Number(byId("step").value));
    const label = (row, index) => `${index + 1}${row.task ? ` (${row.task})` : ""}`;
    const previous = byId("rollout").selectedIndex;
    byId("rollout").replaceChildren(...rows.map((row, index) => node("option", { value: index }, label(row, index))));
    byId("rollout").selectedIndex = Math.min(Math.max(0, previous), rows.length - 1);
    showChosen();
  }
  const showChosen = () => showRollout(ofStep(Number(byId("step").value))[byId("rollout").selectedIndex]);

  byId("scale").append(
    node("span", { className: "ends" }, "teacher finds it less likely"),
    ...[-5, -2, -1, -0.2, 0, 0.2, 1, 2, 5].map((signal) => {
      const label = (Math.abs(signal) === 5 ? (signal < 0 ? "≤ " : "≥ ") : "") + (signal < 0 ? "−" : signal > 0 ? "+" : "") + Math.abs(signal);
      const made = node("i", {}, label);
      made.style.background = shade(signal);
      return made;
    }),
    node("span", { className: "ends" }, "more likely than the student, nats"),
    node("i", { className: "none" }, "no score"));
  byId("step").append(...steps.map((step) => node("option", { value: step }, String(step))));
  byId("step").selectedIndex = steps.length - 1;
  byId("step").addEventListener("change", fillRollouts);
  byId("rollout").addEventListener("change", showChosen);
  byId("tokens").addEventListener("click", (event) => {
    const token = event.target.closest(".token");
    if (token) select(Number(token.dataset.index));
  });
  byId("tokens").addEventListener("keydown", (event) => {
    const moves = { ArrowRight: selected + 1, ArrowLeft: selected - 1, ArrowDown: selected + 10, ArrowUp: selected - 10,
      Home: 0, End: current.tokens.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    select(moves[event.key]);
  });
  fillRollouts();
})();
