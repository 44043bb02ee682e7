// Fetches the page again every few seconds and puts what is new into place; without a script it
// stays as it was when it was opened.
"use strict";

const EVERY = 3000; // milliseconds
const SLOWEST = 30000; // where the server does not answer

let pause = EVERY;

async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.pathname, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      show(new DOMParser().parseFromString(await answer.text(), "text/html"));
      pause = EVERY;
    } catch {
      pause = Math.min(2 * pause, SLOWEST);
      document.getElementById("detail").textContent =
        "The server does not answer; this is what it said last.";
    }
  }
  setTimeout(refresh, pause);
}

function show(anew) {
  const home = document.body.dataset.home === "yes";
  if (home && anew.body.dataset.home !== "yes") {
    location.reload(); // the gallery has taken this address
    return;
  }
  document.title = anew.title;
  const said = document.getElementById("said");
  const words = anew.getElementById("said").textContent;
  if (said.textContent !== words) said.textContent = words; // read out once, not every time
  replace(document.querySelector(".trail"), anew.querySelector(".trail"));
  for (const id of ["headline", "detail", "main"]) {
    replace(document.getElementById(id), anew.getElementById(id));
  }
}

function replace(old, anew) {
  if (old.outerHTML === anew.outerHTML) return;
  const focused = old.contains(document.activeElement) && document.activeElement.getAttribute("href");
  old.replaceWith(document.adoptNode(anew));
  if (focused) anew.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

document.addEventListener("visibilitychange", () => {
  pause = EVERY;
});
setTimeout(refresh, EVERY);
