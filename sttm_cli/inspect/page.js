"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [steps, rows, columns] = data.inspect.grid;
const budgets = data.inspect.budgets;
const $ = (id) => document.getElementById(id);
const state = { step: 0, budget: Math.max(0, budgets.findIndex((row) => row.budget !== 1)) };

// Arrays travel as base64 of deflated little-endian numbers.
async function unpacked(text, Numbers) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Numbers(await new Response(stream).arrayBuffer());
}

// For one budget: the token of each cell (-1: dropped), where each token begins, its mean colour.
async function merge(packed, places, colours) {
  const tokens = await unpacked(packed, Int32Array), boxed = await unpacked(places, Int32Array);
  for (let i = 1; i < tokens.length; i++) tokens[i] += tokens[i - 1];
  const count = boxed.length / 5, boxes = Array.from({ length: steps }, () => []);
  const first = new Int32Array(count), cells = new Int32Array(count);
  const sums = new Float64Array(3 * count);
  for (let token = 0; token < count; token++) {
    const [step, ...box] = boxed.subarray(5 * token, 5 * token + 5);
    first[token] = step;
    boxes[step].push(box);
  }
  tokens.forEach((token, i) => {
    if (token < 0) return;
    cells[token]++;
    for (let c = 0; c < 3; c++) sums[3 * token + c] += colours[3 * i + c];
  });
  const mean = (token) =>
    [0, 1, 2].map((c) => (token < 0 ? 0 : Math.round(sums[3 * token + c] / cells[token])));
  const began = boxes.map((some) => some.length);
  const whole = count === tokens.length, drops = tokens.includes(-1);
  const carries = tokens.some((token, i) => token >= 0 && first[token] < Math.floor(i / rows / columns));
  return { tokens, first, cells, boxes, began, mean, whole, drops, carries };
}

const clock = (seconds) => {
  const tenths = Math.round(seconds * 10), minutes = Math.floor(tenths / 600);
  const two = (n) => String(n).padStart(2, "0");
  const hours = minutes >= 60 ? Math.floor(minutes / 60) + ":" : "";
  const rest = tenths % 10 ? "." + (tenths % 10) : "";
  return hours + two(minutes % 60) + ":" + two(Math.floor((tenths % 600) / 10)) + rest;
};

// ---- the two pictures

const images = new Map();
async function frame(step) {
  if (!images.has(step)) {
    const image = new Image();
    image.src = "data:image/jpeg;base64," + data.images[step];
    images.set(step, image.decode().then(() => image));
  }
  return images.get(step);
}

const scale = Math.max(1, Math.ceil(768 / Math.max(data.width, data.height)));
const edge = (i, count, pixels) => Math.round((i * pixels) / count);

function eachCell(step, tokens, width, height, draw) {
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const left = edge(column, columns, width), top = edge(row, rows, height);
      const right = edge(column + 1, columns, width), bottom = edge(row + 1, rows, height);
      const token = tokens[(step * rows + row) * columns + column];
      draw(token, left, top, right - left, bottom - top);
    }
  }
}

const level = ([top, left, bottom, right]) =>
  Math.min(Math.ceil(Math.log2(Math.max(bottom - top, right - left))), data.levels.length - 1);

function draw(merged, image) {
  const { step } = state, { tokens, first, mean } = merged;
  const width = data.width * scale, height = data.height * scale;
  const [cells, means] = ["cells", "means"].map((id) => {
    const canvas = $(id);
    canvas.width = width;
    canvas.height = height;
    return canvas.getContext("2d");
  });
  cells.drawImage(image, 0, 0, width, height);
  const paper = getComputedStyle(document.body).getPropertyValue("--card");
  eachCell(step, tokens, width, height, (token, x, y, w, h) => {
    means.fillStyle = `rgb(${mean(token)})`;
    means.fillRect(x, y, w, h);
    if (first[token] === step) return;
    for (const pen of [cells, means]) {
      pen.globalAlpha = 0.68;
      pen.fillStyle = paper;
      pen.fillRect(x, y, w, h);
      pen.globalAlpha = 1;
    }
  });
  if (merged.whole) return;
  const line = Math.min(Math.max(Math.round(width / columns / 32), 1), 4);
  // All seams below all lines: one of the two tones stands out on any frame.
  for (const [colours, wide] of [[data.seams, line + 4], [data.levels, line]]) {
    cells.lineWidth = wide;
    for (const box of merged.boxes[step]) {
      const [top, bottom] = [box[0], box[2]].map((i) => edge(i, rows, height));
      const [left, right] = [box[1], box[3]].map((i) => edge(i, columns, width));
      cells.strokeStyle = colours[level(box)];
      cells.strokeRect(left, top, right - left, bottom - top);
    }
  }
}

// ---- the strip: tokens that begin, per second of video

const spans = data.times.map((time, i) => {
  const last = i + 1 === data.times.length;
  const span = last && i ? time - data.times[i - 1] : (data.times[i + 1] ?? data.inspect.video.duration_s) - time;
  return Math.max(span, 0.001);
});
const start = data.times[0], length = data.times.at(-1) + spans.at(-1) - start;
const most = Math.max(...spans.map((span) => (rows * columns) / span));

function bars(name, counts) {
  return counts.map((count, i) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const high = (100 * count) / spans[i] / most;
    const place = { class: name, x: data.times[i] - start, width: spans[i] * 0.96, y: 100 - high, height: high };
    for (const [key, value] of Object.entries(place)) bar.setAttribute(key, value);
    return bar;
  });
}

