// A click on a photo requests its explanation.
element.addEventListener("click", event => {
  const tile = event.target.closest("[data-photo]");
  if (!tile) return;
  for (const other of element.querySelectorAll("[data-photo]"))
    other.setAttribute("aria-pressed", other === tile);
  trigger("select", {photo: tile.dataset.photo});
});
