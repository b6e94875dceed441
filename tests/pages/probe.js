// Runs in a copy of a page, after everything is loaded, and tells its parent what it found there.
addEventListener("load", async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const seen = new Map();
  const rgba = (colour) => {
    if (!seen.has(colour)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
      seen.set(colour, [...pen.getImageData(0, 0, 1, 1).data]);
    }
    return seen.get(colour);
  };
  // The colour behind an element: those of its ancestors laid over each other.
  const behind = (element) => {
    const [r, g, b, a] = rgba(getComputedStyle(element).backgroundColor);
    if (a === 255) return [r, g, b];
    const below = element.parentElement ? behind(element.parentElement) : [255, 255, 255];
    return [r, g, b].map((value, i) => (value * a + below[i] * (255 - a)) / 255);
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((value) => value / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (element) => {
    const style = getComputedStyle(element);
    const text = luminance(rgba(element instanceof SVGElement ? style.fill : style.color).slice(0, 3));
    const [low, high] = [text, luminance(behind(element))].sort((one, other) => one - other);
    return (high + 0.05) / (low + 0.05);
  };
  const written = [...document.body.querySelectorAll("*")].filter((element) =>
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) && element.checkVisibility());
  const faint = written.map((element) => [contrast(element), element]).filter(([value]) => value < 4.5)
    .map(([value, element]) => `${value.toFixed(2)}: ${element.tagName}.${element.getAttribute("class")} ${element.textContent.slice(0, 40)}`);
  const look = (selector) => {
    const found = document.querySelector(selector);
    const style = found && getComputedStyle(found);
    return found && [style.color, style.backgroundColor, style.borderBottomStyle].join(" / ");
  };
  const sounds = [...document.querySelectorAll("audio")];
  await Promise.all(sounds.map((sound) => sound.readyState || sound.error || new Promise((done) => {
    sound.addEventListener("loadedmetadata", done);
    sound.addEventListener("error", done);
    sound.load();
  })));
  const wide = [...document.body.querySelectorAll("*")].filter((element) => {
    const box = element.getBoundingClientRect();
    // What scrolls for itself may hold more than is seen of it.
    return box.width && box.right > innerWidth + 1 && element.checkVisibility() && !element.closest(".scroll > *");
  });
  parent.postMessage({
    width: innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide: wide.slice(0, 5).map((element) => `${element.tagName}.${element.getAttribute("class")}`),
    images: [...document.images].map((image) => [image.naturalWidth, image.getBoundingClientRect().width]),
    sounds: sounds.map((sound) => sound.duration || 0),
    fetched: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
    written: written.length,
    faint: [...new Set(faint)],
    styles: { context: look(".stream i:not([class])"), learned: look(".stream i.l"), special: look(".stream i.s") },
  }, "*");
});
