"use strict";
// Frames and sites are numbers into lists (see icicle.py). Text from the target is set as textContent only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { frames, parent, frame } = data;
  const ROW = 20;
  const SMALLEST = 0.0006; // of the width; narrower boxes are not drawn
  const READABLE = 16; // pixels; narrower boxes have no text
  const byId = (id) => document.getElementById(id);
  const chart = byId("chart"), detail = byId("detail"), search = byId("search"), measure = byId("measure");
  const children = parent.map(() => []);
  const depth = parent.map(() => 0);
  let totals = [], top = 0, focused = 0, flipped = false, query = "";

  for (let node = 1; node < parent.length; node++) {
    children[parent[node]].push(node);
    depth[node] = depth[parent[node]] + 1;
  }

  const sized = (value) => {
    const { unit } = data.measures[measure.selectedIndex];
    if (unit !== "bytes") return `${value.toLocaleString("en")} ${unit}`;
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let at = 0;
    while (value >= 999.5 && at < 4) { value /= 1024; at++; }
    return (at ? value.toFixed(value < 99.95 ? 1 : 0) : String(value)) + " " + units[at];
  };
  const share = (part, whole) => (whole > 0 ? ((100 * part) / whole).toFixed(1) + "%" : "0%");
  const label = (node) => {
    const [name, place] = frames[frame[node]];
    return place ? `${name} (${place})` : name;
  };

  function count() {
    totals = data.measures[measure.selectedIndex].self.slice();
    for (let node = parent.length - 1; node > 0; node--) totals[parent[node]] += totals[node];
    for (const list of children) list.sort((a, b) => totals[b] - totals[a] || a - b);
  }

  const matches = (node) => {
    const [name, place, , source] = frames[frame[node]];
    return `${name} ${place} ${source}`.toLowerCase().includes(query);
  };

  // What is drawn: the path from the outermost frame to the zoomed one, and every wide enough frame below it.
  function visible() {
    const out = [];
    for (let node = parent[top]; node >= 0; node = parent[node]) out.push([node, 0, 1]);
    const open = [[top, 0, 1]];
    while (open.length) {
      const [node, left, width] = open.pop();
      out.push([node, left, width]);
      let at = left;
      for (const child of children[node]) {
        const part = totals[top] > 0 ? totals[child] / totals[top] : 0;
        if (part >= SMALLEST) open.push([child, at, part]);
        at += part;
      }
    }
    return out;
  }

  function draw() {
    const shown = visible();
    const rows = 1 + shown.reduce((most, [node]) => Math.max(most, depth[node]), 0);
    if (!shown.some(([node]) => node === focused)) focused = top;
    const hadFocus = chart.contains(document.activeElement);
    const boxes = shown.map(([node, left, width]) => {
      const box = document.createElement("div");
      box.className = `frame ${frames[frame[node]][2]}`;
      box.classList.toggle("above", depth[node] < depth[top]);
      box.classList.toggle("match", query !== "" && matches(node));
      box.setAttribute("role", "treeitem");
      box.setAttribute("aria-level", depth[node] + 1);
      box.setAttribute("aria-label", `${label(node)}, ${sized(totals[node])}, ${share(totals[node], totals[0])}`);
      box.tabIndex = node === focused ? 0 : -1;
      box.dataset.node = node;
      box.style.left = 100 * left + "%";
      box.style.width = 100 * width + "%";
      box.style.top = (flipped ? rows - 1 - depth[node] : depth[node]) * ROW + "px";
      if (width * chart.clientWidth >= READABLE) box.textContent = label(node);
      else box.classList.add("narrow");
      return box;
    });
    chart.replaceChildren(...boxes);
    chart.style.height = rows * ROW + 2 + "px";
    chart.classList.toggle("searching", query !== "");
    byId("reset").disabled = top === 0;
    if (hadFocus) focusOn(focused);
    showMatches();
  }

  function showMatches() {
    if (!query) { byId("found").textContent = ""; return; }
    let held = 0;
    const open = [0];
    while (open.length) {
      const node = open.pop();
      if (matches(node)) held += totals[node];
      else open.push(...children[node]);
    }
    byId("found").textContent = `${sized(held)}, ${share(held, totals[0])} of all is in matching stacks`;
  }

  function describe(node) {
    const source = frames[frame[node]][3];
    const name = document.createElement("strong");
    name.textContent = label(node);
    const rest = [`${sized(totals[node])}, ${share(totals[node], totals[0])} of all`];
    if (parent[node] > 0) rest.push(`${share(totals[node], totals[parent[node]])} of its caller`);
    if (source) rest.push(source);
    detail.replaceChildren(name, document.createTextNode("  " + rest.join(", ")));
  }

  function focusOn(node) {
    const box = chart.querySelector(`[data-node="${node}"]`);
    if (!box) return;
    const before = chart.querySelector('[tabindex="0"]');
    if (before) before.tabIndex = -1;
    focused = node;
    box.tabIndex = 0;
    box.focus({ preventScroll: false });
    describe(node);
  }

  function zoom(node) { top = focused = node; draw(); describe(node); }

  function neighbour(node, step) {
    const list = parent[node] >= 0 ? children[parent[node]] : [node];
    return list[list.indexOf(node) + step];
  }

  const nodeOf = (event) => {
    const box = event.target.closest(".frame");
    return box ? Number(box.dataset.node) : null;
  };
  chart.addEventListener("click", (event) => {
    const node = nodeOf(event);
    if (node !== null) { zoom(node); focusOn(node); }
  });
  chart.addEventListener("mouseover", (event) => { const node = nodeOf(event); if (node !== null) describe(node); });
  chart.addEventListener("focusin", (event) => { const node = nodeOf(event); if (node !== null) describe(node); });
  chart.addEventListener("keydown", (event) => {
    const node = nodeOf(event);
    if (node === null) return;
    const deeper = flipped ? "ArrowUp" : "ArrowDown", back = flipped ? "ArrowDown" : "ArrowUp";
    if (event.key === deeper) focusOn(children[node][0]);
    else if (event.key === back) focusOn(parent[node]);
    else if (event.key === "ArrowRight") focusOn(neighbour(node, 1));
    else if (event.key === "ArrowLeft") focusOn(neighbour(node, -1));
    else if (event.key === "Enter" || event.key === " ") { zoom(node); focusOn(node); }
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target === search;
    if (event.key === "/" && !typing) { search.focus(); search.select(); event.preventDefault(); }
    else if (event.key === "Escape" && typing && search.value) { search.value = ""; query = ""; draw(); }
    else if (event.key === "Escape" && top !== 0) zoom(0);
  });
  search.addEventListener("input", () => { query = search.value.trim().toLowerCase(); draw(); });
  byId("reset").addEventListener("click", () => zoom(0));
  byId("flip").addEventListener("click", (event) => {
    flipped = !flipped;
    event.target.setAttribute("aria-pressed", flipped);
    draw();
  });
  byId("theme").addEventListener("click", () => {
    const page = document.documentElement;
    const dark = page.dataset.theme ? page.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    page.dataset.theme = dark ? "light" : "dark";
  });
  for (const button of document.querySelectorAll("button[data-node]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      zoom(Number(button.dataset.node));
      chart.scrollIntoView({ block: "center" });
      focusOn(top);
    });
  }
  measure.addEventListener("change", () => { count(); if (!totals[top]) top = 0; draw(); describe(top); });

  window.addEventListener("resize", draw);

  for (const { name } of data.measures) measure.add(new Option(name));
  count();
  draw();
  describe(0);
})();
