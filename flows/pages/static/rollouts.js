// The table of rollouts: the row that is chosen opens beside it, and a histogram that is dragged over is a filter.
"use strict";
(() => {
  const table = document.querySelector("table.rollouts");
  const pane = document.querySelector(".pane");
  let wanted = 0;

  // A form's address says how a search came about; what is copied says what it is.
  const asked = new URL(location.href).searchParams;
  const isOfForm = asked.has("column") || asked.has("kept") || [...asked.values()].includes("");
  if (isOfForm && !document.querySelector("[role=alert]")) {
    history.replaceState(null, "", table.dataset.address);
  }

  function remember(name, value) {
    const address = new URL(location.href);
    address.searchParams.set(name, value);
    history.replaceState(null, "", address);
  }
  async function open(link) {
    const mine = ++wanted;
    const address = new URL(link);
    const tint = new URL(location.href).searchParams.get("tint");
    if (tint) address.searchParams.set("tint", tint);
    // The table beside it shows where it stands; the search need not be carried out for each row.
    for (const name of ["q", "rounds", "iterations"]) address.searchParams.delete(name);
    let found;
    try {
      const answer = await fetch(address, { cache: "no-store" });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      found = [...document.adoptNode(fresh.getElementById("main")).childNodes];
    } catch {
      found = [Object.assign(document.createElement("p"), { className: "mistake" })];
      found[0].textContent = "The server does not answer; start rounds ui again, and choose the row again.";
    }
    // A row that was chosen since is what is shown.
    if (mine !== wanted) return;
    pane.hidden = false;
    pane.replaceChildren(...found);
    pane.scrollTop = 0;
    const chosen = table.querySelector("[data-row].chosen");
    if (chosen) chosen.scrollIntoView({ block: "nearest" });
    document.dispatchEvent(new CustomEvent("refreshed"));
  }
  // Files have no server to ask: there, the link leads to the rollout's own page.
  if (location.protocol !== "file:") {
    table.addEventListener("chosen", (event) => {
      const link = event.target.querySelector("[data-open]");
      if (!link) return;
      remember("open", event.target.dataset.id);
      open(link.href);
    });
    pane.addEventListener("click", (event) => {
      const link = event.target.closest(".tints a");
      if (!link) return;
      event.preventDefault();
      remember("tint", new URL(link.href).searchParams.get("tint"));
      open(link.href);
    });
    if (pane.dataset.opened) open(new URL(pane.dataset.opened, location.href));
  }

  document.querySelector("[data-expand]").addEventListener("click", () => table.classList.toggle("whole"));
  document.querySelector("[data-copy]").addEventListener("click", (event) => {
    navigator.clipboard.writeText(location.href).then(() => (event.target.textContent = "y copied"));
  });

  const filter = document.querySelector("[data-filter]");
  filter?.addEventListener("toggle", () => filter.open && filter.querySelector("select").focus());
  const menus = () => document.querySelectorAll("details.menu[open]");
  document.addEventListener("click", (event) => {
    for (const menu of menus()) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") for (const menu of menus()) menu.open = false;
  });

  // Dragging fills in and sends the form that the keyboard fills in: there is one way to make a filter.
  for (const lies of table.querySelectorAll(".lies")) {
    let from = null;
    const range = document.createElement("span");
    range.className = "range";
    const share = (event) => Math.min(1, Math.max(0, (event.clientX - lies.getBoundingClientRect().left) / lies.clientWidth));
    lies.addEventListener("pointerdown", (event) => {
      from = share(event);
      lies.setPointerCapture(event.pointerId);
      lies.append(range);
    });
    lies.addEventListener("pointermove", (event) => {
      if (from === null) return;
      const to = share(event);
      range.style.left = `${100 * Math.min(from, to)}%`;
      range.style.width = `${100 * Math.abs(to - from)}%`;
    });
    lies.addEventListener("pointercancel", () => {
      from = null;
      range.remove();
    });
    lies.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const ends = [from, share(event)].sort((a, b) => a - b);
      from = null;
      range.remove();
      if (ends[1] - ends[0] < 0.02) return;
      const low = Number(lies.dataset.low);
      const high = Number(lies.dataset.high);
      const at = (part) => String(Number((low + part * (high - low)).toPrecision(4)));
      const form = filter.querySelector("form");
      form.elements.column.value = lies.dataset.column;
      // An end of the histogram is no end of the range: the largest value is below nothing.
      form.elements.from.value = ends[0] <= 0.01 ? "" : at(ends[0]);
      form.elements.to.value = ends[1] >= 0.99 ? "" : at(ends[1]);
      form.requestSubmit();
    });
  }
})();
