// Looks at a page in frames of several widths: a window of the browser itself cannot be as narrow as a phone.
onload = () => {
  document.querySelector("#found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
};
const look = frame => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const root = page.documentElement, all = selector => [...page.querySelectorAll(selector)];
  const light = text => {
    const part = text.match(/\d+/g).slice(0, 3).map(it => it / 255).map(it => it <= .03928 ? it / 12.92 : ((it + .055) / 1.055) ** 2.4);
    return .2126 * part[0] + .7152 * part[1] + .0722 * part[2];
  };
  const style = view.getComputedStyle(page.body);
  const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
  const ids = all("[id]").map(it => it.id);
  const scrolls = it => it && (view.getComputedStyle(it).overflowX != "visible" || scrolls(it.parentElement));
  return {
    width: view.innerWidth, scroll_width: root.scrollWidth,
    wide: all("body *").filter(it => it.getBoundingClientRect().right > view.innerWidth + 1 && !scrolls(it.parentElement))
      .slice(0, 5).map(it => it.tagName + " " + it.className.toString() + " " + it.textContent.slice(0, 60)),
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    background: style.backgroundColor, contrast: (high + .05) / (low + .05),
    requests: view.performance.getEntriesByType("resource").map(it => it.name),
    doubled_ids: ids.filter((id, at) => ids.indexOf(id) != at),
    dead_links: all("a[href^='#']").map(it => it.getAttribute("href").slice(1)).filter(id => !page.getElementById(id)),
    figures: all("figure").map(figure => {
      const drawings = [...figure.querySelectorAll("svg.plot")];
      const full = it => it.getBoundingClientRect().width > 100 && it.getBoundingClientRect().height > 50 &&
        it.querySelectorAll("rect, path, circle").length > 0 && it.querySelector("title")?.textContent && it.querySelector("desc")?.textContent;
      return { id: figure.id, drawings: drawings.length, empty_drawings: drawings.filter(it => !full(it)).length };
    }),
  };
};
