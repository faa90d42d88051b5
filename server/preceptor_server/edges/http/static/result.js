/* Shows answers: one teacher's, or two side by side. Knows of requests only whom to ask again. */

import { announce, byId, node, perFrame } from "./dom.js";
import { detailNodes } from "./detail.js";
import { counterparts, meanCoverage, meanSupportAt } from "./maths.js";
import { Side } from "./side.js";
import { Strip } from "./strip.js";
import { LEVELS, count, joined, nats, percent, whyNoScore } from "./words.js";

const TEMPERATURE_STEPS = 40; // of the slider, either way; its ends are a tenth and ten times the answer's

const perplexity = (mean) => (Number.isFinite(mean) ? Math.exp(-mean).toLocaleString("en", { maximumSignificantDigits: 3 }) : "–");

export class Result {
  constructor({ onAskAgain }) {
    this.sides = ["a", "b"].map((name, index) => new Side(name, new Strip(byId(`strip-${name}`),
      (position, { isEntered }) => this.choose(position, { side: index, isEntered, isFocused: !isEntered, isSeen: true }))));
    this.position = null;
    this.index = 0;
    const redraw = perFrame(() => this.#explore());
    for (const id of ["k-slider", "t-slider"]) byId(id).addEventListener("input", redraw);
    byId("which").addEventListener("change", () => this.#pick(Number(byId("which").value), null));
    byId("colour-by").addEventListener("change", () => this.#dress());
    byId("ask-again").addEventListener("click", () => onAskAgain({ temperature: this.to }));
    byId("least").addEventListener("click", () => this.choose(Number(byId("least").dataset.position), { isFocused: true, isSeen: true }));
  }

  /** Shows an answer, and a second teacher's beside it where there is one: {label, answer} each. */
  show(first, second, { response = 0, position = null } = {}) {
    this.isPair = Boolean(second);
    this.entries = second ? [first, second] : [first];
    const { answer } = first;
    byId("result").hidden = false;
    byId("result").classList.toggle("pair", this.isPair);
    byId("side-b").hidden = byId("colour-label").hidden = !this.isPair;
    byId("which").replaceChildren(...answer.responses.map((_, index) => node("option", { value: index }, String(index + 1))));
    byId("which-label").hidden = answer.responses.length < 2;
    const slider = byId("k-slider");
    [slider.max, slider.value] = [answer.top_k, answer.top_k];
    byId("t-slider").value = 0;
    byId("about").textContent = `${answer.teacher}${answer.adapter ? ` with ${answer.adapter}` : ""}, revision `
      + `${answer.revision.slice(0, 12)}, segmentation ${answer.segmentation.replaceAll("_", " ")}`;
    const texts = answer.prompt_ids.map((id) => answer.teacher_texts[id] ?? `<${id}>`);
    byId("prompt-title").textContent = `The prompt as the teacher read it, ${count(texts.length, "token")}`;
    byId("prompt-read").textContent = joined(texts);
    this.#pick(response, position);
  }

  get place() {
    return { response: this.index, position: this.position };
  }

  #pick(index, position) {
    this.index = Math.min(index, this.entries[0].answer.responses.length - 1);
    byId("which").value = this.index;
    this.entries.forEach(({ answer, label }, number) => {
      this.sides[number].take(answer, this.index);
      byId(`name-${this.sides[number].name}`).textContent = this.isPair ? label : "";
    });
    this.#match();
    this.#readSliders();
    this.#active().forEach((side, number) => side.strip.show(side.tokens(this.k, this.#colours(number))));
    this.#legend();
    this.#summary();
    this.#overall();
    const { signals: values } = this.sides[0];
    const sizes = Array.from(values, (value) => (Number.isNaN(value) ? -1 : Math.abs(value)));
    const widest = sizes.reduce((best, size, at) => (size > sizes[best] ? at : best), 0);
    const isNamed = position !== null;
    this.choose(isNamed ? Math.min(position, values.length - 1) : widest, { isSeen: isNamed });
  }

  #active() {
    return this.sides.slice(0, this.entries.length);
  }

  /** Which positions of the two cuts are the same bytes, and how far their logprobs are apart. */
  #match() {
    if (!this.isPair) return;
    const [one, other] = this.sides;
    this.toOther = [counterparts(one.texts, other.texts), counterparts(other.texts, one.texts)];
    const logprob = (side, position) => {
      const n = position < 0 ? -1 : side.rows[position];
      return n < 0 ? NaN : side.response.sampled_logprobs[n] ?? -Infinity;
    };
    const apart = (from, to, map) => map.map((there, here) => logprob(from, here) - logprob(to, there));
    this.differences = [apart(one, other, this.toOther[0]), apart(other, one, this.toOther[1])];
  }

