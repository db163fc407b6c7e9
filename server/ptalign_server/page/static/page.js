// Keyboard shortcuts, focus after a swap, and the blur switch. Everything works without it.
"use strict";
(() => {
  const KEYS = "ptalign.keys";
  const enabled = () => localStorage.getItem(KEYS) !== "off";

  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return; // Japanese is written by keys that mean something else here
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

  // What was refused, or not sent, leaves the board and what was written on it.
  function say(text) {
    const notice = document.querySelector("#board .notice");
    if (notice) notice.textContent = text;
  }

  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.xhr.status < 400) return;
    event.detail.shouldSwap = false;
    const page = new DOMParser().parseFromString(event.detail.serverResponse, "text/html");
    say(page.querySelector("[role=alert]")?.textContent || "That did not work. Try again.");
  });

  document.addEventListener("htmx:sendError", () => {
    say("Not sent: the server cannot be reached. Try again.");
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
