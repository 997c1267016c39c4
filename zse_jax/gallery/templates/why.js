// Shows a new explanation in the panel of its photo, if that is still open.
watch("value", async () => {
  const part = element.querySelector("[data-photo]");
  const panel = part && document.querySelector(`.zse-panel[data-photo="${part.dataset.photo}"]`);
  if (!panel) return;
  await Promise.all([...part.querySelectorAll("img")].map(image => image.decode().catch(() => 0)));
  panel.querySelector(".zse-place").replaceChildren(...[...part.childNodes].map(node => node.cloneNode(true)));
  panel.scrollIntoView({block: "nearest"});
});
