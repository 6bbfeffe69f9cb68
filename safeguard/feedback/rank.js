"use strict";
// Ranking some pictures: by number keys, by clicks, or by dragging them into an order. The rest of the page is in page.js.

let group = []; // the pictures to rank
let order = []; // those of them that are chosen, from most to least

function drawRanking(images) {
  group = [...images].sort(); // an order that says nothing
  order = [];
  document.documentElement.style.setProperty("--many", group.length);
  $("group").replaceChildren(...group.map((digest, at) => {
    const tile = rankTile(digest, String(at + 1));
    tile.setAttribute("aria-label", `Picture ${at + 1}`);
    tile.onclick = () => pick(at);
    return entry(tile);
  }));
  drawOrder();
}

function rankTile(digest, number) {
  const tile = document.createElement("button");
  const img = document.createElement("img");
  const mark = document.createElement("span");
  tile.className = "tile";
  tile.dataset.image = digest;
  mark.className = "number";
  mark.textContent = number;
  tile.append(img, mark);
  tile.onpointerdown = (event) => lift(event, digest, tile);
  show(img, digest);
  return tile;
}

function entry(tile) {
  const line = document.createElement("li");
  line.append(tile);
  return line;
}

function drawOrder() {
  const { length } = group;
  const held = [...$("order").querySelectorAll(".tile")].indexOf(document.activeElement);
  $("order").replaceChildren(...group.map((_, at) => {
    const digest = order[at];
    const ends = at === 0 ? "most" : at === length - 1 ? "least" : "";
    if (digest === undefined) {
      const line = document.createElement("li");
      line.textContent = ends;
      return line;
    }
    const number = group.indexOf(digest) + 1;
    const tile = rankTile(digest, ends ? `${number} ${ends}` : String(number));
    tile.setAttribute("aria-label", `Place ${at + 1}${ends ? `, ${ends}` : ""}: picture ${number}. Press to take it out`);
    tile.onclick = () => pick(number - 1);
    const line = entry(tile);
    line.className = "filled";
    return line;
  }));
  [...$("group").querySelectorAll(".tile")].forEach((tile) => {
    const chosen = order.includes(tile.dataset.image);
    tile.classList.toggle("chosen", chosen);
    tile.setAttribute("aria-pressed", String(chosen));
  });
  $("save").disabled = length < 2 || order.length < length;
  $("clear").disabled = order.length === 0;
  if (held >= 0) ([...$("order").querySelectorAll(".tile")].at(held) ?? $("group").querySelector(".tile"))?.focus();
}

function pick(at) {
  const digest = group[at];
  if (digest === undefined) return;
  order = order.includes(digest) ? order.filter((one) => one !== digest) : [...order, digest];
  const left = group.filter((one) => !order.includes(one));
  if (left.length === 1 && order.includes(digest)) order = [...order, ...left];
  drawOrder();
  tell(`${order.length} of ${group.length} chosen`);
}

function lift(event, digest, tile) {
  if (event.button !== 0) return;
  const start = [event.clientX, event.clientY];
  let moved = false;
  const under = (at) => document.elementsFromPoint(at.clientX, at.clientY).find((one) => one.parentElement === $("order"));
  const onMove = (at) => {
    if (!moved && Math.hypot(at.clientX - start[0], at.clientY - start[1]) < 6) return;
    moved = true;
    tile.classList.add("lifted");
    for (const line of $("order").children) line.classList.toggle("over", line === under(at));
  };
  const onUp = (at) => {
    removeEventListener("pointermove", onMove);
    removeEventListener("pointerup", onUp);
    removeEventListener("pointercancel", onUp);
    tile.classList.remove("lifted");
    if (!moved) return;
    tile.addEventListener("click", (click) => click.stopImmediatePropagation(), { capture: true, once: true });
    const slot = at.type === "pointerup" ? under(at) : undefined;
    if (slot !== undefined) {
      const rest = order.filter((one) => one !== digest);
      rest.splice([...$("order").children].indexOf(slot), 0, digest);
      order = rest;
    }
    setTimeout(drawOrder); // when the click that follows is over
  };
  addEventListener("pointermove", onMove);
  addEventListener("pointerup", onUp);
  addEventListener("pointercancel", onUp);
}

async function save() {
  if ($("save").disabled) return;
  const images = [...order].reverse();
  $("save").disabled = true;
  tell("Saving");
  try {
    take(await send("/api/rank", { concept: state.concept, images }));
    drawRanking(state.group);
    tell("Ranking saved");
    calm();
  } catch (fault) {
    complain(`This ranking was not saved: ${fault.message}`);
    drawOrder();
  }
}
