// The table of rollouts: the row that is chosen opens beside it, and a histogram that is dragged over is a filter.
"use strict";
(() => {
  const table = document.querySelector("table.rollouts");
  const pane = document.querySelector(".pane");
  let wanted = 0;

  async function open(address) {
    const mine = ++wanted;
    const answer = await fetch(address, { cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    // A row that was chosen since is what is shown.
    if (mine !== wanted) return;
    pane.hidden = false;
    pane.replaceChildren(...document.adoptNode(fresh.getElementById("main")).childNodes);
    pane.scrollTop = 0;
    document.dispatchEvent(new CustomEvent("refreshed"));
  }
  function remember(id) {
    const address = new URL(location.href);
    address.searchParams.set("open", id);
    history.replaceState(null, "", address);
  }
  // Files have no server to ask: there, the link leads to the rollout's own page.
  if (location.protocol !== "file:") {
    table.addEventListener("chosen", (event) => {
      const link = event.target.querySelector("[data-open]");
      if (!link) return;
      remember(event.target.dataset.id);
      open(link.href);
    });
    pane.addEventListener("click", (event) => {
      const link = event.target.closest(".tints a");
      if (!link) return;
      event.preventDefault();
      open(link.href);
    });
    const chosen = table.querySelector("[data-row].chosen [data-open]");
    if (chosen) open(chosen.href);
    else if (pane.dataset.opened) open(pane.dataset.opened);
  }

  document.querySelector("[data-expand]").addEventListener("click", () => table.classList.toggle("whole"));
  document.querySelector("[data-copy]").addEventListener("click", (event) => {
    navigator.clipboard.writeText(location.href).then(() => (event.target.textContent = "y copied"));
  });

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
    lies.addEventListener("pointerup", (event) => {
      const ends = [from, share(event)].sort((a, b) => a - b);
      from = null;
      range.remove();
      if (ends[1] - ends[0] < 0.02) return;
      const low = Number(lies.dataset.low);
      const high = Number(lies.dataset.high);
      const at = (part) => Number((low + part * (high - low)).toPrecision(4));
      const column = lies.dataset.column;
      const kept = table.dataset.q.split(/\s+/).filter((term) => term && !term.startsWith(`${column}<`) && !term.startsWith(`${column}>`));
      const address = new URL(table.dataset.searchAddress, location.href);
      address.searchParams.set("q", [...kept, `${column}>=${at(ends[0])}`, `${column}<=${at(ends[1])}`].join(" "));
      location.href = address;
    });
  }
})();
