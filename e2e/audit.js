// Returns the problems of the page in its present state, as strings. While a dialog
// is open, the page behind it is ignored.
(() => {
  const faults = [];
  const roots = [document];
  for (const root of roots) {
    for (const el of root.querySelectorAll("*")) if (el.shadowRoot) roots.push(el.shadowRoot);
  }
  const dialog = roots.map((root) => root.querySelector("dialog[open]")).find(Boolean);
  const all = roots.flatMap((root) => [...root.querySelectorAll("*")])
    .filter((el) => (!dialog || dialog.contains(el)) && el.checkVisibility({visibilityProperty: true, opacityProperty: true}));
  const name = (el) => el.tagName.toLowerCase() + (el.id ? "#" + el.id : "") + " " + JSON.stringify(el.textContent.trim().slice(0, 30));

  if (document.documentElement.scrollWidth > innerWidth) faults.push(`the page is ${document.documentElement.scrollWidth} px wide in a window of ${innerWidth} px`);
  if (!document.documentElement.lang) faults.push("the page has no lang");
  if (!document.title) faults.push("the page has no title");
  if (document.querySelectorAll("h1").length !== 1) faults.push("the page does not have exactly one h1");

  // Contrast, according to WCAG 2.2, 1.4.3.
  const rgba = (css) => {
    const [r, g, b, a = 1] = css.match(/[\d.]+/g).map(Number);
    return {r, g, b, a};
  };
  const luminance = ({r, g, b}) => {
    const linear = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const probe = document.createElement("div");
  probe.style.backgroundColor = "Canvas";
  document.body.append(probe);
  const canvas = rgba(getComputedStyle(probe).backgroundColor);
  probe.remove();
  const ground = (el) => {
    for (; el; el = el.parentElement ?? el.getRootNode().host) {
      const color = rgba(getComputedStyle(el).backgroundColor);
      if (color.a === 1) return color;
      if (color.a !== 0) faults.push(`${name(el)} is translucent`);
    }
    return canvas;
  };
  for (const el of all) {
    const hasText = [...el.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()) || el.value && el.type !== "hidden" && el.type !== "range";
    if (!hasText || ["SCRIPT", "STYLE", "TITLE", "NOSCRIPT"].includes(el.tagName)) continue;
    const [bright, dark] = [luminance(rgba(getComputedStyle(el).color)), luminance(ground(el))].sort((a, b) => b - a);
    const ratio = (bright + 0.05) / (dark + 0.05);
    if (ratio < 4.5) faults.push(`${name(el)} has a contrast of ${ratio.toFixed(2)}`);
  }

  // Names, sizes and overlaps.
  const used = all.filter((el) => el.matches("a, button, input, select, textarea") && el.type !== "hidden");
  for (const el of used) {
    const named = el.getAttribute("aria-label") || (el.labels ? [...el.labels].map((label) => label.textContent).join("") : "") || (el.matches("a, button") && el.textContent);
    if (!named || !named.trim()) faults.push(`${name(el)} has no name`);
    if (el.getBoundingClientRect().height < 24) faults.push(`${name(el)} is only ${el.getBoundingClientRect().height} px high`);
  }
  const blocks = all.filter((el) => el.matches("a, button, input, label, h1, h2, p, pre, dt, dd"));
  for (const [i, a] of blocks.entries()) {
    for (const b of blocks.slice(i + 1)) {
      if (a.contains(b) || b.contains(a)) continue;
      for (const p of a.getClientRects()) for (const q of b.getClientRects()) {
        const width = Math.min(p.right, q.right) - Math.max(p.left, q.left), height = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (width > 1 && height > 1) faults.push(`${name(a)} and ${name(b)} overlap`);
      }
    }
  }
  return faults;
})()
