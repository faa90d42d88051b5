/* The few lines of DOM that every view needs. Text is only ever set as text. */

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text, null and false are left out. */
export function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== false && child !== undefined));
  return made;
}

/** Chooses a value, which becomes an option where it is none yet. */
export function choose(select, value) {
  if (![...select.options].some((option) => option.value === value)) select.append(node("option", { value }, value));
  select.value = value;
}

/** Runs `act` in the next frame, once, however often it is asked. */
export function perFrame(act) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => { waits = false; act(); });
  };
}

export function announce(text) {
  byId("announce").textContent = text;
}
