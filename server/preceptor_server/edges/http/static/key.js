/* The key that this page shows to its own server: asked for when the server wants one, and kept for this tab alone. */

import { byId } from "./dom.js";

const NAME = "preceptor-key";
let asking = null; // the answer to the question that is open
let isDeclined = false;

export const headers = () => {
  const key = sessionStorage.getItem(NAME);
  return key ? { authorization: `Bearer ${key}` } : {};
};

/** Resolves to whether there is a new key to try. What the page asks by itself, such as its figures, is not `urgent`: it
 * does not ask again once the question was declined. */
export function askForKey({ urgent, wasWrong }) {
  if (isDeclined && !urgent) return Promise.resolve(false);
  asking ??= opened(wasWrong).finally(() => { asking = null; });
  return asking;
}

function opened(wasWrong) {
  const dialog = byId("key-dialog");
  byId("key-wrong").hidden = !wasWrong;
  byId("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = (hasKey) => {
      dialog.removeEventListener("close", onClose);
      byId("key-form").removeEventListener("submit", onSubmit);
      isDeclined = !hasKey;
      resolve(hasKey);
    };
    const onClose = () => answer(false);
    const onSubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(NAME, byId("key").value.trim());
      byId("key").value = "";
      answer(true);
      dialog.close();
    };
    dialog.addEventListener("close", onClose);
    byId("key-form").addEventListener("submit", onSubmit);
  });
}
