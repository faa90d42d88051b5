/* A response as a strip of tokens: one listbox and two listeners, whatever its length. Knows no teacher. */

import { node } from "./dom.js";

const CHUNK = 192; // tokens that the browser lays out, or skips, together
const BEFORE_PAINT = 768; // tokens drawn at once; the rest follows in slices
const SLICE_MS = 8;
const ROW = 10; // tokens that an arrow up or down goes

/** Where to cut: [from, to) of each chunk, behind a newline where there is one in its second half. */
export function chunksOf(texts) {
  const chunks = [];
  let from = 0;
  texts.forEach((text, index) => {
    const size = index + 1 - from;
    if (size === CHUNK || (size >= CHUNK / 2 && text.includes("\n")) || index === texts.length - 1) {
      chunks.push([from, index + 1]);
      from = index + 1;
    }
  });
  return chunks;
}

function textNodes(text) {
  return text.split(/([\n\r\t ])/).filter(Boolean).map((part) => {
    if (part === " ") return node("span", { class: "space" }, part);
    if (part === "\n") return [node("span", { class: "mark" }, "⏎"), part];
    if (part === "\r") return node("span", { class: "mark" }, "␍");
    if (part === "\t") return [node("span", { class: "mark" }, "⇥"), part];
    return part;
  });
}

export class Strip {
  #box;
  #onChoose;
  #tokens = [];
  #nodes = [];
  #chunks = [];
  #numDrawn = 0;
  #drawing = 0;
  selected = -1;

  /** `onChoose(index, {isEntered})` is told of every choice that a person makes. */
  constructor(box, onChoose) {
    this.#box = box;
    this.#onChoose = onChoose;
    box.addEventListener("click", (event) => {
      const token = event.target.closest(".token");
      if (token) this.#onChoose(Number(token.dataset.index), { isEntered: false });
    });
    box.addEventListener("keydown", (event) => this.#press(event));
  }

  /** Draws tokens of {text, look (classes), label}. */
  show(tokens) {
    cancelAnimationFrame(this.#drawing);
    Object.assign(this, { selected: -1 });
    this.#tokens = tokens;
    this.#nodes = [];
    this.#numDrawn = 0;
    this.#chunks = chunksOf(tokens.map((token) => token.text));
    this.#box.replaceChildren();
    this.#box.classList.toggle("long", this.#chunks.length > 4);
    this.#box.scrollTop = 0;
    this.#drawTo(Math.min(BEFORE_PAINT, tokens.length) - 1);
    if (this.#nodes.length) this.#nodes[0].tabIndex = 0;
    this.#drawRest();
  }

  /** New looks and labels of the same tokens. */
  restyle(tokens) {
    this.#tokens = tokens;
    this.#nodes.forEach((drawn, index) => this.#dress(drawn, tokens[index]));
  }

  /** `isSeen` scrolls the box to the token; `isFocused` the page too. */
  select(index, { isFocused = false, isSeen = false } = {}) {
    if (index < 0 || index >= this.#tokens.length) return;
    this.#drawTo(index);
    const before = this.#nodes[this.selected] ?? this.#nodes[0];
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
    this.selected = index;
    const chosen = this.#nodes[index];
    chosen.tabIndex = 0;
    chosen.setAttribute("aria-selected", "true");
    if (isFocused) {
      chosen.focus({ preventScroll: true });
      chosen.scrollIntoView({ block: "nearest" });
    } else if (isSeen) this.#reveal(chosen);
  }

  #reveal(chosen) {
    const [box, token] = [this.#box.getBoundingClientRect(), chosen.getBoundingClientRect()];
    if (token.top < box.top) this.#box.scrollTop -= box.top - token.top + 8;
    if (token.bottom > box.bottom) this.#box.scrollTop += token.bottom - box.bottom + 8;
  }

  #press(event) {
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: ROW, ArrowUp: -ROW, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#onChoose(Math.max(0, this.selected), { isEntered: true });
    } else if (event.key in moves && !event.ctrlKey && !event.altKey && !event.metaKey) {
      event.preventDefault();
      const wanted = Math.max(0, this.selected) + moves[event.key];
      this.#onChoose(Math.max(0, Math.min(this.#tokens.length - 1, wanted)), { isEntered: false });
    }
  }

  #drawRest() {
    if (this.#numDrawn === this.#chunks.length) return;
    this.#drawing = requestAnimationFrame(() => {
      const end = performance.now() + SLICE_MS;
      while (this.#numDrawn < this.#chunks.length && performance.now() < end) this.#drawChunk();
      this.#drawRest();
    });
  }

  #drawTo(index) {
    while (this.#nodes.length <= index) this.#drawChunk();
  }

  #drawChunk() {
    const [from, to] = this.#chunks[this.#numDrawn];
    this.#numDrawn += 1;
    const made = this.#tokens.slice(from, to).map((token, offset) => {
      const drawn = node("span", { role: "option", "aria-selected": "false", "data-index": from + offset }, textNodes(token.text));
      // The chunk ends the line: another newline behind its last token would show as an empty one.
      if (from + offset === to - 1 && to < this.#tokens.length && token.text.endsWith("\n")) drawn.lastChild.remove();
      this.#dress(drawn, token);
      return drawn;
    });
    this.#nodes.push(...made);
    const label = `tokens ${from + 1} to ${to}`;
    this.#box.append(node("div", { class: "chunk", role: "group", "aria-label": label, "data-from": from + 1 }, made));
  }

  #dress(drawn, token) {
    const look = `token ${token.look}`;
    if (drawn.className !== look) drawn.className = look;
    if (drawn.title === token.label) return;
    drawn.title = token.label;
    drawn.setAttribute("aria-label", token.label);
  }
}
