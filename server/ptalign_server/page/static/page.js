// Keyboard shortcuts, focus after a swap, and the blur switch. Everything works without it.
"use strict";
(() => {
  const KEYS = "ptalign.keys";
  const enabled = () => localStorage.getItem(KEYS) !== "off";

  document.addEventListener("keydown", (event) => {
    const writing = event.target.closest("textarea, input:not([type=checkbox]), select");
    if (writing) {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) writing.form.requestSubmit();
      if (event.key === "Escape") closeEdit();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !enabled()) return;
    // A focused control keeps its own meaning of the space bar.
    if (event.key === " " && event.target.closest("button, summary, a, input")) return;
    const control = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (!control) return;
    event.preventDefault();
    control.click();
    if (control.matches("summary")) document.getElementById("good")?.focus();
  });

  function closeEdit() {
    const edit = document.querySelector("details.edit");
    if (!edit) return;
    edit.open = false;
    edit.querySelector("summary").focus();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-veil]");
    if (!button) return;
    const blurred = document.querySelector(".card").classList.toggle("blurred");
    button.setAttribute("aria-pressed", String(blurred));
  });

  document.addEventListener("change", (event) => {
    if (event.target.id === "keys") localStorage.setItem(KEYS, event.target.checked ? "on" : "off");
  });

  function settle() {
    const keys = document.getElementById("keys");
    if (keys) keys.checked = enabled();
  }

  document.addEventListener("htmx:afterSettle", () => {
    settle();
    document.querySelector("#board h1")?.focus({ preventScroll: false });
  });
  settle();
})();
