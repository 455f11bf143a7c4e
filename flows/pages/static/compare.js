// Both texts, or one text with the words that differ.
"use strict";
document.querySelector("[data-words]")?.addEventListener("click", () => {
  document.querySelector(".compared").classList.toggle("by-words");
});
