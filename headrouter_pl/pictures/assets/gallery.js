"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const index = JSON.parse($("index").textContent);
  const samples = index.samples;
  const state = { at: 0, scorer: null, ratio: null, sample: null, view: null, url: null, mel: null, opened: 0 };
  const audio = $("audio"), picture = $("picture"), canvas = $("canvas");

  const make = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const svg = (tag, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const name in attributes) node.setAttribute(name, attributes[name]);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const percent = (share) => `${+(100 * share).toPrecision(3)}\u00a0%`;
  const clock = (seconds) => {
    const tenths = Math.round(seconds * 10), minutes = Math.floor(tenths / 600), rest = (tenths - minutes * 600) / 10;
    return minutes ? `${minutes}:${rest.toFixed(1).padStart(4, "0")}` : `${rest.toFixed(1)} s`;
  };
  const verdict = (right) => (right === null ? "" : right ? "✓ right" : "✗ wrong");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const unique = (values) => [...new Set(values)];

  // A page of many samples is shown while the rest of it is still being read.
  const block = (id) => new Promise((done, fail) => {
    const look = () => {
      const node = $(id);
      // A script that is followed by another node is whole.
      if (node && (node.nextSibling || document.readyState !== "loading")) done(node.textContent);
      else if (document.readyState !== "loading") fail(new Error(`The page lacks ${id}; it may be cut short.`));
      else setTimeout(look, 30);
    };
    look();
  });

  // The list

  const changed = (one) => one.right !== null && one.views.some((view) => view[2] !== null && view[2] !== one.right);
  const rows = samples.map((one, at) => {
    const item = make("li"), link = make("a"), line = make("span", undefined, "m");
    link.href = `#${at + 1}`;
    link.append(make("span", one.question, "q"));
    const right = one.views.filter((view) => view[2]).length;
    const judged = one.views.some((view) => view[2] !== null);
    line.append(make("span", [one.kind, clock(one.seconds)].filter(Boolean).join(" · ")));
    if (one.right !== null || judged) {
      line.append(make("span", `unpruned ${one.right === null ? "?" : one.right ? "✓" : "✗"}${judged ? `, pruned ${right}/${one.views.length}` : ""}`));
    }
    link.append(line);
    item.append(link);
    $("list").append(item);
    return { item, link, text: `${one.question} ${one.kind} ${one.key}`.toLowerCase(), changed: changed(one) };
  });
  const shown = () => rows.map((row, at) => at).filter((at) => !rows[at].item.hidden);
  const filter = () => {
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      row.item.hidden = !words.every((word) => row.text.includes(word)) || ($("changed").checked && !row.changed);
    }
    $("found").textContent = `${shown().length} of ${rows.length} samples`;
    steps();
  };
  const neighbour = (by) => {
    const there = shown();
    return by > 0 ? there.find((at) => at > state.at) : there.findLast((at) => at < state.at);
  };
  const steps = () => {
    $("previous").disabled = neighbour(-1) === undefined;
    $("next").disabled = neighbour(1) === undefined;
  };
  const step = (by) => {
    const at = neighbour(by);
    if (at !== undefined) location.hash = `#${at + 1}`;
  };

  // One sample

  const open = async (at) => {
    const turn = ++state.opened, one = samples[at];
    rows[state.at].link.removeAttribute("aria-current");
    state.at = at;
    rows[at].link.setAttribute("aria-current", "true");
    rows[at].link.scrollIntoView({ block: "nearest" });
    document.querySelector("nav").classList.remove("open");
    $("toggle").setAttribute("aria-expanded", "false");
    $("place").textContent = `${at + 1} of ${samples.length}`;
    $("meta").textContent = [one.key, one.kind, clock(one.seconds)].filter(Boolean).join(" · ");
    $("question").textContent = one.question;
    steps();
    const sample = JSON.parse(await block(`s${at}`));
    if (turn !== state.opened) return;
    state.sample = sample;
    state.mel = null;
    picture.setAttribute("aria-valuemax", one.seconds);
    choose();
    const image = new Image();
    image.src = `data:image/png;base64,${await block(`m${sample.media}`)}`;
    await image.decode();
    if (turn !== state.opened) return;
    const scratch = document.createElement("canvas");
    scratch.width = image.width;
    scratch.height = image.height;
    const context = scratch.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    state.mel = { canvas: scratch, context, grey: context.getImageData(0, 0, image.width, image.height).data };
    draw();
    const blob = new Blob([bytes(await block(`a${sample.media}`))], { type: "audio/mpeg" });
    if (turn !== state.opened) return;
    audio.pause();
    if (state.url) URL.revokeObjectURL(state.url);
    state.url = URL.createObjectURL(blob);
    audio.src = state.url;
    document.body.dataset.ready = String(at);
  };

  const choose = (scorer = state.scorer, ratio = state.ratio) => {
    const views = state.sample.views;
    const of = (name) => views.filter((view) => view.scorer === name);
    state.scorer = views.some((view) => view.scorer === scorer) ? scorer : views[0].scorer;
    const near = of(state.scorer);
    const far = (view) => Math.abs(view.ratio - (ratio || 0.3));
    state.view = near.reduce((best, view) => (far(view) < far(best) ? view : best));
    state.ratio = state.view.ratio;
    radios("scorers", unique(views.map((view) => view.scorer)), state.scorer, String, () => true, (value) => choose(value, state.ratio));
    radios("ratios", unique(views.map((view) => view.ratio)), state.ratio, percent,
      (value) => of(state.scorer).some((view) => view.ratio === value), (value) => choose(state.scorer, value));
    answers();
    legend();
    route();
    heads("weights", state.view.heads && state.view.heads.weights, "This scorer does not weigh heads.");
    heads("selectivity", state.view.heads && state.view.heads.selectivity, "Not measured by this scorer.");
    draw();
  };

  const radios = (id, values, current, say, possible, then) => {
    const set = $(id), had = set.contains(document.activeElement);
    set.querySelectorAll("label").forEach((node) => node.remove());
    for (const value of values) {
      const label = make("label"), input = make("input");
      Object.assign(input, { type: "radio", name: id, value: String(value), checked: value === current, disabled: !possible(value) });
      input.addEventListener("change", () => then(value));
      label.append(input, make("span", say(value)));
      set.append(label);
      if (had && value === current) input.focus();
    }
  };
  const cycle = (id) => {
    const inputs = [...$(id).querySelectorAll("input:not(:disabled)")];
    inputs[(inputs.findIndex((input) => input.checked) + 1) % inputs.length].click();
  };

  const answers = () => {
    const { sample, view } = state, one = samples[state.at];
    const right = one.views.find((entry) => entry[0] === view.scorer && entry[1] === view.ratio)[2];
    $("answers").replaceChildren(...[
      ["Right answer", sample.answer || "not known", null],
      ["Unpruned", sample.unpruned || "(nothing)", one.right],
      [`${view.scorer} at ${percent(view.ratio)}`, view.text || "(nothing)", right],
    ].map(([title, text, ok]) => {
      const box = make("div"), term = make("dt", title);
      term.append(make("span", verdict(ok), "verdict"));
      box.append(term, make("dd", text));
      return box;
    }));
  };

  const covered = () => {  // share of the evidence's seconds that were kept
    const { sample, view } = state, token = samples[state.at].seconds / sample.tokens;
    let total = 0, kept = 0, at = 0;
    const spans = [];
    view.kept.forEach((length, i) => {
      if (i % 2) spans.push([at * token, (at + length) * token]);
      at += length;
    });
    for (const [from, to] of sample.evidence) {
      total += to - from;
      for (const [a, b] of spans) kept += Math.max(0, Math.min(b, to) - Math.max(a, from));
    }
    return total ? kept / total : null;
  };
  const legend = () => {
    const { sample, view } = state, part = covered();
    const entry = (name, text) => {
      const node = make("span");
      node.append(make("i", undefined, name), text);
      return node;
    };
    $("legend").replaceChildren(
      entry("kept", `kept: ${view.count} of ${sample.tokens} tokens, from layer ${view.layer} on`),
      entry("dropped", "dropped: pale, no bar"),
      ...(part === null ? [] : [entry("evidence", `where the answer is: ${percent(part)} of it kept`)]),
    );
  };

  const route = () => {
    const shares = state.view.route, box = $("route");
    if (!shares) return box.replaceChildren(make("p", "This scorer does not route.", "quiet"));
    const parts = [["prompt", "prompt prior"], ["audio", "audio likelihood"], ["posterior", "route"]].filter(([part]) => shares[part]);
    const table = make("table"), top = make("tr");
    top.append(make("th", "type"), ...parts.map(([, title]) => make("th", title)));
    table.append(top);
    for (const type of Object.keys(shares.posterior)) {
      const row = make("tr");
      row.append(make("th", type));
      for (const [part] of parts) {
        const cell = make("td", shares[part][type].toFixed(2)), bar = make("span", undefined, "bar"), fill = make("b");
        fill.style.width = `${100 * shares[part][type]}%`;
        bar.append(fill);
        cell.append(bar);
        row.append(cell);
      }
      table.append(row);
    }
    box.replaceChildren(table);
  };

  // The area of a square is a head's share of the largest, so that it reads without colour; hollow is negative.
  const heads = (id, values, none) => {
    const box = $(id);
    if (!values) return box.replaceChildren(make("p", none, "quiet"));
    const layers = state.view.heads.layers, perLayer = values.length / layers.length, size = 22, left = 46, top = 16;
    const most = Math.max(...values.map(Math.abs)) || 1;
    const figure = svg("svg", { viewBox: `0 0 ${left + perLayer * size + 4} ${top + layers.length * size + 4}`, role: "img" });
    figure.style.maxWidth = `${1.5 * (left + perLayer * size)}px`;
    const strongest = values.map((value, at) => at).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, 3);
    const name = (at) => `layer ${layers[Math.floor(at / perLayer)]} head ${at % perLayer}`;
    figure.append(svg("title", {}, `Strongest: ${strongest.map((at) => `${name(at)}: ${values[at]}`).join("; ")}`));
    for (let head = 0; head < perLayer; head++) {
      if (perLayer <= 16 || head % 4 === 0) figure.append(svg("text", { x: left + (head + 0.5) * size, y: 11, "text-anchor": "middle" }, head));
    }
    values.forEach((value, at) => {
      const x = left + (at % perLayer) * size, y = top + Math.floor(at / perLayer) * size;
      if (at % perLayer === 0) figure.append(svg("text", { x: left - 6, y: y + 15, "text-anchor": "end" }, `layer ${layers[Math.floor(at / perLayer)]}`));
      const side = (size - 4) * Math.sqrt(Math.abs(value) / most), mark = { x: x + (size - side) / 2, y: y + (size - side) / 2, width: side, height: side };
      const square = svg("rect", { ...mark, class: value < 0 ? "minus" : "plus" });
      square.append(svg("title", {}, `${name(at)}: ${value}`));
      figure.append(svg("rect", { x, y, width: size, height: size, class: "cell" }), square);
    });
    box.replaceChildren(figure, make("p", `Largest: ${most} (${name(strongest[0])})${Math.min(...values) < 0 ? "; hollow squares are negative" : ""}`, "quiet"));
  };

  // The picture: evidence, spectrogram, kept tokens, importance, time; one column of pixels after the other

  const LANES = { evidence: [0, 18], mel: [18, 168], kept: [172, 184], curve: [190, 268], time: [268, 290] }, HEIGHT = 290;

  const decode = (curve) => {
    if (!curve.values) curve.values = new Uint16Array(bytes(curve.data).buffer);
    return curve.values;
  };
  const keptShare = (columns) => {  // of each column of pixels
    const share = new Float32Array(columns), scale = columns / state.sample.tokens;
    let at = 0;
    state.view.kept.forEach((length, i) => {
      if (i % 2) {
        const from = at * scale, to = (at + length) * scale;
        for (let x = Math.floor(from); x < Math.min(columns, to); x++) share[x] += Math.min(to, x + 1) - Math.max(from, x);
      }
      at += length;
    });
    return share;
  };
  const numbers = (name) => colour(name).split(",").map(Number);

  const draw = () => {
    if (!state.view) return;
    const zoom = +$("zoom").value;
    picture.style.width = `${100 * zoom}%`;
    const width = picture.clientWidth;
    if (!width) return;
    const dense = Math.min(window.devicePixelRatio || 1, 8000 / width);
    const columns = Math.round(width * dense);
    canvas.width = columns;
    canvas.height = Math.round(HEIGHT * dense);
    canvas.style.height = `${HEIGHT}px`;
    const pen = canvas.getContext("2d"), share = keptShare(columns), seconds = samples[state.at].seconds;
    const y = (value) => value * dense, x = (time) => (time / seconds) * columns;
    const ink = colour("--text"), quiet = colour("--quiet"), mark = colour("--mark"), accent = colour("--accent");
    pen.fillStyle = colour("--card");
    pen.fillRect(0, 0, columns, canvas.height);
    pen.font = `${11 * dense}px system-ui, sans-serif`;
    pen.textBaseline = "middle";

    if (state.mel) {
      const { canvas: scratch, context, grey } = state.mel, [g, l, d] = [numbers("--ground"), numbers("--lit"), numbers("--dim")];
      const out = context.createImageData(scratch.width, scratch.height), lit = keptShare(scratch.width);
      for (let i = 0; i < grey.length; i += 4) {
        const kept = lit[(i / 4) % scratch.width], level = Math.max(0, grey[i] / 255 - 0.2) / 0.8;
        for (let c = 0; c < 3; c++) {
          const bright = g[c] + (l[c] - g[c]) * level, pale = g[c] + (d[c] - g[c]) * level;
          out.data[i + c] = pale + (bright - pale) * kept;
        }
        out.data[i + 3] = 255;
      }
      context.putImageData(out, 0, 0);
      pen.imageSmoothingEnabled = true;
      pen.drawImage(scratch, 0, y(LANES.mel[0]), columns, y(LANES.mel[1] - LANES.mel[0]));
    }

    for (const [from, to] of state.sample.evidence) {
      pen.strokeStyle = mark;
      pen.lineWidth = 2 * dense;
      pen.beginPath();
      pen.moveTo(x(from) + dense, y(LANES.mel[0]));
      pen.lineTo(x(from) + dense, y(5));
      pen.lineTo(x(to) - dense, y(5));
      pen.lineTo(x(to) - dense, y(LANES.mel[0]));
      pen.stroke();
      pen.setLineDash([3 * dense, 4 * dense]);
      pen.lineWidth = dense;
      pen.strokeRect(x(from) + dense, y(LANES.mel[0]), x(to) - x(from) - 2 * dense, y(LANES.mel[1] - LANES.mel[0]));
      pen.setLineDash([]);
    }

    pen.fillStyle = ink;
    for (let column = 0; column < columns; column++) {
      const height = (LANES.kept[1] - LANES.kept[0]) * Math.min(1, share[column]);
      if (height > 0.2) pen.fillRect(column, y(LANES.kept[1] - height), 1, y(height));
    }

    const [top, bottom] = LANES.curve;
    if (state.view.curve !== null) {
      const curve = state.sample.curves[state.view.curve], values = decode(curve), each = values.length / columns;
      const level = (column) => {
        let most = 0;
        const last = Math.max(Math.floor(column * each) + 1, Math.ceil((column + 1) * each));
        for (let at = Math.floor(column * each); at < Math.min(last, values.length); at++) most = Math.max(most, values[at]);
        return y(bottom - 3 - (bottom - top - 8) * (most / 65535));
      };
      pen.strokeStyle = quiet;
      pen.lineWidth = dense;
      pen.beginPath();
      for (let column = 0; column < columns; column++) {
        const height = level(column);
        if (share[column] > 0.5) {
          pen.fillStyle = accent;
          pen.fillRect(column, height, 1, y(bottom - 2) - height);
        }
        if (column) pen.lineTo(column, height);
        else pen.moveTo(column, height);
      }
      pen.stroke();
      pen.fillStyle = quiet;
      pen.fillText(curve.log ? "importance, log scale" : "importance", y(6), y(top + 4));
    } else {
      pen.fillStyle = quiet;
      pen.fillText("all tokens kept: none was scored", y(6), y(top + 20));
    }

    pen.fillStyle = quiet;
    const gap = [0.5, 1, 2, 5, 10, 20, 30, 60, 120].find((every) => (every / seconds) * width >= 55) || 300;
    for (let time = 0; time <= seconds + 1e-6; time += gap) {
      pen.fillRect(Math.min(x(time), columns - dense), y(LANES.time[0]), dense, y(5));
      const edge = time === 0 ? 1 : time > seconds - gap / 3 ? -1 : 0;  // its text stays inside
      pen.textAlign = ["right", "center", "left"][edge + 1];
      pen.fillText(clock(time).replace(".0", ""), x(time) + 4 * edge * dense, y(LANES.time[0] + 13));
    }
    pen.textAlign = "left";
    follow();
  };

  // Playing

  const follow = () => {
    const seconds = samples[state.at].seconds, at = Math.min(audio.currentTime || 0, seconds);
    $("head").hidden = false;
    $("head").style.transform = `translateX(${(at / seconds) * picture.clientWidth}px)`;
    picture.setAttribute("aria-valuenow", at.toFixed(2));
    picture.setAttribute("aria-valuetext", `${clock(at)} of ${clock(seconds)}`);
  };
  const tick = () => {
    follow();
    if (!audio.paused) requestAnimationFrame(tick);
  };
  const seek = (time) => {
    audio.currentTime = Math.max(0, Math.min(samples[state.at].seconds - 0.01, time));
    follow();
  };
  const play = () => audio.play().catch((error) => { if (error.name !== "AbortError") $("readout").textContent = `Cannot play: ${error.message}`; });
  const timeAt = (event) => {
    const box = picture.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * samples[state.at].seconds;
  };
  const tell = (time) => {
    const { sample, view } = state, seconds = samples[state.at].seconds;
    const token = Math.min(sample.tokens - 1, Math.max(0, Math.floor((time / seconds) * sample.tokens)));
    let end = 0;
    const run = view.kept.findIndex((length) => (end += length) > token);
    let text = `${clock(time)}: token ${token}, ${run % 2 ? "kept" : "dropped"}`;
    if (view.curve !== null) {
      const curve = sample.curves[view.curve], value = curve.low + (curve.high - curve.low) * decode(curve)[token] / 65535;
      text += `, importance ${(curve.log ? 10 ** value : value).toPrecision(3)}`;
    }
    $("readout").textContent = text;
  };
  audio.addEventListener("play", tick);
  audio.addEventListener("seeked", follow);
  audio.addEventListener("timeupdate", follow);
  picture.addEventListener("click", (event) => { seek(timeAt(event)); play(); });
  picture.addEventListener("pointermove", (event) => { if (state.view) tell(timeAt(event)); });
  picture.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (by) seek(audio.currentTime + by);
    else if (event.key === "Home") seek(0);
    else if (event.key === "End") seek(samples[state.at].seconds);
    else return;
    tell(audio.currentTime);
    event.preventDefault();
  });

  // The page

  const themes = ["system", "light", "dark"];
  const theme = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    $("theme").textContent = `Theme: ${name}`;
    draw();
  };
  $("theme").addEventListener("click", () => {
    theme(themes[(themes.indexOf(document.documentElement.dataset.theme || "system") + 1) % 3]);
  });
  $("toggle").addEventListener("click", () => {
    $("toggle").setAttribute("aria-expanded", String(document.querySelector("nav").classList.toggle("open")));
  });
  $("find").addEventListener("input", filter);
  $("changed").addEventListener("change", filter);
  $("zoom").addEventListener("change", draw);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "r") cycle("ratios");
    else if (event.key === "s") cycle("scorers");
    else if (event.key === " " && !event.target.matches("button, audio, a, input")) {
      if (audio.paused) play();
      else audio.pause();
      event.preventDefault();
    }
  });
  window.addEventListener("hashchange", () => open(place()));
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const place = () => Math.max(0, Math.min(samples.length - 1, (parseInt(location.hash.slice(1), 10) || 1) - 1));

  document.title = index.title;
  $("title").textContent = index.title;
  $("note").textContent = index.note;
  theme("system");
  filter();
  open(place());
})();
