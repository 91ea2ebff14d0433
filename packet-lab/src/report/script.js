"use strict";
const tools = document.getElementById("tools");
if (tools) {
  tools.hidden = false;
  const items = [...document.querySelectorAll("details.item")].map((item) => ({
    item,
    words: (item.dataset.words || item.querySelector("summary").textContent).toLowerCase(),
    failed: item.classList.contains("fail"),
  }));
  const search = document.getElementById("search");
  const failed = document.getElementById("only-failed");
  const shown = document.getElementById("shown");
  const apply = () => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { item, words, failed: isFailed } of items) {
      const fits = wanted.every((word) => words.includes(word)) && (!failed.checked || isFailed);
      item.hidden = !fits;
      count += fits;
    }
    for (const area of document.querySelectorAll(".area"))
      area.hidden = !area.querySelector("details.item:not([hidden])");
    shown.textContent = count + " of " + items.length + " shown";
  };
  search.addEventListener("input", apply);
  failed.addEventListener("change", apply);
  document.getElementById("open-all").addEventListener("click", () => {
    for (const { item } of items) if (!item.hidden) item.open = true;
  });
  document.getElementById("close-all").addEventListener("click", () => {
    for (const { item } of items) item.open = false;
  });
  apply();
}
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", open);
open();
