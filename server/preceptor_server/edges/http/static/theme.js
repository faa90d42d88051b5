/* Before the first paint: light, dark, or as the system says. */
"use strict";
(() => {
  const CHOICES = ["auto", "light", "dark"];
  const stored = () => {
    try { return localStorage.getItem("preceptor-theme"); } catch { return null; }
  };
  const keep = (choice) => {
    try { localStorage.setItem("preceptor-theme", choice); } catch { /* a browser that keeps nothing */ }
  };
  let choice = CHOICES.includes(stored()) ? stored() : "auto";
  const show = () => {
    document.documentElement.dataset.theme = choice;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${choice}`;
  };
  show();
  addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
      keep(choice);
      show();
    });
  });
})();
