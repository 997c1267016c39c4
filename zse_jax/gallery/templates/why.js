// Scrolls to a new explanation once its images are loaded.
watch("value", async () => {
  const part = element.querySelector(".zse-why");
  if (!part) return;
  await Promise.all([...part.querySelectorAll("img")].map(image => image.decode().catch(() => 0)));
  part.scrollIntoView({block: "start"});
});
