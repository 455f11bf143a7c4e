// Keys: whatever has data-key is clicked by its key, and lists (data-rows) are walked by j and k. What a page can do is
// told by "?", from the same attributes, so that no list of keys is kept anywhere.
"use strict";
(() => {
  const rows = () => [...document.querySelectorAll("[data-row]")];
  const chosen = () => document.querySelector("[data-row].chosen");

  function choose(row) {
    if (!row) return;
    chosen()?.classList.remove("chosen");
    row.classList.add("chosen");
    row.scrollIntoView({ block: "nearest" });
    row.dispatchEvent(new CustomEvent("chosen", { bubbles: true }));
  }
  function step(by) {
    const all = rows();
    if (!all.length) return;
    const at = all.indexOf(chosen());
    choose(all[Math.min(all.length - 1, Math.max(0, at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by))]);
  }
  const walking = {
    j: () => step(1),
    k: () => step(-1),
    g: () => choose(rows()[0]),
    G: () => choose(rows().at(-1)),
    x: () => chosen()?.querySelector("[data-tick]")?.click(),
    Enter: () => chosen()?.querySelector("[data-open]")?.click(),
  };
  const told = { j: "next row", k: "previous row", g: "first row", G: "last row", Enter: "open the row", "/": "search" };

  function help() {
    const dialog = document.getElementById("keys");
    const lines = [...document.querySelectorAll("[data-key][data-does]")].map((e) => [e.dataset.key, e.dataset.does]);
    if (rows().length) lines.push(...Object.entries(told).filter(([key]) => key !== "/"));
    if (document.querySelector("[data-tick]")) lines.push(["x", "tick the row"]);
    if (document.querySelector("[data-search]")) lines.push(["/", told["/"]]);
    const table = document.createElement("table");
    const seen = new Set();
    for (const [key, does] of lines) {
      if (seen.has(key)) continue;
      seen.add(key);
      const line = table.insertRow();
      const name = document.createElement("kbd");
      name.textContent = key;
      line.insertCell().append(name);
      line.insertCell().textContent = does;
    }
    dialog.replaceChildren(table);
    dialog.showModal();
  }

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");
    if (event.key === "Escape" && typing) typing.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
    if (event.key === "/" && document.querySelector("[data-search]")) {
      event.preventDefault();
      document.querySelector("[data-search]").select();
      return;
    }
    const own = [...document.querySelectorAll("[data-key]")].find((e) => e.dataset.key === event.key);
    if (own) {
      event.preventDefault();
      if (own.matches("[data-help]")) help();
      else if (own.matches("input, select")) own.focus();
      else own.click();
    } else if (Object.hasOwn(walking, event.key)) {
      event.preventDefault();
      walking[event.key]();
    }
  });
  document.addEventListener("click", (event) => {
    const dialog = event.target.closest("dialog");
    if (dialog && event.target === dialog) dialog.close();
    if (event.target.closest("[data-help]") && event.detail) help();
    const row = event.target.closest("[data-row]");
    if (row) choose(row);
  });
  // Ticking more than two is no comparison; the first goes.
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-tick]")) return;
    const ticked = [...document.querySelectorAll("[data-tick]:checked")];
    if (ticked.length > 2) ticked.find((e) => e !== event.target).checked = false;
  });
})();
