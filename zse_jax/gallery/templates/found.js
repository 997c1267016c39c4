// The results, when pad.js has an answer. A click on a photo opens a panel beside it, whose explanation
// is requested; the other buttons change the query (pad.js). Only a page of this machine knows paths.
const live = document.createElement("div");  // Read aloud by screen readers when it changes.
live.className = "zse-live";
live.setAttribute("role", "status");
document.body.append(live);
let focused = null;

const made = (name, text, attributes = {}) => {
  const node = Object.assign(document.createElement(name), {textContent: text});
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};

const close = (focus = false) => {
  const panel = element.querySelector(".zse-panel");
  if (!panel) return;
  const opener = panel.previousElementSibling.querySelector("[data-act=open]");
  panel.remove();
  opener.setAttribute("aria-expanded", "false");
  if (focus) opener.focus();
};

const open = tile => {
  const again = tile.nextElementSibling?.matches(".zse-panel");
  close();
  if (again) return;
  tile.querySelector("[data-act=open]").setAttribute("aria-expanded", "true");
  const {photo, path, name, about} = tile.dataset;
  const panel = made("li", "", {class: "zse-panel", "data-photo": photo});
  const head = made("header", "");
  head.append(made("h2", name), made("span", about));
  if (path) {
    head.append(made("button", "Copy path", {type: "button", "data-act": "path", "data-path": path, title: path}),
                made("button", "Open folder", {type: "button", "data-act": "folder"}));
  }
  head.append(made("button", "Close", {type: "button", "data-act": "close"}));
  panel.append(head, made("div", "", {class: "zse-reply"}), made("div", "Comparing the drawing with the photo, place by place … The first time takes some seconds.", {class: "zse-place"}));
  tile.after(panel);
  const ask = query => server.explain(JSON.stringify({query, photo}));
  document.dispatchEvent(new CustomEvent("zse", {detail: {act: "why", reply: query => say(panel, ask(query))}}));
};

const NO_ANSWER =
  '<p class="zse-problem" role="alert">No answer: does the program that serves this page still run?</p>';

// Shows an explanation in its panel, if that is still open.
const say = async (panel, answer) => {
  const place = panel.querySelector(".zse-place"), part = made("div", "");
  part.innerHTML = await answer ?? NO_ANSWER;
  await Promise.all([...part.querySelectorAll("img")].map(image => image.decode().catch(() => 0)));
  if (!panel.isConnected) return;
  place.replaceChildren(part);
  panel.scrollIntoView({block: "nearest"});
};

const copy = async (text, button) => {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = live.textContent = "Copied";
  } catch {
    prompt("Copy this:", text);
  }
};

// The drawing and the photos in one picture. The browser has the fonts for names in any script.
const sheet = async () => {
  const tiles = [...element.querySelectorAll(".zse-tile")], cell = 180, line = 22, gap = 10;
  const columns = Math.min(6, tiles.length + 1), rows = Math.ceil((tiles.length + 1) / columns);
  const canvas = document.createElement("canvas"), brush = canvas.getContext("2d");
  canvas.width = gap + columns * (cell + gap);
  canvas.height = gap + rows * (cell + line + gap);
  brush.fillStyle = "#fff";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.font = "13px system-ui, sans-serif";
  const put = (picture, wide, high, text, place) => {
    const x = gap + place % columns * (cell + gap), y = gap + Math.floor(place / columns) * (cell + line + gap);
    const scale = cell / Math.max(wide, high);
    brush.drawImage(picture, x + (cell - wide * scale) / 2, y + (cell - high * scale) / 2, wide * scale, high * scale);
    brush.fillStyle = "#000";
    brush.fillText(text, x, y + cell + 15, cell);
  };
  const drawing = document.querySelector("#pad canvas");
  put(drawing, drawing.width, drawing.height, "the drawing", 0);
  for (const [i, tile] of tiles.entries()) {
    const image = new Image();
    image.src = tile.querySelector("img").src;
    await image.decode();
    put(image, image.naturalWidth, image.naturalHeight, tile.dataset.name, i + 1);
  }
  const link = made("a", "", {download: "found.png", href: canvas.toDataURL("image/png")});
  link.click();
};

const acts = {
  open: (button, tile) => open(tile),
  close: () => close(true),
  path: button => copy(button.dataset.path, button),
  folder: async (button, panel) => {
    const reply = panel.querySelector(".zse-reply");
    reply.innerHTML = await server.open_folder(panel.dataset.photo) ?? NO_ANSWER;
  },
  link: button => copy(location.href, button),
  sheet,
};

element.addEventListener("click", event => {
  const button = event.target.closest("[data-act]");
  if (!button) return;
  const {act, to, step} = button.dataset, tile = button.closest("[data-photo]"), photo = tile?.dataset.photo;
  focused = {act, photo, step};
  if (acts[act]) acts[act](button, tile);
  else document.dispatchEvent(new CustomEvent("zse", {detail: {act, photo, to: Number(to)}}));
});

element.addEventListener("keydown", event => {
  if (event.key === "Escape") close(true);
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  const tiles = [...element.querySelectorAll("[data-act=open]")], at = tiles.indexOf(event.target);
  if (step && at >= 0) tiles[at + step]?.focus();
});

document.addEventListener("zse-answer", ({detail: {html, done}}) => {
  element.querySelector(".zse-found").innerHTML = html;
  document.querySelector("#found").setAttribute("aria-busy", !done);
  live.textContent = element.querySelector(".zse-status, .zse-empty, .zse-problem")?.textContent ?? "";
  const was = focused;
  if (done) focused = null;
  if (was?.act === "page") element.scrollIntoView({block: "start"});
  if (!was || document.activeElement !== document.body) return;
  const place = was.photo ? `[data-photo="${was.photo}"] ` : "", step = was.step ? `[data-step=${was.step}]` : "";
  const again = element.querySelector(`${place}[data-act=${was.act}]${step}:not(:disabled)`);
  (again ?? element.querySelector("[data-act]"))?.focus({preventScroll: was.act === "page"});
});
