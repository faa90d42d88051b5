/* Numbers, texts and statuses as people read them. Knows no page. */

/** Why a token has no score; the words of `preceptor score`. */
export const WHY_NO_SCORE = {
  excluded: "left out by the request's mask",
  non_finite: "the teacher's logits were NaN or infinite there",
  special: "a special token without a counterpart at the teacher",
  misaligned: "the teacher would cut these bytes differently",
  unmapped: "the teacher's vocabulary has no counterpart of this token",
  beyond_context: "beyond the teacher's context",
};
export const whyNoScore = (status) => WHY_NO_SCORE[status] ?? status.replaceAll("_", " ");

/** Nats at which a token's colour grows stronger by one step. */
export const LEVELS = [0.1, 0.3, 1, 2, 4, 8];
export const levelOf = (nats) => LEVELS.filter((bound) => Math.abs(nats) >= bound).length;

export function nats(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value < 0 ? "−∞" : "∞";
  return (value < 0 ? "−" : "") + Math.abs(value).toFixed(3);
}
export const signed = (value) => (value > 0 ? "+" : "") + nats(value);

export function percent(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0 || value === 1) return `${100 * value}%`;
  if (value > 0 && value < 0.0001) return "<0.01%";
  if (value < 1 && value > 0.9999) return ">99.99%";
  return (100 * value).toFixed(value < 0.01 || value > 0.99 ? 2 : 1) + "%";
}

/** A count and its noun, which takes an s unless it is one. */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

const SIGNS = { "\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣" };
export const visible = (text) => text.replace(/[\n\r\t ]/g, (sign) => SIGNS[sign]);

/** Tokens as one text; pieces of a character, such as <0xF0>, are put together. */
export function joined(texts) {
  const decoder = new TextDecoder();
  let [text, bytes] = ["", []];
  for (const one of [...texts, ""]) {
    const piece = /^<0x([0-9A-F]{2})>$/.exec(one);
    if (piece) bytes.push(parseInt(piece[1], 16));
    else {
      text += decoder.decode(Uint8Array.from(bytes)) + one;
      bytes = [];
    }
  }
  return text;
}
