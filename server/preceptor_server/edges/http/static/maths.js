/* What a teacher's columns say without asking it again. Pure: numbers in, numbers out; null is minus infinity.

   N = scored positions, K = support size. A row's logprobs are normalised over the whole vocabulary at the temperature T
   at which the teacher was asked, and fall from left to right. */

export const minusInfinity = (value) => (value === null || value === undefined ? -Infinity : value);
const massOf = (logprob) => Math.exp(minusInfinity(logprob));

/** Row n of an answered response, as an object. */
export function rowOf(response, n) {
  return {
    position: response.positions[n],
    ids: response.support_ids[n],
    logprobs: response.support_logprobs[n],
    sampled: minusInfinity(response.sampled_logprobs[n]),
    rank: response.sampled_ranks[n],
    tail: massOf(response.log_tail_mass[n]),
    entropy: response.entropies ? response.entropies[n] : null,
  };
}

/** The number of the row that each position has, -1 where it has none. */
export function rowsByPosition(response) {
  const rows = new Int32Array(Math.max(response.ids.length, 1)).fill(-1);
  response.positions.forEach((position, n) => { rows[position] = n; });
  return rows;
}

/** What the k likeliest tokens of a row cover: the mass in them, the mass outside, and whether the sampled one is in. */
export function coverage(row, k) {
  const beyond = row.logprobs.slice(k).reduce((sum, logprob) => sum + massOf(logprob), 0);
  const outside = Math.min(1, row.tail + beyond);
  return { inside: 1 - outside, outside, hasSampled: row.rank !== null && row.rank <= k };
}

/** The mean of that over all positions, and the position that is covered least. */
export function meanCoverage(response, k) {
  const total = { inside: 0, sampledInside: 0, least: 1, leastPosition: null };
  const size = response.positions.length;
  for (let n = 0; n < size; n += 1) {
    const { inside, hasSampled } = coverage(rowOf(response, n), k);
    total.inside += inside / size;
    total.sampledInside += hasSampled / size;
    if (inside < total.least || n === 0) [total.least, total.leastPosition] = [inside, response.positions[n]];
  }
  return total;
}

/** Logprobs inside the k likeliest tokens at another temperature, renormalised there: p_i ∝ exp(logprob_i T / T'). */
export function supportAt(logprobs, { k, from, to }) {
  const scaled = logprobs.slice(0, k).map((logprob) => (minusInfinity(logprob) * from) / to);
  const most = Math.max(...scaled);
  if (most === -Infinity) return scaled;
  const sum = scaled.reduce((total, one) => total + Math.exp(one - most), 0);
  return scaled.map((one) => one - most - Math.log(sum));
}

/** Entropy of logprobs that sum to one, in nats. */
export const entropyOf = (logprobs) =>
  logprobs.reduce((sum, one) => (one === -Infinity ? sum : sum - Math.exp(one) * one), 0);

/** Means over all positions of the support renormalised at another temperature: its entropy, and the sampled tokens' logprob
    where they are inside. */
export function meanSupportAt(response, { k, from, to }) {
  let [entropy, sampled, numInside] = [0, 0, 0];
  const size = response.positions.length;
  for (let n = 0; n < size; n += 1) {
    const logprobs = supportAt(response.support_logprobs[n], { k, from, to });
    entropy += entropyOf(logprobs) / size;
    const rank = response.sampled_ranks[n];
    if (rank !== null && rank <= k) [sampled, numInside] = [sampled + logprobs[rank - 1], numInside + 1];
  }
  return { entropy, sampled: numInside ? sampled / numInside : null, numInside };
}

/** Per position what a token says of teacher and student: their log-ratio where the student's logprob is known, else the
    teacher's logprob; NaN where there is no score. */
export function signals(response) {
  const values = new Float64Array(Math.max(response.ids.length, 1)).fill(NaN);
  response.positions.forEach((position, n) => {
    const teacher = minusInfinity(response.sampled_logprobs[n]);
    values[position] = response.student_logprobs ? teacher - minusInfinity(response.student_logprobs[position]) : teacher;
  });
  return values;
}

const encoder = new TextEncoder();
const numBytes = (text) => (/^<0x[0-9A-F]{2}>$/.test(text) ? 1 : encoder.encode(text).length);

/** For each token of one cut of a text, the index of the token of another cut with the same bytes, or -1. */
export function counterparts(texts, others) {
  const starts = new Map();
  let end = 0;
  others.forEach((text, index) => {
    const start = end;
    end += numBytes(text);
    starts.set(`${start}-${end}`, index);
  });
  end = 0;
  return texts.map((text) => {
    const start = end;
    end += numBytes(text);
    return starts.get(`${start}-${end}`) ?? -1;
  });
}

/** Teacher's tokens around a position, where it read others than the response's: indices [from, to) of `teacher_ids`, from
    the last scored position before or at it to the next one after. */
export function teacherSpan(response, position) {
  if (!response.teacher_ids) return null;
  const { positions, teacher_rows: rows } = response;
  const after = positions.findIndex((one) => one > position);
  const next = after === -1 ? positions.length : after;
  return [next === 0 ? 0 : rows[next - 1], after === -1 ? response.teacher_ids.length : rows[after]];
}
