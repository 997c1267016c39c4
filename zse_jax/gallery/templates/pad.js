// The drawing area. Sends the drawing as a PNG data URL when a stroke pauses or ends, and an empty
// string if nothing is drawn. Uploaded pictures are scaled down here; the files are not sent.
const PAUSE = 200, WHILE_DRAWING = 600, PEN = props.pen, RUBBER = 5 * PEN, LARGEST = 20 * 2 ** 20;
const canvas = element.querySelector("canvas"), context = canvas.getContext("2d");
const hint = element.querySelector(".zse-hint"), note = element.querySelector(".zse-note");
const tool = name => element.querySelector(`[data-tool=${name}]`);
let strokes = [], stroke = null, erasing = false, timer = 0, lastSent = 0;

const point = event => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * canvas.width,
          (event.clientY - box.top) / box.height * canvas.height];
};

const trace = (part, from) => {
  context.strokeStyle = part.erases ? "#fff" : "#000";
  context.lineWidth = part.erases ? RUBBER : PEN;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...part.points[Math.max(0, from - 1)]);
  for (const next of part.points.slice(from)) context.lineTo(...next);
  context.stroke();
};

const redraw = () => {
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const part of strokes) {
    if (part.picture) {
      const scale = Math.min(canvas.width / part.picture.width, canvas.height / part.picture.height);
      const width = part.picture.width * scale, height = part.picture.height * scale;
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(part.picture, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    } else trace(part, 0);
    context.fillStyle = "#fff";
  }
  hint.hidden = strokes.length > 0;
};

const send = () => {
  clearTimeout(timer);
  timer = 0;
  lastSent = performance.now();
  props.value = strokes.some(part => !part.erases) ? canvas.toDataURL("image/png") : "";
  trigger("input");
};

const sendSoon = (wait = PAUSE) => {
  clearTimeout(timer);
  timer = setTimeout(send, wait);
};

const changed = () => { note.textContent = ""; redraw(); sendSoon(); };

canvas.addEventListener("pointerdown", event => {
  if (event.button || !event.isPrimary) return;
  event.preventDefault();
  canvas.focus({preventScroll: true});
  try { canvas.setPointerCapture(event.pointerId); } catch { /* the pointer no longer exists */ }
  stroke = {erases: erasing, points: [point(event)]};
  strokes.push(stroke);
  hint.hidden = true;
  note.textContent = "";
  trace(stroke, 0);
  if (!timer) sendSoon(WHILE_DRAWING);
});

canvas.addEventListener("pointermove", event => {
  if (!stroke || !event.isPrimary) return;
  const from = stroke.points.length;
  const passed = event.getCoalescedEvents?.() ?? [];
  stroke.points.push(...(passed.length ? passed : [event]).map(point));
  trace(stroke, from);
  if (performance.now() - lastSent > WHILE_DRAWING && stroke.points.length > 8) send();
  else if (!timer) sendSoon(WHILE_DRAWING);
});

for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, event => {
    if (!stroke || !event.isPrimary) return;
    stroke = null;
    sendSoon();
  });
}

const undo = () => { if (strokes.pop()) changed(); };
tool("undo").addEventListener("click", undo);
tool("clear").addEventListener("click", () => { strokes = []; erase(false); changed(); });
const erase = on => { erasing = on; tool("erase").setAttribute("aria-pressed", on); };
tool("erase").addEventListener("click", () => erase(!erasing));
canvas.addEventListener("keydown", event => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    undo();
  }
});

element.querySelector("input[type=file]").addEventListener("change", async event => {
  const file = event.target.files[0];
  event.target.value = "";
  if (!file) return;
  if (file.size > LARGEST) {
    note.textContent = "That file is larger than 20 MB: use a smaller picture.";
    return;
  }
  try {
    strokes.push({picture: await createImageBitmap(file)});
    erase(false);
    changed();
  } catch {
    note.textContent = "That file is not a picture that this browser can read.";
  }
});

redraw();