  #colours(number) {
    return this.isPair && byId("colour-by").value === "difference" ? this.differences[number] : null;
  }

  #dress() {
    this.#active().forEach((side, number) => side.strip.restyle(side.tokens(this.k, this.#colours(number))));
    this.#legend();
  }

  #readSliders() {
    const { temperature } = this.entries[0].answer;
    const steps = Number(byId("t-slider").value);
    this.k = Number(byId("k-slider").value);
    this.to = steps === 0 ? temperature : Number((temperature * 10 ** (steps / TEMPERATURE_STEPS)).toPrecision(2));
    byId("k-value").textContent = `${this.k} of ${this.entries[0].answer.top_k}`;
    byId("t-value").textContent = String(this.to);
    byId("k-slider").setAttribute("aria-valuetext", byId("k-value").textContent);
    byId("t-slider").setAttribute("aria-valuetext", byId("t-value").textContent);
  }

  #explore() {
    const before = this.k;
    this.#readSliders();
    if (this.k !== before) this.#dress();
    this.#overall();
    this.choose(this.position);
  }

  #overall() {
    const { response, answer } = this.sides[0];
    const total = meanCoverage(response, this.k);
    const isOther = this.to !== answer.temperature;
    const facts = [[percent(total.inside), "mean mass inside"]];
    if (response.ids.length) facts.push([percent(total.sampledInside), "of the tokens inside"]);
    facts.push([percent(total.least), "least mass inside"]);
    if (isOther) {
      const inside = meanSupportAt(response, { k: this.k, from: answer.temperature, to: this.to });
      facts.push([nats(inside.entropy), "mean entropy inside, nats"], [nats(inside.sampled), "mean logprob inside, nats"]);
    }
    byId("overall").replaceChildren(...facts.map(([value, name]) => node("div", {}, node("b", {}, value), node("span", {}, name))));
    byId("least").hidden = total.leastPosition === null || this.k === 0;
    byId("least").dataset.position = total.leastPosition;
    byId("unknown").hidden = !isOther;
    byId("ask-again").textContent = `Ask again at T = ${this.to}`;
  }

  #summary() {
    const { response, answer } = this.sides[0];
    const mean = response.sampled_logprobs.reduce((sum, one) => sum + (one ?? -Infinity), 0) / response.positions.length;
    const size = response.ids.length;
    const cards = [[count(size, "token"), `${response.positions.length} scored`], [nats(mean), "mean logprob, nats per token"],
      [perplexity(mean), "perplexity"], [`${answer.timings.forward_ms.toFixed(0)} ms`, `forward, ${answer.timings.total_ms.toFixed(0)} ms in all`]];
    const shown = size ? cards : cards.slice(3);
    byId("cards").replaceChildren(...shown.map(([value, name]) => node("div", { class: "card" }, node("b", {}, value), node("span", {}, name))));
    announce(size ? `Scored ${count(size, "token")}, mean logprob ${nats(mean)} nats` : "The teacher's next tokens are shown");
  }

  #legend() {
    const { response } = this.sides[0];
    const swatch = (look, text) => node("li", {}, node("span", { class: `token ${look}`, "aria-hidden": "true" }, "\u2003"), text);
    const isRatio = this.#colours(0) || response.student_logprobs;
    const bound = (level) => (level ? `${LEVELS[level - 1]}` : `< ${LEVELS[0]}`);
    const rising = LEVELS.map((_, index) => index + 1);
    const title = !isRatio ? "logprob, nats" : this.#colours(0) ? "difference of the logprobs, nats" : "log-ratio teacher − student, nats";
    const why = new Map();
    for (const status of response.status) if (status !== "ok") why.set(status, (why.get(status) ?? 0) + 1);
    byId("legend").hidden = !response.ids.length;
    byId("legend").replaceChildren(node("li", { class: "soft" }, title),
      ...(isRatio ? rising.toReversed() : []).map((level) => swatch(`more l${level}`, `${level === LEVELS.length ? "≥ " : ""}+${bound(level)}`)),
      swatch("less l0", bound(0)), ...rising.map((level) => swatch(`less l${level}`, `${level === LEVELS.length ? "≤ " : ""}−${bound(level)}`)),
      swatch("outside", "outside the top K"),
      ...[...why].map(([status, number]) => swatch("none", `${number} not scored: ${whyNoScore(status)}`)));
  }

  /** Shows a position of one side, and the same bytes of the other. */
  choose(position, { side = 0, isEntered = false, isFocused = false, isSeen = false } = {}) {
    const places = this.#active().map((_, number) => (number === side ? position : this.toOther[side][position] ?? -1));
    this.position = places[0] < 0 ? this.position : places[0];
    this.#active().forEach((one, number) => {
      const place = places[number];
      const box = byId(`detail-${one.name}`);
      const label = this.isPair ? this.entries[number].label : "";
      if (place < 0) {
        box.replaceChildren(node("p", { class: "soft" }, `${label} cuts these bytes into other tokens.`));
        return;
      }
      one.strip.select(place, { isFocused: isFocused && number === side, isSeen });
      const what = { position: place, n: one.rows[place], k: this.k, to: this.to, heading: label, apart: this.isPair ? this.differences[number][place] : null };
      box.replaceChildren(...detailNodes(one.answer, one.response, what));
    });
    byId("detail-b").hidden = !this.isPair;
    if (isEntered) byId(`detail-${this.sides[side].name}`).querySelector("h3")?.focus();
  }
}
