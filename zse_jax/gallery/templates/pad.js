// The drawing area and the options. A query is what is drawn, what was said about photos, the options
// and the page of results. It is sent as JSON when a stroke pauses or ends and when anything else
// changes, and it is kept in the address of the page, so that it survives a reload and can be shared.
// Uploaded pictures are scaled down here and cleaned by the server; the files are not sent.
const WHILE_DRAWING = 1000, MOST_UNDONE = 200, RUBBER = 5;
const LARGEST = 20 * 2 ** 20, LONGEST = 1600, MOST_SENT = 4 * 2 ** 20;  // of an uploaded picture
const {pen: PEN, pairs: PAIRS} = props.settings;
const PAUSE = PAIRS ? 200 : 0;  // a search that scores pairs waits for another stroke
const canvas = element.querySelector("canvas"), context = canvas.getContext("2d", {alpha: false});
const SIDE = canvas.width;
const hint = element.querySelector(".zse-hint"), note = element.querySelector(".zse-note");
const say = (text, problem = false) => {
  note.textContent = text;
  note.classList.toggle("zse-problem", problem);
};
const tool = name => element.querySelector(`[data-tool=${name}]`);
const option = name => element.querySelector(`[data-option=${name}]`);

// A state is never changed, only replaced; the earlier and the later ones are for undo and redo.
const EMPTY = {parts: [], like: "", more: [], fewer: []};
let state = EMPTY, earlier = [], later = [], page = 0, asked = null;
// `since`: when the last query was sent, or the stroke began if that was later.
let stroke = null, timer = 0, since = 0, width = 1, erasing = false, mirrored = false;

const point = event => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE];
};

const trace = (part, from) => {
  context.strokeStyle = part.erases ? "#fff" : "#000";
  context.lineWidth = PEN * part.width * (part.erases ? RUBBER : 1);
  context.lineCap = context.lineJoin = "round";
  for (const flip of part.mirrored ? [false, true] : [false]) {
    const place = ([x, y]) => [flip ? SIDE - x : x, y];
    context.beginPath();
    const [x, y] = place(part.points[Math.max(0, from - 1)]);
    if (!from) { context.moveTo(x, y); context.lineTo(x, y + 0.1); }  // a dot shows
    context.moveTo(x, y);
    for (const next of part.points.slice(from)) context.lineTo(...place(next));
    context.stroke();
  }
};

const redraw = () => {
  context.fillStyle = "#fff";
  context.fillRect(0, 0, SIDE, SIDE);
  for (const part of state.parts) {
    if (part.picture) context.drawImage(part.picture, 0, 0, SIDE, SIDE);
    else trace(part, 0);
  }
  hint.hidden = state.parts.length > 0;
  tool("undo").disabled = !earlier.length;
  tool("redo").disabled = !later.length;
  tool("clear").disabled = state === EMPTY;
};

// The query in the address: a picture hides what was drawn before it, so that this is left out.
const packed = () => JSON.stringify({
  parts: state.parts.slice(Math.max(0, state.parts.findLastIndex(part => part.picture))).map(part =>
    part.picture ? part.source : [part.erases ? 1 : 0, part.mirrored ? 1 : 0, part.width,
                                  ...part.points.flat().map(Math.round)]),
  like: state.like, more: state.more, fewer: state.fewer, page, options: options(),
});

const unpacked = async text => {
  const found = JSON.parse(text), finite = list => list.every(Number.isFinite);
  const ids = list => list.filter(id => typeof id === "string");
  const parts = await Promise.all(found.parts.map(async part => {
    if (typeof part === "string") return pictured(await decoded(part));
    const [erases, mirrored, width, ...flat] = part;
    if (!finite(part) || flat.length < 2 || flat.length % 2) throw new Error("no stroke");
    const points = flat.flatMap((x, i) => i % 2 ? [] : [[x, flat[i + 1]]]);
    return {erases: !!erases, mirrored: !!mirrored, width, points};
  }));
  return {
    state: {parts, like: String(found.like || ""), more: ids(found.more), fewer: ids(found.fewer)},
    page: Math.max(0, Math.floor(found.page) || 0), options: found.options,
  };
};

