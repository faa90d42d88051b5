"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const embedded = (id) => JSON.parse(byId(id).textContent);
  const links = embedded("links"); /* to the teachers' pages: one for each rollout, or none at all */
  const voices = embedded("voices"); /* whose answer the numbers of each rollout are */
  const linksOf = (link) => (link ? [link, ...link.others] : []);
  const rollouts = embedded("rollouts").map((row, index) => ({ ...row, links: linksOf(links[index]), voice: voices[index] }));
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
  const isEnvironments = (token) => token.status === "environment";
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
    made.classList.toggle("environment", isEnvironments(token));
    made.title = isScored(token) ? `signal ${nats(signalOf(token))} nats`
      : isEnvironments(token) ? "written by the environment" : `no score: ${status(token.status)}`;
    return made;
  }
  /* One box for each turn, said to be the student's or the environment's; none where the student wrote everything. */
  function turnNodes(tokens) {
    const nodes = tokens.map(tokenNode);
    if (!tokens.some(isEnvironments)) return nodes;
    const boxes = [];
    let turn = 0;
    tokens.forEach((token, index) => {
      if (index === 0 || isEnvironments(token) !== isEnvironments(tokens[index - 1])) {
        const who = isEnvironments(token) ? "environment" : `student, turn ${(turn += 1)}`;
        const label = node("span", { className: "who" }, who);
        label.setAttribute("aria-hidden", "true");
        boxes.push(node("span", { className: isEnvironments(token) ? "turn environment" : "turn" }, label));
        boxes.at(-1).setAttribute("role", "group");
        boxes.at(-1).setAttribute("aria-label", who);
      }
      boxes.at(-1).append(nodes[index]);
    });
    return boxes;
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
      node("h4", { style: "margin: 0 0 .3rem; font-weight: 550" }, `${current.voice.words} would say`),
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
  /* One link for each teacher, by its name where it has one. */
  function askNodes(text, suffix = "") {
    return current.links.flatMap((link, index) => [...(index ? [" · "] : []),
      ...linkNodes(link, link.teacher ? `${text}: ${link.teacher}` : text, suffix)]);
  }
  function showDetail(token, index, total) {
    const facts = [["token", `id ${token.id}, ${index + 1} of ${total}`]];
    if (isEnvironments(token)) facts.push(["written by", "the environment"]);
    else facts.push(["student's logprob", logprob(token.student_logprob, "not measured")]);
    if (isScored(token)) {
      const said = current.voice.teachers.map((name) => [name, token.teachers[name]]);
      for (const [name, one] of said) {
        const share = said.length > 1 ? `, weight ${percent(one.weight)}` : "";
        facts.push([`${name}'s logprob${share}`, logprob(one.logprob, "−∞ (cannot write it)")]);
      }
      const whose = current.voice.is_mixture ? "mixture" : "teacher";
      if (whose === "mixture" || !said.length) facts.push([`${whose}'s logprob`, logprob(token.teacher_logprob, "−∞ (cannot write it)")]);
      facts.push(["signal, nats", nats(signalOf(token))]);
      facts.push(["loss, nats", token.loss === null ? "not measured" : nats(token.loss)]);
    } else if (!isEnvironments(token)) facts.push(["no score", status(token.status)]);
    const list = node("dl", {}, ...facts.flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]));
    const asked = askNodes("explain this position", `&response=0&position=${index}`);
    byId("detail").replaceChildren(node("h3", {}, visible(token.text)), list, ...(isScored(token) ? supportNodes(token) : []),
      ...(asked.length ? [node("p", { className: "asked" }, ...asked)] : []));
  }

  let current = null;
  let selected = 0;
  function select(index, isSeen = true) {
    selected = Math.min(current.tokens.length - 1, Math.max(0, index));
    const box = byId("tokens");
    box.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    const chosen = byId("token-" + selected);
    if (!chosen) return;
    chosen.setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", chosen.id);
    if (isSeen) chosen.scrollIntoView({ block: "nearest" });
    showDetail(current.tokens[selected], selected, current.tokens.length);
  }
  function showRollout(row) {
    current = row;
    const ends = { length: "cut at the limit", turns: "stopped at the limit on turns" };
    const scored = row.tokens.filter(isScored).length;
    const written = row.tokens.filter(isEnvironments).length;
    byId("about").textContent = [`${row.tokens.length - written} tokens`, `${scored} scored`,
      ...(written ? [`${written} of the environment`] : []), ends[row.finish_reason] ?? "ended by itself",
      ...(row.reward === undefined ? [] : [`reward ${row.reward}`]),
      ...(row.voice.teachers.length ? [`scored by ${row.voice.teachers.join(" and ")}`] : [])].join(", ");
    byId("ask").replaceChildren(...askNodes(row.voice.teachers.length ? "ask again" : "ask the teacher again"));
    byId("prompt").textContent = row.prompt;
    byId("tokens").replaceChildren(...turnNodes(row.tokens));
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
    const kind = (row) => [...new Set([row.run_task, row.task])].filter((name) => name).join("/");
    const label = (row, index) => `${index + 1}${kind(row) ? ` (${kind(row)})` : ""}${row.part ? `, part ${row.part + 1}` : ""}`;
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
