// The rollouts of a report: found by a word, and sorted.
"use strict";
(() => {
  const body = document.querySelector("[data-rollouts] tbody");
  if (!body) return;
  const rows = [...body.rows];
  const find = document.querySelector("[data-find]");
  const sort = document.querySelector("[data-sort]");
  const found = document.querySelector("[data-found]");

  function show() {
    const word = find.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(word);
      count += !row.hidden;
    }
    found.textContent = `${count} of ${rows.length}`;
  }
  find.addEventListener("input", show);
  sort.addEventListener("change", () => {
    const name = sort.value;
    const sorted = name ? rows.toSorted((a, b) => Number(b.dataset[name]) - Number(a.dataset[name])) : rows;
    body.append(...sorted);
  });
  show();
})();
