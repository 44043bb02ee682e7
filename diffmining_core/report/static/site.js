// Opens a patch in its source image with the typicality laid over it. Nothing is fetched: paths and
// sizes are in the page.
(() => {
  "use strict";
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const viewer = document.getElementById("viewer");
  const find = (selector) => viewer.querySelector(selector);
  const stages = [...viewer.querySelectorAll(".stage")];
  const slider = find(".slider input");
  let shown = null;

  const siblings = (patch) => [...patch.closest(".row").querySelectorAll(".patch")];

  function show(patch) {
    shown = patch;
    const image = page.images[Number(patch.dataset.image)];
    const whole = !patch.dataset.box;
    const [y, x, size] = whole ? [0, 0, 0] : patch.dataset.box.split(" ").map(Number);
    const row = siblings(patch);
    find(".stages").classList.toggle("two", Boolean(image.before));
    for (const stage of stages) {
      const overlay = stage.dataset.side === "before" ? image.before : image.overlay;
      stage.hidden = !overlay;
      if (overlay) fillStage(stage, image, overlay, { y, x, size });
    }
    viewer.classList.toggle("whole", whole);
    const tile = patch.querySelector("svg");
    find(".zoom").setAttribute("viewBox", tile.getAttribute("viewBox"));
    find(".zoom").replaceChildren(tile.firstElementChild.cloneNode());
    find("#viewer-title").textContent = `${page.label} · ${patch.closest(".row").dataset.row}`;
    find(".score output").textContent = patch.dataset.score;
    find(".of-what").textContent = whole ? "image" : "patch";
    find(".file-name").textContent = image.name;
    find(".file-path").textContent = image.path;
    find(".file-id").textContent = image.id;
    fillAlike(patch);
    find(".place").textContent = `${row.indexOf(patch) + 1} of ${row.length}`;
    // Not `disabled`: a button that loses the focus takes the arrow keys with it.
    find("[data-act=previous]").setAttribute("aria-disabled", patch === row[0]);
    find("[data-act=next]").setAttribute("aria-disabled", patch === row[row.length - 1]);
    for (const neighbour of [row[row.indexOf(patch) - 1], row[row.indexOf(patch) + 1]]) preload(neighbour);
    if (!viewer.open) viewer.showModal();
  }

  function fillStage(stage, image, overlay, { y, x, size }) {
    const canvas = stage.querySelector(".canvas");
    canvas.style.setProperty("--width", image.width);
    canvas.style.setProperty("--height", image.height);
    const photo = stage.querySelector(".photo");
    const cover = stage.querySelector(".overlay");
    setAll(photo, { src: image.source, alt: image.name });
    cover.src = overlay;
    // Over a slow line, no photograph is seen under another's overlay.
    canvas.classList.add("loading");
    Promise.allSettled([photo.decode(), cover.decode()]).then(() => {
      if (cover.getAttribute("src") === overlay) canvas.classList.remove("loading");
    });
    const frame = stage.querySelector(".frame");
    frame.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    for (const box of frame.children) setAll(box, { x, y, width: size, height: size });
  }

  // The patches that the model's features call nearest, each a button to it.
  function fillAlike(patch) {
    const numbers = (patch.dataset.alike || "").split(" ").filter(Boolean);
    find(".alike-patches").hidden = numbers.length === 0;
    find(".alike-patches ul").replaceChildren(
      ...numbers.map((number) => {
        const other = document.querySelector(`.patch[data-number="${number}"]`);
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-label", other.getAttribute("aria-label"));
        button.append(other.querySelector("svg").cloneNode(true));
        button.addEventListener("click", () => show(other));
        const item = document.createElement("li");
        item.append(button);
        return item;
      }),
    );
  }

  function preload(patch) {
    if (!patch) return;
    const image = page.images[Number(patch.dataset.image)];
    for (const path of [image.source, image.overlay, image.before]) if (path) new Image().src = path;
  }

  function setAll(element, attributes) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  }

  function turn(by) {
    const row = siblings(shown);
    const patch = row[row.indexOf(shown) + by];
    if (patch) show(patch);
  }

  function turnRow(by) {
    const rows = [...document.querySelectorAll(".row")].filter((row) => row.offsetParent);
    const row = rows[rows.indexOf(shown.closest(".row")) + by];
    if (row) show(row.querySelector(".patch"));
  }

  function fade() {
    for (const overlay of viewer.querySelectorAll(".overlay")) overlay.style.opacity = slider.value / 100;
  }

  // Sorts the clusters, and hides those with few patches; small ones stay folded at the end.
  const tools = document.getElementById("tools");
  if (tools) {
    const list = document.getElementById("ranked");
    const clusters = [...list.querySelectorAll(".cluster")];
    const { sort, least, found } = tools.elements;
    const order = () => {
      const falling = sort.value === "rank" ? 1 : -1;
      const number = (cluster) => falling * Number(cluster.dataset[sort.value]);
      list.append(...clusters.sort((a, b) => number(a) - number(b) || a.dataset.rank - b.dataset.rank));
      for (const cluster of clusters) cluster.hidden = Number(cluster.dataset.members) < Number(least.value);
      const hidden = clusters.filter((cluster) => cluster.hidden).length;
      found.textContent = hidden ? `${hidden} of ${clusters.length} hidden` : "";
    };
    tools.addEventListener("submit", (event) => event.preventDefault());
    sort.addEventListener("change", order);
    least.addEventListener("input", order);
    tools.hidden = clusters.length < 2;
    order();
  }

  // Beside another label the way there is the chooser above.
  if (window.self !== window.top) document.body.classList.add("framed");

  document.addEventListener("click", (event) => {
    const patch = event.target.closest(".patch");
    if (!patch || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(patch);
  });

  const acts = { close: () => viewer.close(), previous: () => turn(-1), next: () => turn(1) };
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close(); // the backdrop
    const button = event.target.closest("[data-act]");
    if (button) acts[button.dataset.act]();
  });

  const keys = {
    ArrowLeft: () => turn(-1),
    ArrowRight: () => turn(1),
    ArrowUp: () => turnRow(-1),
    ArrowDown: () => turnRow(1),
  };
  viewer.addEventListener("keydown", (event) => {
    if (event.target === slider || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });

  viewer.addEventListener("close", () => shown.focus());
  slider.addEventListener("input", fade);
  slider.addEventListener("pointerup", () => slider.blur()); // arrow keys turn pages again
  fade();
})();
