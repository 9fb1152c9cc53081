"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const make = (name, className, parent) => {
    const element = document.createElement(name);
    element.className = className;
    parent.append(element);
    return element;
  };
  for (const element of all(".js")) element.hidden = false;

  // A table that is wider than the page says so.
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth + 1;
  });
  for (const box of all(".scroll")) {
    const hint = make("p", "scroll-hint", box.parentElement);
    hint.textContent = "More columns to the right: scroll the table sideways →";
    hint.hidden = true;
    box.before(hint);
    sizes.observe(box);
  }

  // Light or dark: the system's choice until the reader makes one.
  const root = document.documentElement, theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const stored = { get: () => { try { return localStorage.getItem("tailorpo-theme"); } catch { return null; } },
                   set: (value) => { try { localStorage.setItem("tailorpo-theme", value); } catch { /* a file may have no storage */ } } };
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Use ${dark() ? "light" : "dark"} colours`); };
  if (["light", "dark"].includes(stored.get())) root.dataset.theme = stored.get();
  theme.hidden = false;
  theme.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; stored.set(root.dataset.theme); name(); };
  system.addEventListener("change", name);
  name();

  const digits = (value, count) => {
    const places = value === 0 ? 0 : Math.max(0, count - 1 - Math.floor(Math.log10(Math.abs(value))));
    return value.toFixed(Math.min(places, 20)).replace("-", "−");
  };
  const format = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("-", "−").replace("e+", "e");
    if (Number.isInteger(value) && size >= 1e4) return value.toLocaleString("en").replaceAll(",", "\u202f");
    return Number.isInteger(value) ? String(value).replace("-", "−") : digits(value, 4);
  };
  const axis = () => { const chosen = document.querySelector(".switch input:checked"); return chosen ? chosen.value : ""; };
  const unit = (key) => { const label = document.querySelector(`label[for="axis-${key}"]`); return label ? label.textContent : ""; };

  // Hovering (or arrow keys) shows each curve's nearest value.
  for (const figure of all("[data-chart]")) {
    const chart = data.charts[figure.dataset.chart], plot = figure.querySelector(".plot"), area = figure.querySelector(".area");
    if (!chart) continue;
    let cursor, tip, marks, at = null;
    const build = () => {
      cursor = make("div", "cursor", area);
      marks = chart.series.map((series) => make("div", `mark ${series.colour}`, area));
      tip = make("div", "tip", area);
      tip.setAttribute("role", "status");
    };
    const hide = () => { if (tip) for (const element of [cursor, tip, ...marks]) element.hidden = true; at = null; };
    const positions = () => {
      const key = axis(), seen = new Set();
      for (const series of chart.series) (data.grids[series.grid][key] || []).forEach((x, k) => { if (x !== null && series.y[k] !== null) seen.add(x); });
      return [...seen].sort((a, b) => a - b);
    };
    const show = (x) => {
      const key = axis(), end = data.ends[key];
      if (!end || x === undefined) return;
      if (!tip) build();
      at = x;
      for (const element of [cursor, tip]) element.hidden = false;
      cursor.style.left = `${100 * x / end}%`;
      tip.replaceChildren();
      make("b", "", tip).textContent = `${format(x)} ${unit(key)}`;
      chart.series.forEach((series, number) => {
        const xs = data.grids[series.grid][key] || [];
        let best = -1;
        xs.forEach((value, k) => { if (value !== null && series.y[k] !== null && (best < 0 || Math.abs(value - x) < Math.abs(xs[best] - x))) best = k; });
        marks[number].hidden = best < 0;
        if (best < 0) return;
        marks[number].style.left = `${100 * xs[best] / end}%`;
        marks[number].style.bottom = `${100 * (series.y[best] - chart.bottom) / (chart.top - chart.bottom)}%`;
        marks[number].style.margin = "0 0 -4.5px -4.5px";
        const line = make("div", series.colour, tip);
        make("i", "", line);
        const band = series.low && series.low[best] !== null ? ` [${format(series.low[best])}, ${format(series.high[best])}]` : "";
        line.append(`${series.name} ${format(series.y[best])}${band}`);
      });
      const box = area.getBoundingClientRect(), left = box.width * x / end;
      tip.style.left = `${Math.max(-40, Math.min(box.width - tip.offsetWidth + 6, left > box.width / 2 ? left - tip.offsetWidth - 12 : left + 12))}px`;
    };
    const nearest = (x) => positions().reduce((best, value) => (best === undefined || Math.abs(value - x) < Math.abs(best - x) ? value : best), undefined);
    area.addEventListener("pointermove", (event) => {
      const box = area.getBoundingClientRect();
      show(nearest((event.clientX - box.left) / box.width * data.ends[axis()]));
    });
    area.addEventListener("pointerleave", hide);
    plot.tabIndex = 0;
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const places = positions(), here = at === null ? -1 : places.indexOf(at);
      const to = { ArrowRight: here + 1, ArrowLeft: at === null ? places.length - 1 : here - 1, Home: 0, End: places.length - 1 }[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      show(places[Math.max(0, Math.min(places.length - 1, to))]);
    });
    for (const input of all(".switch input")) input.addEventListener("change", hide);
  }

  // The right picture of each pair after any evaluation that the file holds.
  const slider = document.getElementById("frame");
  if (slider && data.frames) {
    const { iterations, uris, scores, decimals } = data.frames, last = iterations.length - 1;
    const pairs = all(".pair").map((figure) => {
      const [before, after] = all(".two > *", figure);
      return { figure, after, ends: { 0: before.src, [last]: after.src } };
    });
    const set = () => {
      const k = Number(slider.value);
      for (const id of ["frame-name", "frame-value"]) document.getElementById(id).textContent = iterations[k];
      slider.setAttribute("aria-valuetext", `iteration ${iterations[k]}`);
      pairs.forEach(({ figure, after, ends }, n) => {
        const uri = uris[k] ? uris[k][n] : ends[k];
        if (after.tagName === "IMG") after.src = uri || "data:,";
        const [then, now] = [scores[0][n], scores[k][n]], text = figure.querySelector(".scores b"), gain = figure.querySelector(".scores i");
        const places = (value) => (decimals === null ? digits(value, 4) : value.toFixed(decimals).replace("-", "−"));
        text.textContent = now === null ? "–" : places(now);
        if (gain && now !== null && then !== null) {
          gain.textContent = (now > then ? "+" : "") + places(now - then);
          gain.className = now > then ? "gain" : now < then ? "loss" : "";
        }
      });
    };
    slider.oninput = set;
    const play = document.getElementById("play");
    let timer = 0;
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
    play.onclick = () => {
      if (timer) return stop();
      if (Number(slider.value) === last) slider.value = 0;
      set();
      play.textContent = "Pause";
      timer = setInterval(() => { slider.value = Number(slider.value) + 1; set(); if (Number(slider.value) === last) stop(); }, 700);
    };
    slider.addEventListener("pointerdown", () => { if (timer) stop(); });
  }

  for (const button of all(".copy")) {
    button.onclick = async () => {
      const code = button.parentElement.querySelector("code");
      try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(code); button.textContent = "Selected"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
  }
  addEventListener("beforeprint", () => { for (const element of all("details.more")) element.open = true; });
})();
