// A new explanation comes into view, once its pictures have their sizes.
watch("value", async () => {
  const part = element.querySelector(".zse-why");
  if (!part) return;
  await Promise.all([...part.querySelectorAll("img")].map(image => image.decode().catch(() => 0)));
  part.scrollIntoView({block: "start"});
});
