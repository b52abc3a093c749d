// The playground: draw, see the codes, change them, let the prior dream. Needs engine.js.
"use strict";
globalThis.vqvaePlayground = (() => {
  const { VQVAE, PixelCNN, softmax, gumbel } = globalThis.vqvaeEngine;
  const folder = document.currentScript?.src.replace(/[^/]*$/, "") ?? ""; // weights lie beside this script
  const received = {}, asked = {};

  // A file of weights calls this with what it holds.
  const receive = (name, packed) => { received[name] = packed; };

  // What a file of weights holds; the file is fetched when it is first wanted, by a script, which
  // also works for pages that are opened from a disk.
  function fetchPart(name) {
    if (received[name]) return Promise.resolve(received[name]);
    asked[name] ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${folder}${name}.js`;
      script.onload = () => (received[name] ? resolve(received[name]) : reject(new Error(`${script.src} holds no weights`)));
      script.onerror = () => { delete asked[name]; script.remove(); reject(new Error(`${script.src} could not be loaded`)); };
      document.head.append(script);
    });
    return asked[name];
  }

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false && value !== undefined) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  };
  const button = (text, onclick, more = {}) => make("button", { type: "button", onclick, ...more }, text);
  const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  const frame = () => new Promise((resolve) => { setTimeout(resolve, 16); });

  // Shows a picture; where there is `tint` (0 to 1 a pixel), it is coloured.
  function paint(canvas, picture, [rows, columns, channels], [low, high], tint) {
    [canvas.width, canvas.height] = [columns, rows];
    const image = new ImageData(columns, rows), mark = [255, 150, 20];
    for (let i = 0; i < rows * columns; i++) {
      const share = tint ? Math.min(tint[i], 1) : 0;
      for (let c = 0; c < 3; c++) {
        const value = 255 * (picture[i * channels + (channels === 3 ? c : 0)] - low) / (high - low);
        image.data[4 * i + c] = (1 - share) * value + share * mark[c];
      }
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function mount(host) {
    const { model: modelName, prior: priorName } = host.dataset;
    return fetchPart(modelName).then((packed) => start(host, new VQVAE(packed), priorName)).catch((error) => {
      host.append(make("p", { class: "vp-note", role: "alert" }, `The playground could not start: ${error.message}.`));
    });
  }

  function start(host, model, priorName) {
    const [rows, columns, channels] = model.shape, [high, wide] = model.grid, places = high * wide;
    const [low, top] = model.range, K = model.codebook.shape[0];
    const paper = model.frequencies.indexOf(Math.max(...model.frequencies));
    const names = model.classes ?? [];
    let prior = null, label = null, focus = null, running = 0, chances = [], wave = null;
    let state = { base: new Float32Array(rows * columns * channels).fill(low), strokes: [], codes: new Int32Array(places) };
    let kept = new Set(), past = [], timer = null, dreaming = false;

    const status = make("p", { class: "vp-status", role: "status" });
    const say = (text) => { status.textContent = text; };
    const spot = (place) => `row ${Math.floor(place / wide) + 1}, column ${(place % wide) + 1}`;

    // What is drawn: a picture, and strokes upon it at four times its size, with round ends.
    const sketch = make("canvas", { width: 4 * columns, height: 4 * rows }), pen = sketch.getContext("2d", { willReadFrequently: true });
    function picture() {
      pen.fillStyle = "#000";
      pen.fillRect(0, 0, sketch.width, sketch.height);
      Object.assign(pen, { strokeStyle: "#fff", lineWidth: 0.085 * sketch.width, lineCap: "round", lineJoin: "round" });
      for (const stroke of state.strokes) {
        pen.beginPath();
        stroke.forEach(([x, y]) => pen.lineTo(4 * x, 4 * y));
        if (stroke.length === 1) pen.lineTo(4 * stroke[0][0] + 0.1, 4 * stroke[0][1]);
        pen.stroke();
      }
      const ink = pen.getImageData(0, 0, sketch.width, sketch.height).data, drawn = state.base.slice();
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
        let sum = 0;
        for (let i = 0; i < 16; i++) sum += ink[4 * ((4 * r + (i >> 2)) * sketch.width + 4 * c + (i & 3))];
        const value = low + (top - low) * sum / (16 * 255);
        for (let k = 0; k < channels; k++) drawn[(r * columns + c) * channels + k] = Math.max(drawn[(r * columns + c) * channels + k], value);
      }
      return drawn;
    }

    function moved(base, right, down) {
      const out = new Float32Array(base.length).fill(low);
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
        const [from, at] = [r - down, c - right];
        if (from < 0 || at < 0 || from >= rows || at >= columns) continue;
        for (let k = 0; k < channels; k++) out[(r * columns + c) * channels + k] = base[(from * columns + at) * channels + k];
      }
      return out;
    }

    // As the makers of MNIST did: the centre of mass goes to the middle.
    function centre() {
      const drawn = picture();
      let [mass, x, y] = [0, 0, 0];
      drawn.forEach((value, i) => {
        const pixel = Math.floor(i / channels), weight = value - low;
        mass += weight;
        x += weight * ((pixel % columns) + 0.5);
        y += weight * (Math.floor(pixel / columns) + 0.5);
      });
      if (mass > 0) shift(Math.round(columns / 2 - x / mass), Math.round(rows / 2 - y / mass));
    }

    function shift(right, down) {
      state.base = moved(state.base, right, down);
      state.strokes = state.strokes.map((stroke) => stroke.map(([x, y]) => [x + right, y + down]));
    }

    const remember = () => {
      running += 1; // a dream or a reading that is under way ends, and none is due
      clearTimeout(timer);
      past = [...past.slice(-49), { ...state, codes: state.codes.slice(), kept: new Set(kept) }];
      undo.disabled = false;
    };

    // -- the three squares -------------------------------------------------------------------------
    const canvas = make("canvas", { tabindex: 0, role: "application", "aria-roledescription": "drawing",
      "aria-label": `Drawing of ${columns} by ${rows} pixels. Draw with mouse, pen or finger; arrow keys move the drawing.` });
    const result = make("canvas", { role: "img", "aria-label": "The decoder's picture" });
    const grid = make("div", { role: "grid", class: "vp-grid", "aria-label": "Codes", style: `--vp-columns: ${wide}` });
    const cells = [];
    for (let r = 0; r < high; r++) {
      const line = make("div", { role: "row" });
      for (let c = 0; c < wide; c++) {
        const place = r * wide + c;
        const cell = button("", () => choose(place), { role: "gridcell", tabindex: place ? -1 : 0,
          onfocus: () => point(place), onmouseenter: () => point(place), onkeydown: (event) => step(event, place) });
        cells.push(cell);
        line.append(cell);
      }
      grid.append(line);
    }
    grid.addEventListener("mouseleave", () => point(null));
    grid.addEventListener("focusout", () => point(null));
    const patch = make("div", { class: "vp-patch", hidden: true, style: `width: ${100 / wide}%; height: ${100 / high}%` });
    const patchToo = patch.cloneNode();

    function step(event, place) {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[event.key];
      const row = Math.floor(place / wide), next = place + by;
      if (by === undefined) return;
      event.preventDefault();
      if (next < 0 || next >= places || (Math.abs(by) === 1 && Math.floor(next / wide) !== row)) return;
      cells[place].tabIndex = -1;
      cells[next].tabIndex = 0;
      cells[next].focus();
    }

    // The place under the pointer: what its code changes in the picture, and what the prior expected there.
    function point(place) {
      focus = place;
      for (const mark of [patch, patchToo]) {
        mark.hidden = place === null;
        if (place !== null) Object.assign(mark.style, { left: `${100 * (place % wide) / wide}%`, top: `${100 * Math.floor(place / wide) / high}%` });
      }
      paintResult();
      showChances(place);
    }

    const difference = (one, other) => Float32Array.from({ length: rows * columns }, (_, i) => {
      let most = 0;
      for (let k = 0; k < channels; k++) most = Math.max(most, Math.abs(one[i * channels + k] - other[i * channels + k]));
      return most / (top - low);
    });
    const withCode = (place, code) => { const codes = state.codes.slice(); codes[place] = code; return codes; };

    let decoded = state.base;
    function paintResult() {
      let tint = null;
      if (focus !== null && state.codes[focus] !== paper) tint = difference(decoded, model.decode(withCode(focus, paper)));
      paint(result, decoded, model.shape, model.range, tint);
    }

    function paintCodes() {
      const ink = (color) => {
        const [r, g, b] = [1, 3, 5].map((i) => (parseInt(color.slice(i, i + 2), 16) / 255) ** 2.2);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
      };
      cells.forEach((cell, place) => {
        const code = state.codes[place], spent = showBits.checked && chances[place] ? -Math.log2(chances[place][code]) : null;
        const heat = spent === null ? 0 : Math.round(100 * Math.min(spent / 10, 1));
        const color = spent === null ? model.colors[code] : `#${[20 + 2.3 * heat, 20 + 1.3 * heat, 30].map((x) => Math.round(x).toString(16).padStart(2, "0")).join("")}`;
        Object.assign(cell.style, { backgroundColor: color, color: ink(color) });
        cell.textContent = spent === null ? code : spent.toFixed(spent < 9.95 ? 1 : 0);
        cell.setAttribute("aria-label", `${spot(place)}: code ${code}${spent === null ? "" : `, ${spent.toFixed(1)} bits`}${kept.has(place) ? ", kept" : ""}`);
        cell.classList.toggle("vp-kept", kept.has(place));
      });
    }

    // -- what happens ------------------------------------------------------------------------------
    function redraw() { // the drawing has changed
      const drawn = picture();
      paint(canvas, drawn, model.shape, model.range);
      state.codes = model.encode(drawn);
      chances = [];
      codesChanged(drawn);
    }

    function codesChanged(drawn) {
      decoded = model.decode(state.codes);
      paintCodes();
      paintResult();
      report(drawn);
      if (prior) later(read);
    }

    function report(drawn) {
      const used = new Set(state.codes).size;
      let text = `${places} numbers, ${used} of the ${K} codes.`;
      if (drawn) {
        const error = drawn.reduce((sum, value, i) => sum + (value - decoded[i]) ** 2, 0) / drawn.length;
        text += ` Mean squared error ${error.toFixed(4)}.`;
      }
      say(text);
    }

    const later = (action) => { clearTimeout(timer); timer = setTimeout(action, 300); };

    let stroke = null;
    const position = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) * columns / box.width, (event.clientY - box.top) * rows / box.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      remember();
      closePicker();
      stroke = [position(event)];
      state = { ...state, strokes: [...state.strokes, stroke] };
      redraw();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!stroke) return;
      for (const each of event.getCoalescedEvents?.() ?? [event]) stroke.push(position(each));
      if (wave === null) wave = requestAnimationFrame(() => { wave = null; if (stroke) redraw(); });
    });
    const lift = () => {
      if (!stroke) return;
      stroke = null;
      if (keepCentred.checked) centre();
      redraw();
    };
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!by) return;
      event.preventDefault();
      remember();
      state = { ...state };
      shift(...by);
      redraw();
    });

    const undo = button("Undo", () => {
      const last = past.pop();
      running += 1;
      undo.disabled = past.length === 0;
      keep(last.kept);
      state = { base: last.base, strokes: last.strokes, codes: last.codes };
      chances = [];
      closePicker();
      paint(canvas, picture(), model.shape, model.range);
      codesChanged();
    }, { disabled: true });
    const clear = button("Clear", () => take(new Float32Array(state.base.length).fill(low)));
    const keepCentred = make("input", { type: "checkbox", checked: true });

    function take(base) {
      remember();
      closePicker();
      keep(new Set());
      state = { base, strokes: [], codes: state.codes };
      redraw();
    }

    // -- another code for a place ------------------------------------------------------------------
    const picker = make("div", { class: "vp-picker", hidden: true });
    let opened = null;
    function closePicker() { picker.hidden = true; opened = null; }
    host.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || picker.hidden) return;
      cells[opened].focus();
      closePicker();
    });
    async function choose(place) {
      if (opened === place) { closePicker(); return; }
      opened = place;
      const order = [...model.frequencies.keys()].sort((a, b) => (chances[place] ?? model.frequencies)[b] - (chances[place] ?? model.frequencies)[a]);
      const offered = [...new Set([state.codes[place], ...order])].slice(0, 17);
      say(`Choose a code for ${spot(place)}; Escape closes the choice.`);
      const list = make("div", { class: "vp-list", role: "group", "aria-label": `Codes for ${spot(place)}` });
      const hold = make("input", { type: "checkbox", onchange: () => { kept.has(place) ? kept.delete(place) : kept.add(place); paintCodes(); } });
      hold.checked = kept.has(place);
      picker.replaceChildren(
        make("p", {}, `What other codes would draw at ${spot(place)}; ${chances[place] ? "the likeliest by the prior" : "the most used"} first:`), list,
        make("label", {}, hold, " keep this code when the prior dreams"));
      picker.hidden = false;
      const before = decoded;
      for (const code of offered) {
        if (opened !== place) return;
        const tile = make("canvas", { "aria-hidden": "true" }), drawn = model.decode(withCode(place, code));
        paint(tile, drawn, model.shape, model.range, difference(drawn, before));
        const one = button(tile, () => {
          remember();
          state = { ...state, codes: withCode(place, code) };
          chances = [];
          codesChanged();
          for (const other of list.children) other.setAttribute("aria-pressed", String(other === one));
        }, { "aria-pressed": String(code === state.codes[place]), "aria-label": `code ${code}`, title: `code ${code}` });
        one.append(make("span", { "aria-hidden": "true" }, String(code)));
        list.append(one);
        if (list.children.length % 4 === 0) await frame();
      }
    }

    // -- the prior ---------------------------------------------------------------------------------
    async function withPrior() {
      if (prior) return true;
      say("Loading the prior …");
      try {
        prior = new PixelCNN(await fetchPart(priorName));
      } catch (error) {
        say(`The prior could not be loaded: ${error.message}. Try again.`);
        return false;
      }
      reading.hidden = false;
      return true;
    }

    const shownCodes = (upTo) => state.codes.map((code, place) => (place <= upTo || kept.has(place) ? code : paper));
    async function dream(again) {
      remember();
      const mine = running;
      if (!await withPrior() || mine !== running) return;
      closePicker();
      if (again) seed.value = String((Number(seed.value) + 1) % 1000000);
      const heat = Number(temperature.value), random = gumbel(Number(seed.value));
      const noises = Array.from({ length: places }, () => random(K, heat)); // the same, whatever is kept
      const given = Array.from(state.codes, (code, place) => (kept.has(place) ? code : -1));
      const asked = label ?? (names.length ? Number(seed.value) % names.length : null);
      state = { base: new Float32Array(state.base.length).fill(low), strokes: [], codes: state.codes.slice() };
      chances = [];
      dreaming = true;
      paint(canvas, state.base, model.shape, model.range);
      say("Dreaming …");
      for (const { place, code, logits } of prior.sample(asked, (i) => noises[i], given)) {
        chances[place] = softmax(logits);
        state.codes[place] = code;
        if (calm()) continue;
        decoded = model.decode(shownCodes(place));
        cells.forEach((cell, i) => cell.classList.toggle("vp-waiting", i > place && !kept.has(i)));
        paintCodes();
        paintResult();
        showChances(place);
        await frame();
        if (mine !== running) break;
      }
      dreaming = false;
      cells.forEach((cell) => cell.classList.remove("vp-waiting"));
      if (mine !== running) return;
      codesChanged();
      state.base = decoded.slice(); // one can draw on
      paint(canvas, decoded, model.shape, model.range);
      say(`Dreamt${names.length ? ` for ${names[asked]}` : ""}, seed ${seed.value}, temperature ${heat}.`);
    }

    // How many bits the codes cost for each class: the fewest is how the prior reads them.
    async function read() {
      running += 1;
      const mine = running, codes = Array.from(state.codes), found = [];
      for (const each of names.length ? names.keys() : [null]) {
        let spent = 0;
        const all = [];
        for (const { place, code, logits } of prior.sample(each, null, codes)) {
          all.push(softmax(logits));
          spent -= Math.log2(all[place][code]);
        }
        found.push({ spent, all });
        await frame();
        if (mine !== running) return;
      }
      const least = found.reduce((best, { spent }, i) => (spent < found[best].spent ? i : best), 0);
      chances = found[label ?? least].all;
      paintCodes();
      const most = Math.max(...found.map(({ spent }) => spent));
      reading.replaceChildren(make("p", {}, names.length
        ? `The prior reads ${names[least]}: told so, it can store these codes in ${found[least].spent.toFixed(0)} bits.`
        : `The prior can store these codes in ${found[0].spent.toFixed(0)} bits.`));
      if (!names.length) return;
      const bars = make("div", { class: "vp-bars", role: "img",
        "aria-label": `Bits for each class: ${found.map(({ spent }, i) => `${names[i]}: ${spent.toFixed(0)}`).join(", ")}` });
      found.forEach(({ spent }, i) => bars.append(make("div", { class: i === least ? "vp-least" : "" },
        make("span", {}, names[i]), make("i", { style: `width: ${(60 * spent) / most}%` }), make("span", {}, `${spent.toFixed(0)} bits`))));
      reading.append(bars);
    }

    const expected = make("div", { class: "vp-expected" });
    function showChances(place) {
      if (place === null || !chances[place]) { expected.replaceChildren(); return; }
      const all = chances[place], order = [...all.keys()].sort((a, b) => all[b] - all[a]).slice(0, 5).filter((code) => all[code] >= 0.005);
      expected.replaceChildren(make("p", {}, `What the prior expected at ${spot(place)}, from the codes before:`));
      for (const code of order) {
        expected.append(make("div", { class: code === state.codes[place] ? "vp-least" : "" }, make("span", {}, `code ${code}`),
          make("i", { style: `width: ${60 * all[code]}%; background: ${model.colors[code]}` }), make("span", {}, `${(100 * all[code]).toFixed(0)} %`)));
      }
    }

    const reading = make("div", { class: "vp-reading", hidden: true });
    const seed = make("input", { type: "number", min: 0, max: 999999, step: 1, value: 1 });
    const temperature = make("input", { type: "range", min: 0.1, max: 1.5, step: 0.1, value: 1,
      oninput: () => { heatText.textContent = Number(temperature.value).toFixed(1); } });
    const heatText = make("span", { "aria-hidden": "true" }, "1.0");
    // Which codes stay; the slider says so where they are whole rows from the top.
    function keep(places) {
      kept = new Set(places);
      const rows = kept.size / wide;
      keepRows.value = Number.isInteger(rows) && [...kept].every((place) => place < kept.size) ? rows : 0;
      keepText.textContent = keepRows.value;
    }

    const keepRows = make("input", { type: "range", min: 0, max: high, step: 1, value: 0, oninput: () => {
      keep([...Array(keepRows.value * wide).keys()]);
      paintCodes();
    } });
    const keepText = make("span", { "aria-hidden": "true" }, "0");
    const showBits = make("input", { type: "checkbox", onchange: async () => {
      if (showBits.checked && await withPrior() && !chances.length && !dreaming) await read();
      paintCodes();
    } });

    const classes = make("div", { class: "vp-classes", role: "group", "aria-label": "What to dream" });
    [null, ...names.keys()].forEach((each) => classes.append(button(each === null ? "any" : String(names[each]), (event) => {
      label = each;
      for (const other of classes.children) other.setAttribute("aria-pressed", String(other === event.currentTarget));
    }, { "aria-pressed": String(each === null) })));

    const share = button("Copy a link to these codes", async () => {
      const bytes = K > 256 ? [...state.codes].flatMap((code) => [code >> 8, code & 255]) : [...state.codes];
      history.replaceState(null, "", `#codes=${btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "")}`);
      try {
        await navigator.clipboard.writeText(location.href);
        say("The link is copied.");
      } catch {
        say("The link is in the address bar.");
      }
    });

    function shared() { // codes that the page's address holds, or nothing if they do not fit
      const match = /[#&]codes=([\w-]+)/.exec(location.hash);
      if (!match) return null;
      try {
        const bytes = Uint8Array.from(atob(match[1].replace(/-/g, "+").replace(/_/g, "/")), (letter) => letter.charCodeAt(0));
        const codes = K > 256 ? Int32Array.from({ length: bytes.length >> 1 }, (_, i) => 256 * bytes[2 * i] + bytes[2 * i + 1]) : Int32Array.from(bytes);
        return codes.length === places && codes.every((code) => code < K) ? codes : null;
      } catch {
        return null;
      }
    }

    const examples = make("div", { class: "vp-examples", role: "group", "aria-label": "Pictures to start from" });
    (model.examples ?? []).forEach((text, i) => {
      const base = Float32Array.from(atob(text), (letter) => low + (top - low) * letter.charCodeAt(0) / 255);
      const tile = make("canvas", { "aria-hidden": "true" });
      paint(tile, base, model.shape, model.range);
      examples.append(button(tile, () => take(base.slice()), { "aria-label": `Take picture ${i + 1}` }));
      if (!i) state.base = base.slice();
    });

    const square = (title, body, ...below) => make("div", { class: "vp-square", role: "group", "aria-label": title },
      make("div", { class: "vp-title" }, title), body, ...below);
    const framed = (element, mark) => make("div", { class: "vp-frame", style: `aspect-ratio: ${columns} / ${rows}` }, element, mark);
    const field = (text, input, ...more) => make("label", {}, `${text} `, input, ...more);
    const board = make("div", { class: "vp-board" },
      square("Draw here", framed(canvas, patch), make("div", { class: "vp-line" }, undo, clear, make("label", {}, keepCentred, " centre"))),
      square(`${places} codes`, grid, priorName ? make("div", { class: "vp-line" }, make("label", {}, showBits, " show bits")) : ""),
      square("Decoder's picture", framed(result, patchToo), make("div", { class: "vp-line" }, share)));
    const dreams = !priorName ? "" : make("div", { class: "vp-dream", role: "group", "aria-label": "Dream" },
      make("div", { class: "vp-line" }, make("span", { class: "vp-title" }, "Dream"), names.length ? classes : "", button("Dream", () => dream(false), { class: "vp-main" }), button("Another", () => dream(true))),
      make("div", { class: "vp-line" }, field("temperature", temperature, heatText), field("keep the first rows", keepRows, keepText), field("seed", seed)));
    host.replaceChildren(board, status, picker, examples, dreams, make("div", { class: "vp-prior" }, expected, reading));
    host.classList.add("vp-ready");

    const given = shared();
    if (given) {
      state.codes = given;
      codesChanged();
      state.base = decoded.slice();
      paint(canvas, decoded, model.shape, model.range);
    } else {
      redraw();
    }
    host.playground = { model, get codes() { return state.codes; }, get prior() { return prior; } };
  }

  const mountAll = () => document.querySelectorAll(".vqvae-playground:not([data-started])").forEach((host) => {
    host.dataset.started = "";
    mount(host);
  });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", mountAll);
  else mountAll();
  return { receive, mountAll };
})();
