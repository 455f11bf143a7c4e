// A run that goes on: the page is fetched again every few seconds and what changed takes the place of what was there.
"use strict";
(() => {
  const main = document.getElementById("main");
  const seconds = Number(main.dataset.live);
  let before = main.innerHTML;

  async function refresh() {
    if (document.hidden || document.querySelector("dialog[open]")) return again();
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      if (answer.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        const own = fresh.getElementById("main");
        if (own.innerHTML !== before) {
          before = own.innerHTML;
          const focused = document.activeElement?.getAttribute?.("href");
          main.replaceChildren(...document.adoptNode(own).childNodes);
          document.querySelector(".rail").replaceWith(document.adoptNode(fresh.querySelector(".rail")));
          if (focused) document.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
          document.dispatchEvent(new CustomEvent("refreshed"));
        }
        if (!own.dataset.live) return;
      }
    } catch {
      // The server is being started again; the next turn finds it.
    }
    again();
  }
  function again() {
    setTimeout(refresh, 1000 * seconds);
  }
  again();
})();
