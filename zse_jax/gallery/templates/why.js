// A new explanation comes into view.
watch("value", () => element.querySelector(".zse-why")?.scrollIntoView({block: "start"}));