function drawStrip(merged) {
  const before = bars("full", spans.map(() => rows * columns));
  $("bars").replaceChildren(...before, ...bars("kept", merged.began));
  $("strip").setAttribute("aria-label",
    `Tokens per second of video at budget ${budgets[state.budget].budget}, at most ${Math.round(most)}`);
}

// ---- all together

let merges = [];

async function show() {
  const { step, budget } = state, merged = merges[budget];
  $("step").value = step;
  const caption = `${clock(data.times[step])}  ${rows * columns} → ${merged.began[step]} tokens`;
  $("caption").textContent = caption;
  $("cell").textContent = "";
  $("step").setAttribute("aria-valuetext", caption);
  $("cells").setAttribute("aria-label", `The frame with its cells: ${caption}`);
  $("rate").textContent = `${(merged.began[step] / spans[step]).toFixed(1)} of ` +
    `${((rows * columns) / spans[step]).toFixed(1)} tokens per second`;
  const middle = data.times[step] - start + spans[step] / 2;
  const cursor = { x: middle - length / 600, width: length / 300, y: 0, height: 100 };
  for (const [key, value] of Object.entries(cursor)) $("cursor").setAttribute(key, value);
  const image = await frame(step);
  // A later step may have been asked for while this one was decoded.
  if (step === state.step && budget === state.budget) draw(merged, image);
}

// What the token of the cell under the pointer stands for.
function tell(event, box) {
  const { tokens, first, cells } = merges[state.budget];
  const row = Math.floor((rows * (event.clientY - box.top)) / box.height);
  const column = Math.floor((columns * (event.clientX - box.left)) / box.width);
  if (row < 0 || row >= rows || column < 0 || column >= columns) return;
  const token = tokens[(state.step * rows + row) * columns + column];
  if (token < 0) return ($("cell").textContent = "dropped");
  const many = cells[token] === 1 ? "this cell alone" : `${cells[token]} cells`;
  $("cell").textContent = `a token from ${clock(data.times[first[token]])}, for ${many}`;
}

function choose(budget) {
  state.budget = budget;
  const row = budgets[budget], share = (100 * row.video_kept) / row.video_full;
  $("kept").textContent = `${row.video_kept.toLocaleString("en")} of ` +
    `${row.video_full.toLocaleString("en")} tokens kept (${share.toFixed(1)} %)` + (merges[budget].whole ? ", nothing is merged" : "");
  document.querySelectorAll("tr[data-budget]").forEach((line) => {
    line.classList.toggle("chosen", Number(line.dataset.budget) === budget);
  });
  drawStrip(merges[budget]);
  return show();
}

function go(step) {
  state.step = Math.min(Math.max(step, 0), steps - 1);
  return show();
}

function addBudgets() {
  budgets.forEach((row, i) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "budget", value: i, checked: i === state.budget });
    input.addEventListener("change", () => choose(i));
    label.append(input, String(row.budget));
    $("budgets").append(label);
  });
}

function addLegend() {
  const shown = merges.filter((merged) => !merged.whole);
  const used = new Set(shown.flatMap((merged) => merged.boxes.flat().map(level)));
  const add = (text, style) => {
    const entry = document.createElement("span"), mark = document.createElement("i");
    Object.assign(mark.style, style);
    entry.append(mark, text);
    $("legend").append(entry);
  };
  [...used].sort().forEach((level) => {
    const cells = level ? "cells" : "cell", seam = `0 0 0 1px ${data.seams[level]}`;
    add(`${2 ** level}×${2 ** level} ${cells}`, { borderColor: data.levels[level], boxShadow: seam });
  });
  const faded = { borderColor: "transparent", background: "color-mix(in srgb, #28a046 32%, var(--card))" };
  if (shown.some((merged) => merged.carries)) add("faded: an earlier frame's token stands for it", faded);
  if (shown.some((merged) => merged.drops)) add("faded: dropped", faded);
}

function listen() {
  $("step").addEventListener("input", () => go(Number($("step").value)));
  const seek = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = $("strip").getBoundingClientRect();
    const time = start + (length * (event.clientX - box.left)) / box.width;
    const next = data.times.findIndex((other) => other > time);
    go((next < 0 ? steps : next) - 1);
  };
  for (const id of ["cells", "means"]) {
    $(id).addEventListener("pointermove", (event) => tell(event, $(id).getBoundingClientRect()));
    $(id).addEventListener("pointerleave", () => ($("cell").textContent = ""));
  }
  $("strip").addEventListener("pointerdown", seek);
  $("strip").addEventListener("pointermove", seek);
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && event.target.tagName !== "INPUT") go(state.step + by);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
}

async function main() {
  const colours = await unpacked(data.cells, Uint8Array);
  merges = await Promise.all(data.tokens.map((packed, i) => merge(packed, data.boxes[i], colours)));
  $("step").max = steps - 1;
  // The thumb, 16 pixels wide, stands below the middle of its step's bar.
  $("step").style.width = `calc(${(100 * (steps - 1)) / steps}% + 16px)`;
  $("step").style.marginLeft = `calc(${50 / steps}% - 8px)`;
  $("pictures").classList.toggle("tall", data.height > data.width);
  $("strip").setAttribute("viewBox", `0 0 ${length} 100`);
  $("from").textContent = clock(start);
  $("to").textContent = clock(data.times.at(-1));
  addBudgets();
  addLegend();
  listen();
  await choose(state.budget);
  document.documentElement.dataset.ready = "yes";
}

main().catch((error) => {
  $("trouble").textContent = `The pictures cannot be shown: ${error.message}`;
  $("trouble").hidden = false;
  throw error;
});
