/* Asks servers, and turns what they refuse into one kind of error. */

import { askForKey, headers as keyHeaders } from "./key.js";

/** What went wrong, and the field of the request that it is about. */
export class Problem extends Error {
  constructor(message, { title = "That did not work", field = "", retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { title, field, retryAfter });
  }
}

async function problemOf(answer) {
  let told = {};
  try {
    told = await answer.json();
  } catch {
    // A proxy's page, or nothing: the status alone has to do.
  }
  return new Problem(told.detail ?? `The server answered ${answer.status} ${answer.statusText}`, {
    title: told.title ?? "The server refused",
    field: told.field ?? "",
    retryAfter: told.retry_after_seconds ?? null,
  });
}

async function asked(url, options, { urgent }) {
  const isOwn = new URL(url, location.href).origin === location.origin; // no other server is shown the key
  const shown = isOwn ? keyHeaders() : {};
  let answer;
  try {
    answer = await fetch(url, { ...options, headers: { ...options.headers, ...shown } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const where = new URL(url, location.href).origin;
    const hint = where === location.origin ? "Is it still running?" : "Does its http.allow_origins name this page?";
    throw new Problem(`${where} does not answer. ${hint}`, { title: "No answer" });
  }
  if (answer.status === 401 && isOwn && (await askForKey({ urgent, wasWrong: Boolean(shown.authorization) }))) {
    return asked(url, options, { urgent });
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer.json();
}

export const get = (path, { signal, urgent = false } = {}) => asked(path, { signal }, { urgent });

export const score = (body, { signal, server = "" } = {}) =>
  asked(`${server}/v1/topk`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  }, { urgent: true });
