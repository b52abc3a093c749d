// A VQ-VAE and its PixelCNN in plain JavaScript: what `vqvae_tutorial.playground.pack` writes, run
// without any library. Arrays are Float32Array in Keras's order, the channels last.
"use strict";
globalThis.vqvaeEngine = (() => {
  // One number of 16 bits as one of 32: 1 bit of sign, 5 of exponent, 10 of fraction.
  const half = (bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  };

  // The arrays of a part, out of its base64.
  function unpack({ arrays, data }) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)).buffer;
    const sizes = arrays.map(({ shape, dtype }) => shape.reduce((a, b) => a * b, 1) * (dtype === "float16" ? 2 : 4));
    const expected = sizes.reduce((a, b) => a + b, 0);
    if (bytes.byteLength !== expected) throw new Error(`the weights have ${bytes.byteLength} bytes instead of ${expected}`);
    let start = 0;
    return arrays.map(({ shape, dtype }) => {
      const size = shape.reduce((a, b) => a * b, 1), width = dtype === "float16" ? 2 : 4;
      const values = dtype === "float16"
        ? Float32Array.from(new Uint16Array(bytes.slice(start, start + 2 * size)), half)
        : new Float32Array(bytes.slice(start, start + 4 * size));
      start += width * size;
      return Object.assign(values, { shape });
    });
  }

  // out[i] += sum of x[j] * weights[j][i]: the innermost loop of everything below. Four j at a time,
  // for each out[i] is then read and written once, not four times; half of all x are 0, after a ReLU.
  function addProduct(out, at, x, from, count, weights, row, width) {
    for (let j = 0; j < count;) {
      let a = 0, b = 0, c = 0, d = 0, p = 0, q = 0, r = 0, s = 0; // numbers, and where their weights begin
      for (let found = 0; j < count && found < 4; j++) {
        const value = x[from + j];
        if (value === 0) continue;
        a = b; b = c; c = d; d = value;
        p = q; q = r; r = s; s = (row + j) * width;
        found++;
      }
      for (let i = 0; i < width; i++) {
        out[at + i] += a * weights[p + i] + b * weights[q + i] + c * weights[r + i] + d * weights[s + i];
      }
    }
  }

  // A convolution, as Keras does it: kernel (height, width, channels in, channels out).
  function conv(x, kernel, bias, strides, padding) {
    const [rows, columns, channels] = x.shape, [high, wide, , filters] = kernel.shape;
    const same = padding === "same";
    const fit = (size, reach) => Math.ceil((same ? size : size - reach + 1) / strides);
    const [outRows, outColumns] = [fit(rows, high), fit(columns, wide)];
    const missing = (size, out, reach) => Math.max((out - 1) * strides + reach - size, 0);
    const top = same ? missing(rows, outRows, high) >> 1 : 0;
    const left = same ? missing(columns, outColumns, wide) >> 1 : 0;
    const out = new Float32Array(outRows * outColumns * filters);
    for (let r = 0; r < outRows; r++) for (let c = 0; c < outColumns; c++) {
      const at = (r * outColumns + c) * filters;
      out.set(bias, at);
      for (let i = 0; i < high; i++) for (let j = 0; j < wide; j++) {
        const row = r * strides + i - top, column = c * strides + j - left;
        if (row < 0 || column < 0 || row >= rows || column >= columns) continue;
        const from = (row * columns + column) * channels, tap = (i * wide + j) * channels;
        addProduct(out, at, x, from, channels, kernel, tap, filters);
      }
    }
    return Object.assign(out, { shape: [outRows, outColumns, filters] });
  }

  const relu = (x) => Object.assign(x.map((value) => (value > 0 ? value : 0)), { shape: x.shape });
  const add = (x, y) => Object.assign(x.map((value, i) => value + y[i]), { shape: x.shape });
  const reshape = (x, shape) => Object.assign(x.slice(), { shape });

  // Axes in another order; `order` counts from 0.
  function permute(x, order) {
    const steps = x.shape.map((_, axis) => x.shape.slice(axis + 1).reduce((a, b) => a * b, 1));
    const shape = order.map((axis) => x.shape[axis]), out = new Float32Array(x.length);
    const place = shape.map(() => 0);
    for (let i = 0; i < out.length; i++) {
      out[i] = x[place.reduce((sum, index, axis) => sum + index * steps[order[axis]], 0)];
      for (let axis = shape.length - 1; axis >= 0 && ++place[axis] === shape[axis]; axis--) place[axis] = 0;
    }
    return Object.assign(out, { shape });
  }

  // A network is a list of steps, each from named arrays to one more.
  function run({ steps, input, output }, arrays, x) {
    const known = { [input]: x };
    for (const step of steps) {
      const inputs = step.from.map((name) => known[name]), [first] = inputs;
      known[step.to] = {
        conv: () => conv(first, arrays[step.kernel], arrays[step.bias], step.strides, step.padding),
        relu: () => relu(first),
        add: () => inputs.reduce(add),
        reshape: () => reshape(first, step.shape),
        permute: () => permute(first, step.order),
      }[step.op]();
    }
    return known[output];
  }

  // The code with the least squared distance plus charge, for each vector.
  function nearest(vectors, codebook, charge) {
    const [count, size] = codebook.shape, codes = new Int32Array(vectors.length / size);
    for (let place = 0; place < codes.length; place++) {
      let least = Infinity;
      for (let code = 0; code < count; code++) {
        let distance = charge[code];
        for (let i = 0; i < size; i++) distance += (vectors[place * size + i] - codebook[code * size + i]) ** 2;
        if (distance < least) [least, codes[place]] = [distance, code];
      }
    }
    return codes;
  }

  class VQVAE {
    constructor(packed) {
      Object.assign(this, packed.about);
      this.arrays = unpack(packed);
      [this.codebook, this.charge] = [this.arrays[this.codebookAt], this.arrays[this.chargeAt]];
    }

    encode(picture) {
      const x = Object.assign(Float32Array.from(picture), { shape: this.shape });
      return nearest(run(this.encoder, this.arrays, x), this.codebook, this.charge);
    }

    decode(codes) {
      const size = this.codebook.shape[1], x = new Float32Array(codes.length * size);
      codes.forEach((code, place) => x.set(this.codebook.subarray(code * size, (code + 1) * size), place * size));
      const [low, high] = this.range;
      return run(this.decoder, this.arrays, Object.assign(x, { shape: [...this.grid, size] }))
        .map((value) => Math.min(Math.max(value, low), high));
    }
  }

  // tanh of the first half times sigmoid of the second, from `at` on.
  function gate(x, at, n) {
    const out = new Float32Array(n);
    for (let i = 0; i < n; i++) out[i] = Math.tanh(x[at + i]) / (1 + Math.exp(-x[at + n + i]));
    return out;
  }

  class PixelCNN {
    constructor(packed) {
      Object.assign(this, packed.about);
      this.arrays = unpack(packed);
    }

    // A walk through one map: `next(code)` takes the code before a place and gives the place's logits.
    walk(label) {
      const [rows, columns] = this.grid, { n, reach, layers } = this, at = (name) => this.arrays[this.at[name]];
      const said = label === null || this.at.label === undefined ? null : at("label").subarray(label * 4 * n * layers.length);
      const weights = layers.map((layer) => layer.map((index) => this.arrays[index]));
      const empty = (size) => weights.map(() => new Float32Array(size));
      const above = empty((reach + 1) * (columns + 2 * reach) * n), told = empty(columns * 2 * n);
      let left = empty((reach + 1) * n), place = 0;
      const codes = [];

      // What a convolution starts from: its bias, and what the label says to this layer and stack.
      const start = (bias, layer, stack) => {
        const out = Float32Array.from(bias);
        if (said) for (let i = 0; i < 2 * n; i++) out[i] += said[(2 * layer + stack) * 2 * n + i];
        return out;
      };
      const embed = (row, column, shown) => { // the embedding of a code, plus its new place
        const out = at("position").slice((row * columns + column) * n, (row * columns + column + 1) * n);
        if (shown !== undefined) for (let i = 0; i < n; i++) out[i] += at("embedding")[shown * n + i];
        return out;
      };

      const down = (row) => { // the vertical stack, one row further in all layers
        const width = (columns + 2 * reach) * n;
        let v = [...Array(columns).keys()].map((column) => embed(row, column, codes[(row - 1) * columns + column]));
        weights.forEach(([vertical, bias, , , link, linkBias], layer) => {
          above[layer].copyWithin(0, width);
          v.forEach((vector, column) => above[layer].set(vector, reach * width + (column + reach) * n));
          v = v.map((vector, column) => {
            const x = start(bias, layer, 0);
            for (let i = 0; i <= reach; i++) {
              addProduct(x, 0, above[layer], i * width + column * n, (2 * reach + 1) * n, vertical, i * (2 * reach + 1) * n, 2 * n);
            }
            const message = Float32Array.from(linkBias);
            addProduct(message, 0, x, 0, 2 * n, link, 0, 2 * n);
            told[layer].set(message, column * 2 * n);
            return gate(x, 0, n).map((value, i) => value + vector[i]);
          });
        });
        left = empty((reach + 1) * n);
      };

      return (before) => { // the horizontal stack, one place further in all layers
        if (place > 0) codes.push(before);
        const row = Math.floor(place / columns), column = place % columns;
        if (column === 0) down(row);
        let h = embed(row, column, column ? before : undefined);
        weights.forEach(([, , horizontal, bias, , , output, outputBias], layer) => {
          left[layer].copyWithin(0, n);
          left[layer].set(h, reach * n);
          const x = start(bias, layer, 1);
          addProduct(x, 0, left[layer], 0, (reach + 1) * n, horizontal, 0, 2 * n);
          for (let i = 0; i < 2 * n; i++) x[i] += told[layer][column * 2 * n + i];
          const more = Float32Array.from(outputBias);
          addProduct(more, 0, gate(x, 0, n), 0, n, output, 0, n);
          h = h.map((value, i) => value + more[i]);
        });
        place += 1;
        const logits = Float32Array.from(at("logitsBias"));
        addProduct(logits, 0, h.map((value) => Math.max(value, 0)), 0, n, at("logits"), 0, logits.length);
        return logits;
      };
    }

    // Draws the places of a map one after another and gives each with its logits; what `kept` holds stays
    // (-1 is to be drawn). `noise(place)` gives K numbers that are added to the logits; the largest sum wins.
    *sample(label, noise, kept = []) {
      const next = this.walk(label), codes = [];
      for (let place = 0; place < this.grid[0] * this.grid[1]; place++) {
        const logits = next(codes[place - 1]);
        let code = kept[place] ?? -1;
        if (code < 0) {
          const added = noise(place);
          let best = -Infinity;
          for (let i = 0; i < logits.length; i++) if (logits[i] + added[i] > best) [best, code] = [logits[i] + added[i], i];
        }
        codes.push(code);
        yield { place, code, logits };
      }
    }
  }

  // Probabilities of all codes.
  function softmax(logits, temperature = 1) {
    const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    const parts = Float64Array.from(logits, (value) => Math.exp((value - most) / temperature));
    const total = parts.reduce((a, b) => a + b, 0);
    return parts.map((value) => value / total);
  }

  // Gumbel noise that a seed makes repeatable (generator: mulberry32).
  function gumbel(seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296;
    };
    return (count, temperature) => Float32Array.from({ length: count }, () => -temperature * Math.log(-Math.log(uniform())));
  }

  return { VQVAE, PixelCNN, softmax, gumbel };
})();
