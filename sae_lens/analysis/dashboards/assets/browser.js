"use strict";
// Draws every `<section class="browser" data-source="ID">` from the JSON in `<script id="ID">`.
(() => {
  const PAGE = 25;
  const root = document.documentElement;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const percent = (share) =>
    share === 0 ? "0 %" : share < 1e-4 ? (100 * share).toExponential(1) + " %" : (100 * share).toPrecision(2) + " %";
  const number = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });
  const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +/, (s) => "␣".repeat(s.length));

  // --- theme ---------------------------------------------------------------------------------
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosenTheme = null;
  const showTheme = () => { root.dataset.theme = chosenTheme || (dark.matches ? "dark" : "light"); };
  dark.addEventListener("change", showTheme);
  showTheme();
  document.querySelectorAll("[data-action=theme]").forEach((button) =>
    button.addEventListener("click", () => {
      chosenTheme = root.dataset.theme === "dark" ? "light" : "dark";
      showTheme();
    }));

  // --- one passage ---------------------------------------------------------------------------
  const passageView = (data, passage, highest) => {
    const [tokens, fired, peak] = passage;
    const acts = new Map();
    for (let i = 0; i < fired.length; i += 2) acts.set(fired[i], fired[i + 1]);
    const line = make("div", { class: "passage" });
    tokens.forEach((token, i) => {
      const text = data.vocabulary[token];
      const act = acts.get(i) || 0;
      const shown = text.replace(/\n+/g, (breaks) => "↵".repeat(breaks.length)).replace(/\t/g, "    ");
      const span = make("span", { title: `${visible(text)}  ${act ? number(act) : "0"}` }, shown);
      if (act > 0) span.style.background = `rgba(var(--heat), ${(0.08 + 0.72 * Math.min(1, act / highest)).toFixed(3)})`;
      if (i === peak) span.classList.add("peak");
      else if (!act && /^\s*\n/.test(text)) span.classList.add("break");
      line.append(span);
    });
    return make("li", {},
      make("div", { class: "value", title: `context ${passage[3]}, position ${passage[4]}` }, number(acts.get(peak) || 0)),
      line);
  };

  const histogramView = (histogram) => {
    const [upper, counts] = histogram;
    const merged = [];
    const step = Math.max(1, Math.ceil(counts.length / 40));
    for (let i = 0; i < counts.length; i += step) {
      merged.push(counts.slice(i, i + step).reduce((sum, count) => sum + count, 0));
    }
    const most = Math.max(1, ...merged);
    const bars = merged.map((count, i) => {
      const height = count ? Math.max(1.2, 88 * count / most) : 0;
      return `<rect class="bar f0" x="${(i * 400 / merged.length).toFixed(2)}" y="${(90 - height).toFixed(2)}" ` +
        `width="${Math.max(1, 400 / merged.length - 1.5).toFixed(2)}" height="${height.toFixed(2)}">` +
        `<title>${number(i * upper / merged.length)} to ${number((i + 1) * upper / merged.length)}: ${count}</title></rect>`;
    }).join("");
    const box = make("div", { class: "histogram" }, make("h3", {}, "Activations when it fires"));
    box.insertAdjacentHTML("beforeend",
      `<svg viewBox="0 0 400 92" preserveAspectRatio="none" role="img" aria-label="Histogram of activations">` +
      `<line class="axis" x1="0" x2="400" y1="91" y2="91"/>${bars}</svg>`);
    box.append(make("div", { class: "ends" }, make("span", {}, "0"), make("span", {}, number(upper))));
    return box;
  };

  const effectsView = (data, title, kind, effects) => {
    const most = Math.max(1e-9, ...effects.map(([, value]) => Math.abs(value)));
    const list = make("div", { class: "effects" });
    for (const [token, value] of effects) {
      const bar = make("i");
      bar.style.width = `calc((100% - 52px) * ${(Math.abs(value) / most).toFixed(3)})`;
      list.append(make("div", { class: "effect" }, bar,
        make("span", { class: "token" }, visible(data.vocabulary[token])),
        make("em", {}, (value > 0 ? "+" : "−") + Math.abs(value).toFixed(2))));
    }
    if (!effects.length) list.append(make("span", { class: "none" }, "not read from this hook"));
    return make("div", { class: kind }, make("h3", {}, title), list);
  };

  // --- one browser ---------------------------------------------------------------------------
  const open = (section) => {
    const data = JSON.parse(document.getElementById(section.dataset.source).textContent);
    const features = data.features;
    const byIndex = new Map(features.map((feature, i) => [feature.i, i]));
    const words = features.map((feature) => {
      const counts = new Map();
      for (const [tokens, , peak] of feature.top) counts.set(tokens[peak], (counts.get(tokens[peak]) || 0) + 1);
      return [...counts].sort((a, b) => b[1] - a[1]).slice(0, 4).map(([token]) => data.vocabulary[token]);
    });
    const state = { order: [], page: 0, current: null, kind: "top" };
    let texts = null; // built at the first search

    const input = make("input", { type: "search", placeholder: "Feature number or text…", "aria-label": "Search features", class: "search" });
    const sorting = make("select", { "aria-label": "Order", class: "sort" },
      ...[["given", "In the order given"], ["index", "By number"], ["density", "Most frequent first"],
        ["rare", "Rarest first"], ["max", "Strongest first"]].map(([value, label]) => make("option", { value }, label)));
    const rows = make("div", { class: "rows" });
    const place = make("span", { class: "place" });
    const back = make("button", { class: "button previous", type: "button" }, "‹ Back");
    const next = make("button", { class: "button next", type: "button" }, "Next ›");
    const detail = make("article", { class: "panel detail", "aria-live": "polite" });
    section.append(
      make("div", { class: "panel chooser" }, make("div", { class: "tools" }, input, sorting), rows,
        make("div", { class: "pager" }, back, place, next)),
      detail);

    const ranking = (query) => {
      if (!texts) {
        texts = features.map((feature, i) => ({
          peaks: words[i].join("\n").toLowerCase(),
          logits: [...feature.up, ...feature.down].map(([token]) => data.vocabulary[token]).join("\n").toLowerCase(),
          body: feature.top.map(([tokens]) => tokens.map((t) => data.vocabulary[t]).join("")).join("\n").toLowerCase(),
        }));
      }
      const digits = /^#?\d+$/.test(query) ? Number(query.replace("#", "")) : null;
      return (i) => {
        if (digits !== null && features[i].i === digits) return 0;
        if (texts[i].peaks.includes(query)) return 1;
        if (texts[i].logits.includes(query)) return 2;
        return texts[i].body.includes(query) ? 3 : null;
      };
    };
    const sorters = {
      index: (a, b) => features[a].i - features[b].i,
      density: (a, b) => features[b].density - features[a].density,
      rare: (a, b) => features[a].density - features[b].density,
      max: (a, b) => features[b].max - features[a].max,
    };

    const refresh = () => {
      const query = input.value.trim().toLowerCase();
      let order = features.map((_, i) => i);
      if (sorters[sorting.value]) order.sort(sorters[sorting.value]);
      if (query) {
        const rank = ranking(query);
        order = order.map((i) => [rank(i), i]).filter(([r]) => r !== null);
        order = order.sort((a, b) => a[0] - b[0]).map(([, i]) => i); // sort is stable
      }
      state.order = order;
      state.page = 0;
      showRows();
      if (order.length && (query || !state.current)) show(order[0]);
    };

    const showRows = () => {
      const pages = Math.max(1, Math.ceil(state.order.length / PAGE));
      rows.replaceChildren(...state.order.slice(state.page * PAGE, (state.page + 1) * PAGE).map((i) =>
        make("button", { class: "row", type: "button", "data-feature": features[i].i, "aria-current": String(i === state.current), onclick: () => show(i) },
          make("span", { class: "id" }, String(features[i].i)),
          make("span", { class: "words" }, words[i].map(visible).join("  ") || "never fires"),
          make("span", { class: "share" }, percent(features[i].density)))));
      if (!state.order.length) rows.append(make("div", { class: "none" }, "No feature matches."));
      rows.scrollTop = 0;
      place.textContent = `${state.page + 1} of ${pages} · ${state.order.length.toLocaleString("en")} features`;
      back.disabled = state.page === 0;
      next.disabled = state.page >= pages - 1;
    };

    const passagesView = (feature) => {
      const highest = feature.max || 1;
      const box = make("div");
      if (state.kind === "top") {
        box.append(make("ol", { class: "passages" }, ...feature.top.map((p) => passageView(data, p, highest))));
      } else {
        feature.quantiles.forEach((group, i) => {
          const from = 100 - Math.round(100 * i / feature.quantiles.length);
          const to = 100 - Math.round(100 * (i + 1) / feature.quantiles.length);
          box.append(make("div", { class: "group" }, `Percentiles ${from} to ${to} of its activations`),
            make("ol", { class: "passages" }, ...group.map((p) => passageView(data, p, highest))));
        });
      }
      if (!feature.top.length) box.append(make("p", { class: "none" }, "It did not fire on the tokens that were read."));
      return box;
    };

    const show = (i) => {
      state.current = i;
      const feature = features[i];
      for (const row of rows.querySelectorAll(".row")) {
        row.setAttribute("aria-current", String(Number(row.dataset.feature) === feature.i));
      }
      const fact = (label, value, title) => make("span", { title }, label + " ", make("b", {}, value));
      const tab = (kind, label) => make("button", { class: "button", type: "button", role: "tab", "aria-selected": String(state.kind === kind),
        onclick: () => { state.kind = kind; show(i); } }, label);
      const similar = feature.near.map(([other, cosine]) => make(byIndex.has(other) ? "a" : "span",
        byIndex.has(other) ? { href: `#${other}`, onclick: (event) => { event.preventDefault(); show(byIndex.get(other)); } }
          : { title: "not on this page" }, String(other), make("em", {}, cosine.toFixed(2))));
      detail.replaceChildren(
        make("div", { class: "detail-head" }, make("h2", {}, `Feature ${feature.i}`),
          make("span", { class: "mono" }, words[i].map(visible).join("   "))),
        make("div", { class: "facts" },
          fact("fires on", percent(feature.density), "share of tokens"),
          fact("of L0", percent(feature.l0), "its share of the mean number of active features"),
          fact("mean", number(feature.mean), "where it fires"),
          fact("highest", number(feature.max), "over all tokens read")),
        make("div", { class: "grid3" }, histogramView(feature.histogram),
          effectsView(data, "Raises the logits of", "raised", feature.up),
          effectsView(data, "Lowers the logits of", "lowered", feature.down),
          make("div", {}, make("h3", {}, "Similar directions"), make("div", { class: "similar" }, ...similar))),
        make("div", { class: "tabs kinds", role: "tablist" }, tab("top", "Strongest passages"), tab("quantiles", "Evenly sampled")),
        passagesView(feature));
    };

    const turn = (by) => { state.page += by; showRows(); };
    back.addEventListener("click", () => turn(-1));
    next.addEventListener("click", () => turn(1));
    input.addEventListener("input", refresh);
    sorting.addEventListener("change", refresh);
    rows.addEventListener("keydown", (event) => {
      const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      const target = step && document.activeElement[step];
      if (target) { event.preventDefault(); target.focus(); target.click(); }
    });
    refresh();
    const asked = byIndex.get(Number(location.hash.slice(1)));
    if (location.hash && asked !== undefined) show(asked);
  };

  const browsers = [...document.querySelectorAll(".browser")];
  const opened = new Set();
  const reveal = (id) => {
    for (const section of browsers) {
      section.hidden = browsers.length > 1 && section.dataset.source !== id;
      if (!section.hidden && !opened.has(section)) { opened.add(section); open(section); }
    }
    document.querySelectorAll("[data-reveals]").forEach((button) =>
      button.setAttribute("aria-selected", String(button.dataset.reveals === id)));
  };
  document.querySelectorAll("[data-reveals]").forEach((button) =>
    button.addEventListener("click", () => reveal(button.dataset.reveals)));
  if (browsers.length) reveal(browsers[0].dataset.source);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
    const search = document.querySelector(".browser:not([hidden]) .search");
    if (search) { event.preventDefault(); search.focus(); }
  });
})();
