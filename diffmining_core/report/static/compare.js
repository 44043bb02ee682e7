// Shows the pages of two labels side by side; which two stands behind # in the address.
(() => {
  "use strict";
  const sides = [...document.querySelectorAll(".compared")].map((side) => ({
    select: side.querySelector("select"),
    frame: side.querySelector("iframe"),
  }));

  function show({ select, frame }) {
    const page = `labels/${select.value}.html`;
    // Not `src`: the page shown before would stay behind the browser's back button.
    if (frame.dataset.page !== page) frame.contentWindow.location.replace(new URL(page, document.baseURI));
    frame.dataset.page = page;
  }

  function read() {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const side of sides) {
      const slug = asked.get(side.select.name);
      if ([...side.select.options].some((option) => option.value === slug)) side.select.value = slug;
    }
    const [a, b] = sides.map((side) => side.select);
    if (a.value === b.value && !asked.has("b")) b.selectedIndex = (a.selectedIndex + 1) % b.options.length;
    sides.forEach(show);
  }

  for (const side of sides) {
    side.frame.dataset.page = side.frame.getAttribute("src");
    side.select.addEventListener("change", () => {
      history.replaceState(null, "", `#${sides.map(({ select }) => `${select.name}=${select.value}`).join("&")}`);
      show(side);
    });
  }
  addEventListener("hashchange", read);
  read();
})();
