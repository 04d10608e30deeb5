"use strict";
// Sorts and filters tables, reads curves aloud point by point, and moves the focus to an expert's page.
// Without it the page shows the same numbers; text is only ever set as text, never as markup.

const tip = document.getElementById("tip");

function make(name, text, parent) {
  const element = document.createElement(name);
  element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

// -- tables -----------------------------------------------------------------------------------

function keyOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.key === undefined ? cell.textContent.trim() : Number(cell.dataset.key);
}

function order(a, b, down) {
  const numbers = [a, b].map((key) => typeof key === "number");
  if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;  // what is no number stands last, both ways
  const up = numbers[0] ? a - b : a.localeCompare(b, "en", { numeric: true });
  return down ? -up : up;
}

function sort(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const known = [...body.rows].map((row) => [keyOf(row, column), row]);
  known.sort(([a], [b]) => order(a, b, down));
  body.append(...known.map(([, row]) => row));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const name = head.textContent;
    head.textContent = "";
    const button = make("button", name, head);
    button.type = "button";
    button.addEventListener("click", () => sort(table, column));
  });
}

function makeFilter(table) {
  const label = make("label", "Filter ");
  label.className = "find";
  const input = make("input", "", label);
  input.type = "search";
  const count = make("output", "", label);
  const rows = [...table.tBodies[0].rows];
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const left = rows.filter((row) => !row.hidden).length;
    count.textContent = `${left} of ${rows.length} rows`;
  });
  table.parentElement.before(label);
}

for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length < 2) continue;
  makeSortable(table);
  if (table.matches(".filtered")) makeFilter(table);
}

// -- curves -----------------------------------------------------------------------------------

function pointsOf(line) {
  const values = line.dataset.values.split(" ");
  const name = line.querySelector("title").textContent;
  return [...line.points].map((point, n) => {
    const [step, value] = values[n].split(":");
    return { x: point.x, y: point.y, color: line.classList[1], said: `${name}: ${value} at step ${step}` };
  });
}

function showPoint(chart, dot, point) {
  dot.setAttribute("cx", point.x);
  dot.setAttribute("cy", point.y);
  dot.setAttribute("class", `dot ${point.color}`);
  dot.removeAttribute("visibility");
  const box = chart.getBoundingClientRect();
  const scale = box.width / chart.viewBox.baseVal.width;
  place(point.said, box.left + point.x * scale, box.top + point.y * scale);
}

function place(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const left = Math.min(x + 12, document.documentElement.clientWidth - tip.offsetWidth - 4);
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, y - tip.offsetHeight - 10)}px`;
}

function nearest(points, x, y) {
  const distance = (p) => (p.x - x) ** 2 + (p.y - y) ** 2;
  return points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
}

function readable(chart) {
  const lines = [...chart.querySelectorAll("polyline")].map(pointsOf);
  if (!lines.length) return;
  const all = lines.flat();
  const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  dot.setAttribute("r", 4.5);
  dot.setAttribute("visibility", "hidden");
  chart.append(dot);
  let line = 0, at = -1;
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    showPoint(chart, dot, nearest(all, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale));
  });
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    line = (line + step[1] + lines.length) % lines.length;
    at = Math.max(0, Math.min(lines[line].length - 1, at + step[0]));
    showPoint(chart, dot, lines[line][at]);
  });
  for (const left of ["pointerleave", "blur"]) {
    chart.addEventListener(left, () => { tip.hidden = true; dot.setAttribute("visibility", "hidden"); });
  }
  for (const title of chart.querySelectorAll("title")) title.remove();  // the tip says it, and where
}

document.querySelectorAll("svg.chart").forEach(readable);

// -- pages ------------------------------------------------------------------------------------

function arrive() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.matches("details")) target.open = true;
  if (target.matches(".expert")) { target.focus(); scrollTo(0, 0); }
}

function leave(event) {
  const open = document.querySelector(".expert:target");
  if (event.key === "Escape" && open) open.querySelector("nav a").click();
}

addEventListener("hashchange", arrive);
addEventListener("keydown", leave);
arrive();