// On a phone the options are folded, so that the photos follow the canvas.
const folded = element.querySelector(".zse-options"), phone = matchMedia("(max-width: 760px)");
const fold = () => { folded.open = !phone.matches; };
fold();
phone.addEventListener("change", fold);

// Which photos are searched: the conditions that are set.
const where = element.querySelector(".zse-where"), conditions = [...where.querySelectorAll("[data-option]")];

const options = () => ({
  expand: option("expand").checked,
  rerank: Number(option("rerank")?.value ?? 0),
  where: Object.fromEntries(conditions.filter(one => one.value).map(one => [one.dataset.option, one.value])),
});

const setOptions = given => {
  option("expand").checked = !!given?.expand;
  for (const one of conditions) one.value = given?.where?.[one.dataset.option] ?? "";
  if (conditions.some(one => one.value)) where.open = folded.open = true;
  if (!option("rerank")) return;
  option("rerank").value = given?.rerank ?? PAIRS;
  element.querySelector("output").textContent = option("rerank").value;
};

const remember = () => {
  const plain = state === EMPTY && !page;
  const address = plain ? location.pathname + location.search : `#q=${encodeURIComponent(packed())}`;
  try { history.replaceState(null, "", address); } catch { /* too often, or too long */ }
};

// Queries are numbered. Until the answer to the last one is shown, the photos are marked as busy.
let number = 0, shown = 0, asking = 0, next = null;

const NO_ANSWER = "No answer: does the program that serves this page still run? The photos are those of an " +
  "earlier query. Draw on to ask again.";

const outdated = () => {
  number++;
  document.querySelector("#found").setAttribute("aria-busy", "true");
};

// Two queries at most are asked at once: while one is answered, the last one can be on its way.
const ask = async query => {
  if (asking === 2) { next = query; return; }
  asking++;
  const answer = await server.search(JSON.stringify(query.asked));
  asking--;
  if (!answer) {
    if (query.number === number) {
      say(NO_ANSWER, true);
      document.querySelector("#found").setAttribute("aria-busy", "false");
    }
  } else if (query.number >= shown) {
    shown = query.number;
    document.querySelector("#seen .zse-prepared").innerHTML = answer.seen;
    const last = query.number === number, done = last && !answer.unfinished;
    document.dispatchEvent(new CustomEvent("zse-answer", {detail: {html: answer.html, done}}));
    if (last) remember();  // not before: the browser takes longer for it than for the photos
    if (last && answer.unfinished) next = {...query, asked: {...query.asked, patient: true}};
  }
  if (next) {
    const later = next;
    next = null;
    ask(later);
  }
};

const send = () => {
  outdated();
  clearTimeout(timer);
  timer = 0;
  since = performance.now();
  const drawn = state.parts.some(part => !part.erases);
  const {like, more, fewer} = state;
  asked = {drawing: drawn ? canvas.toDataURL("image/png") : "", like, more, fewer, page, ...options()};
  ask({number, asked});
};

const sendSoon = (wait = PAUSE) => {
  outdated();
  clearTimeout(timer);
  timer = setTimeout(send, wait);
};

const replace = (next, wait = PAUSE) => {
  earlier = [...earlier, state].slice(-MOST_UNDONE);
  later = [];
  state = next;
  page = 0;
  say("");
  redraw();
  sendSoon(wait);
};

const undo = () => {
  if (!earlier.length) return;
  later.push(state);
  state = earlier.pop();
  changed();
};

const redo = () => {
  if (!later.length) return;
  earlier.push(state);
  state = later.pop();
  changed();
};

const changed = () => { page = 0; say(""); redraw(); sendSoon(); };

