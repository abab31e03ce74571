// Draws the figures of the page in its colours, and again when those change (dark, light, print).
"use strict";
(() => {
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("figure-data").textContent);
  const config = { responsive: false, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function themed(layout) {
    const text = colour("--text"), muted = colour("--muted"), line = colour("--line");
    const result = {
      ...layout,
      font: { ...layout.font, color: text },
      hoverlabel: { ...layout.hoverlabel, bgcolor: colour("--raised"), bordercolor: line, font: { color: text } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: text },
    };
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      const axis = layout[key];
      const title = { ...axis.title, font: { size: 13, color: muted } };
      result[key] = { ...axis, title, gridcolor: line, linecolor: line, zeroline: false, automargin: true };
      result[key].tickfont = { color: muted, size: 12 };
    }
    return result;
  }

  // Drawn anew each time: a redraw in place keeps the margins of the legend that was there before.
  function draw(width) {
    const plot = (spec) => Plotly.newPlot(spec.id, spec.data, { ...themed(spec.layout), width }, config);
    return Promise.all(specs.map(plot));
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  addEventListener("beforeprint", () => {
    root.classList.add("print");
    draw(680);
  });
  addEventListener("afterprint", () => {
    root.classList.remove("print");
    draw();
  });

  let pending, drawn = innerWidth;
  addEventListener("resize", () => {
    clearTimeout(pending);
    pending = setTimeout(() => {
      if (innerWidth !== drawn && !matchMedia("print").matches) draw();
      drawn = innerWidth;
    }, 150);
  });

  draw().then(() => { root.dataset.figures = "drawn"; });

  // The table of contents follows the reader.
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id).setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  for (const id of links.keys()) seen.observe(document.getElementById(id));
})();
