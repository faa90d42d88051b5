/* One answer, what is derived of its chosen response, and how its tokens look. */

import { textOf } from "./detail.js";
import { rowsByPosition, signals } from "./maths.js";
import { levelOf, nats, signed, visible, whyNoScore } from "./words.js";

export class Side {
  constructor(name, strip) {
    Object.assign(this, { name, strip, answer: null, response: null, label: "" });
  }

  take(answer, index) {
    this.answer = answer;
    this.response = answer.responses[Math.min(index, answer.responses.length - 1)];
    this.rows = rowsByPosition(this.response);
    this.signals = signals(this.response);
    this.texts = this.response.ids.length ? this.response.ids.map((id) => textOf(answer, id)) : ["…"];
  }

  /** Looks and labels; `differences` colours by them instead. */
  tokens(k, differences) {
    const { response } = this;
    const what = differences ? "against the other teacher" : response.student_logprobs ? "log-ratio" : "logprob";
    return this.texts.map((text, position) => {
      const n = this.rows[position];
      if (!response.ids.length) return { text, look: "next", label: "What may follow the prompt" };
      if (n < 0) return { text, look: "none", label: `${visible(text)}: no score, ${whyNoScore(response.status[position])}` };
      const value = differences ? differences[position] : this.signals[position];
      const rank = response.sampled_ranks[n];
      const isOutside = rank === null || rank > k;
      const colour = Number.isNaN(value) ? "" : `${value < 0 ? "less" : "more"} l${levelOf(value)}`;
      const number = differences || response.student_logprobs ? signed(value) : nats(value);
      const label = `${visible(text)}: ${what} ${number}, ${rank === null ? "outside the support" : `rank ${rank}`}`;
      return { text, look: `${colour}${isOutside ? " outside" : ""}`, label };
    });
  }
}
