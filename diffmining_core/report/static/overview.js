// Searches and sorts the labels of the overview. Without it all of them are there, by name.
(() => {
  "use strict";
  const tools = document.getElementById("tools");
  if (!tools) return;
  const list = document.getElementById("labels");
  const cards = [...list.children];
  const { search, sort, found } = tools.elements;
  const letters = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLocaleLowerCase();
  const names = new Map(cards.map((card) => [card, letters(card.dataset.name)]));
  const byName = new Map(cards.map((card, place) => [card, place]));

  function order() {
    const number = (card) => (card.dataset[sort.value] === "" ? -Infinity : Number(card.dataset[sort.value]));
    const before = (a, b) => byName.get(a) - byName.get(b);
    const sorted = sort.value === "name" ? cards : [...cards].sort((a, b) => number(b) - number(a) || before(a, b));
    list.append(...sorted);
  }

  function filter() {
    const wanted = letters(search ? search.value.trim() : "");
    let shown = 0;
    for (const card of cards) {
      card.hidden = !names.get(card).includes(wanted);
      if (!card.hidden) shown += 1;
    }
    found.textContent = wanted ? `${shown} of ${cards.length}` : "";
    document.getElementById("nothing-found").hidden = shown > 0;
  }

  tools.addEventListener("submit", (event) => {
    event.preventDefault();
    const first = cards.filter((card) => !card.hidden);
    if (first.length === 1) first[0].querySelector("a").click();
  });
  if (search) {
    search.addEventListener("input", filter);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.target.closest("input, select, textarea")) return;
      event.preventDefault();
      search.focus();
    });
  }
  sort.addEventListener("change", order);
  tools.hidden = false;
  order(); // a browser that comes back keeps what was typed
  filter();
})();