canvas.addEventListener("pointerdown", event => {
  const rubber = event.button === 5 || !!(event.buttons & 32);  // the eraser end of a stylus
  if (event.button && !rubber || !event.isPrimary) return;
  event.preventDefault();
  canvas.focus({preventScroll: true});
  try { canvas.setPointerCapture(event.pointerId); } catch { /* the pointer no longer exists */ }
  stroke = {erases: erasing || rubber, mirrored, width, points: [point(event)]};
  since = performance.now();
  replace({...state, like: "", parts: [...state.parts, stroke]}, WHILE_DRAWING);
});

canvas.addEventListener("pointermove", event => {
  if (!stroke || !event.isPrimary) return;
  const from = stroke.points.length;
  const passed = event.getCoalescedEvents?.() ?? [];
  stroke.points.push(...(passed.length ? passed : [event]).map(point));
  trace(stroke, from);
  if (performance.now() - since > WHILE_DRAWING && stroke.points.length > 8) send();
  else if (!timer) sendSoon(WHILE_DRAWING);
});

for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, event => {
    if (!stroke || !event.isPrimary) return;
    stroke = null;
    sendSoon();
  });
}

// By keyboard: arrows move a cursor, two of them diagonally; Space puts the pen down and lifts it.
const STEP = 8, FURTHER = 32;
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const cursor = element.querySelector(".zse-cursor"), held = new Set();
let place = [SIDE / 2, SIDE / 2], line = null;

const lift = () => {
  if (!line) return;
  line = null;
  say("Pen up.");
  sendSoon();
};

const showCursor = shown => {
  cursor.hidden = !shown;
  cursor.classList.toggle("zse-down", !!line);
  [cursor.style.left, cursor.style.top] = place.map(x => `${100 * x / SIDE}%`);
};

canvas.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || stroke) return;
  if (line && !state.parts.includes(line)) line = null;  // it was undone
  if (event.key === " ") {
    if (event.repeat) return event.preventDefault();
    if (line) lift();
    else {
      line = {erases: erasing, mirrored, width, points: [place]};
      replace({...state, like: "", parts: [...state.parts, line]}, WHILE_DRAWING);
      say("Pen down.");
    }
  } else if (event.key in ARROWS) {
    held.add(event.key);
    const step = event.shiftKey ? FURTHER : STEP;
    const along = axis => [...held].reduce((sum, key) => sum + ARROWS[key][axis], 0);
    place = place.map((x, axis) => Math.min(SIDE, Math.max(0, x + step * along(axis))));
    if (line) {
      line.points.push(place);
      trace(line, line.points.length - 1);
      sendSoon(WHILE_DRAWING);
    }
  } else return;
  event.preventDefault();
  showCursor(true);
});
canvas.addEventListener("keyup", event => held.delete(event.key));
for (const name of ["blur", "pointerdown"]) {
  canvas.addEventListener(name, () => { held.clear(); lift(); showCursor(false); });
}

const press = (name, on) => tool(name).setAttribute("aria-pressed", on);
const erase = on => {
  erasing = on;
  press("erase", on);
  for (const pen of element.querySelectorAll("[data-pen]"))
    pen.setAttribute("aria-pressed", !on && Number(pen.dataset.pen) === width);
};
tool("erase").addEventListener("click", () => erase(!erasing));
tool("mirror").addEventListener("click", () => { mirrored = !mirrored; press("mirror", mirrored); });
tool("undo").addEventListener("click", undo);
tool("redo").addEventListener("click", redo);
tool("clear").addEventListener("click", () => { erase(false); replace(EMPTY); });
for (const button of element.querySelectorAll("[data-pen]")) {
  button.addEventListener("click", () => {
    width = Number(button.dataset.pen);
    erase(false);
  });
}
document.addEventListener("keydown", event => {
  const key = event.key.toLowerCase();
  if (!(event.ctrlKey || event.metaKey) || !["z", "y"].includes(key)) return;
  if (event.target.matches?.("input:not([type=checkbox]):not([type=range]), textarea, select")) return;
  event.preventDefault();
  (key === "y" || event.shiftKey ? redo : undo)();
});

const decoded = async source => {
  if (!source.startsWith("data:image/")) throw new Error("no picture");
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
};

