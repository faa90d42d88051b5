/* What stands behind the # of the page's address. Knows no page. */

export function encode(value) {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

export function decode(text) {
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(binary, (sign) => sign.charCodeAt(0))));
}

const numberIn = (value) => (/^\d+$/.test(value ?? "") ? Number(value) : null);

/** {recorded} or {request}, with response and position; null where the address names neither. Throws where it is torn. */
export function read(hash) {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const place = { response: numberIn(values.get("response")) ?? 0, position: numberIn(values.get("position")) };
  if (values.has("recorded")) {
    const recorded = numberIn(values.get("recorded"));
    if (recorded === null) throw new Error("recorded is not a number");
    return { recorded, ...place };
  }
  if (!values.has("request")) return null;
  const request = decode(values.get("request"));
  if (typeof request !== "object" || request === null || Array.isArray(request)) throw new Error("request is not an object");
  return { request, ...place };
}

export function write({ recorded, request, response, position }) {
  const values = recorded ? [`recorded=${recorded}`] : [`request=${encode(request)}`];
  if (response) values.push(`response=${response}`);
  if (position !== null && position !== undefined) values.push(`position=${position}`);
  return "#" + values.join("&");
}