// A picture as large as the canvas, with white around it, and its text for the address.
const pictured = image => {
  const sheet = document.createElement("canvas"), brush = sheet.getContext("2d");
  sheet.width = sheet.height = SIDE;
  brush.fillStyle = "#fff";
  brush.fillRect(0, 0, SIDE, SIDE);
  const scale = SIDE / Math.max(image.width, image.height);
  const wide = image.width * scale, high = image.height * scale;
  brush.drawImage(image, (SIDE - wide) / 2, (SIDE - high) / 2, wide, high);
  return {picture: sheet, source: sheet.toDataURL("image/webp", 0.8)};
};

// The text of a picture that is sent: not scaled to the canvas yet, so that thin lines remain.
const sent = image => {
  const sheet = document.createElement("canvas"), brush = sheet.getContext("2d");
  const scale = Math.min(1, LONGEST / Math.max(image.width, image.height));
  [sheet.width, sheet.height] = [image.width, image.height].map(side => Math.max(1, Math.round(side * scale)));
  brush.imageSmoothingQuality = "high";
  brush.drawImage(image, 0, 0, sheet.width, sheet.height);
  for (const kind of [["image/png"], ["image/webp", 0.9], ["image/jpeg", 0.9]]) {
    const text = sheet.toDataURL(...kind);
    if (text.length <= MOST_SENT) return text;
  }
  throw new Error("too large");
};

const read = async file => {
  if (!file) return;
  if (file.size > LARGEST) {
    say("That file is larger than 20 MB: use a smaller picture.", true);
    return;
  }
  try {
    const given = sent(await createImageBitmap(file));
    say("Cleaning the picture ...");
    const answer = await server.clean(given);
    if (!answer?.picture) return say(answer?.note ?? NO_ANSWER, true);
    const part = pictured(await decoded(answer.picture));
    erase(false);
    replace({...state, like: "", parts: [...state.parts, part]});
    say(answer.note, answer.problem);
  } catch {
    say("That file is not a picture that this browser can read.", true);
  }
};

for (const input of element.querySelectorAll("input[type=file]")) {
  input.addEventListener("change", event => {
    const file = event.target.files[0];
    read(file).then(() => { input.value = ""; });
  });
}
document.addEventListener("paste", event => {
  const file = event.clipboardData?.files[0];
  if (file) { event.preventDefault(); read(file); }
});
const paper = element.querySelector(".zse-paper");
for (const name of ["dragover", "dragleave", "drop"]) {
  paper.addEventListener(name, event => {
    event.preventDefault();
    paper.classList.toggle("zse-over", name === "dragover");
    if (name === "drop") read(event.dataTransfer.files[0]);
  });
}

for (const input of element.querySelectorAll("[data-option]")) {
  input.addEventListener("input", () => {
    page = 0;
    setOptions(options());
    sendSoon();
  });
}

// What was clicked among the results.
const without = (ids, id) => ids.filter(other => other !== id);
const toggled = (ids, id) => ids.includes(id) ? without(ids, id) : [...ids, id];
document.addEventListener("zse", ({detail: {act, photo, to, reply}}) => {
  if (act === "like") replace({...state, like: photo}, 0);
  if (act === "more") replace({...state, more: toggled(state.more, photo), fewer: without(state.fewer, photo)}, 0);
  if (act === "fewer") replace({...state, fewer: toggled(state.fewer, photo), more: without(state.more, photo)}, 0);
  if (act === "forget") replace({...state, like: "", more: [], fewer: []}, 0);
  if (act === "page") { page = to; send(); }
  if (act === "why") reply(asked);
});

const restore = async () => {
  const text = location.hash.startsWith("#q=") ? location.hash.slice(3) : "";
  if (!text) return;
  try {
    const found = await unpacked(decodeURIComponent(text));
    replace(found.state);
    page = found.page;
    setOptions(found.options);
  } catch {
    say("The address of this page contains no query that can be read: draw again.", true);
  }
};

setOptions();
redraw();
restore();
addEventListener("hashchange", restore);
