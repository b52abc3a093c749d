"""Put one-line faults into a copy of the project, one at a time, and see which tests notice.

    python tools/mutants.py            all; writes tools/mutants.csv, and goes on where it was stopped
    python tools/mutants.py --check    only whether each fault still finds its line
    python tools/mutants.py gumbel ema only those whose name holds one of these words
    python tools/mutants.py --seeded   only the ten of the kinds that hurt readers and users most
    python tools/mutants.py --again    forget the table, and try all once more
    python tools/mutants.py --green    right after `make test`: without first seeing whether the tests pass as things are

The working tree is never touched. A fault that no test notices is a test that is missing: write it, and try that one again.
"""
import argparse
import csv
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tools" / "mutants.csv"
CONTRACT = "tests/contract/test_contract_{}.py"

# What is run for a module, quickest first: pytest stops at the first failure.
TESTS = {
    "quantization": ["tests/test_quantization.py", CONTRACT.format("quantizers")],
    "checks": ["tests/test_checks.py", CONTRACT.format("vqvae"), CONTRACT.format("priors")],
    "quantizers": ["tests/test_quantizers.py", "tests/test_parity.py", CONTRACT.format("quantizers"), CONTRACT.format("vqvae"),
                   "tests/test_scaling.py"],
    "rate": ["tests/test_quantizers.py", CONTRACT.format("quantizers")],
    "zoo": ["tests/test_parity.py", CONTRACT.format("quantizers")],
    "model": ["tests/test_model.py", "tests/test_cases.py", CONTRACT.format("vqvae")],
    "priors": ["tests/test_priors.py", "tests/test_cases.py", CONTRACT.format("priors")],
    "pixelcnn": ["tests/test_pixelcnn.py", CONTRACT.format("priors")],
    "transformer": ["tests/test_transformer.py"],
    "callbacks": ["tests/test_callbacks.py", "tests/test_abuse.py"],
    "codebook": ["tests/test_codebook.py"],
    "scoring": ["tests/test_scoring.py"],
    "data": ["tests/test_data.py"],
    "presets": ["tests/test_cases.py", "tests/test_pixelcnn.py", "tests/test_presets.py"],
    "coding": ["tests/test_coding.py", "tests/test_transformer.py"],
    "composite": ["tests/test_composite.py", CONTRACT.format("quantizers")],
    "audio": ["tests/test_audio.py"],
    "pictures": ["tests/test_pictures.py"],
    "video": ["tests/test_video.py"],
    "spoken": ["tests/test_spoken.py"],
    "export": ["tests/test_export.py", "tests/test_playground.py"],
    "playground": ["tests/test_playground.py"],
    "nbs/03_training.ipynb": ["tests/test_project.py", "-k", "fresh"],
    "nbs/05_priors.ipynb": ["tests/test_site.py", "-k", "described and 05_priors"],
    "book/troubleshooting.md": ["tests/test_site.py", "-k", "lead_somewhere and troubleshooting"],
}

SEEDED = [
    "an output is stale", "a figure has no description", "a link leads nowhere", "a wrong β", "mask A is mask B", "NaN enters the sums",
    "loading leaves the codebook as it starts", "replicas go their own ways", "offsets are not told to the cache",
    "archives may hold pickles",
]

# module (or file), name, the line as it is, the line with a fault
MUTANTS = [
    ("nbs/03_training.ipynb", "an output is stale", "epochs=30 if FULL else 2", "epochs=31 if FULL else 2"),
    ("nbs/05_priors.ipynb", "a figure has no description",
     '"#| fig-alt: \\"A 7 by 7 map of the bits', '"# fig-alt: \\"A 7 by 7 map of the bits'),
    ("book/troubleshooting.md", "a link leads nowhere",
     "02_quantizer_layer.ipynb#two-numbers-to-watch", "02_quantizer_layer.ipynb#two-numbers"),
    ("quantizers", "a wrong β", "self.add_loss(self.commitment_cost * ", "self.add_loss(1.1 * self.commitment_cost * "),
    ("quantizers", "loading leaves the codebook as it starts",
     "{name: store[name] for name in store.keys() if name != \"seed_generator\"}",
     "{str(at): each.numpy() for at, each in enumerate(self.variables)}"),
    ("quantizers", "replicas go their own ways", "return replicas.all_gather(values, axis=0)", "return values"),
    ("data", "archives may hold pickles", "np.load(path, allow_pickle=False)", "np.load(path, allow_pickle=True)"),
    ("quantization", "distances without the codebook's norms",
     "return ops.dot(vectors, slopes) + norms", "return ops.dot(vectors, slopes)"),
    ("quantization", "distances may be negative", "return ops.maximum(own + _scores(vectors, *_planes(codebook)), 0.0)",
     "return own + _scores(vectors, *_planes(codebook))"),
    ("quantization", "the last slice is cut", "slices = count // rows + 1", "slices = max(count // rows, 1)"),
    ("quantization", "a code that does not exist gives a vector", "ops.cast(np.nan, rows.dtype))", "ops.cast(0.0, rows.dtype))"),
    ("quantization", "k-means starts at the first vector", "chosen, offset = [random.integers(len(vectors))], np.empty_like(vectors)",
     "chosen, offset = [0], np.empty_like(vectors)"),
    ("quantization", "k-means++ draws evenly",
     "upto = np.cumsum(nearest, dtype=\"float64\")", "upto = np.cumsum(nearest > 0, dtype=\"float64\")"),
    ("quantization", "empty codes are not moved", "centres[empty[: len(worst)]] = vectors[worst]", "pass"),
    ("quantization", "k-means looks at the first vectors only",
     "vectors = vectors[np.sort(random.choice(len(vectors), limit, replace=False))]",
     "vectors = vectors[:limit]"),
    ("quantization", "k-means has no limit", "if len(vectors) > limit:", "if False:"),
    ("quantization", "k-means forgets the mean", "codebook - middle))", "codebook))"),
    ("quantization", "frequencies ignore weights", "each = ops.ones_like(codes) if weights is None else _spread_weights(weights, codes)",
     "each = ops.ones_like(codes)"),
    ("quantization", "perplexity of e", "return ops.power(2.0, entropy(frequencies))", "return ops.exp(entropy(frequencies))"),
    ("quantization", "entropy in nats", "surprise = -ops.log2(", "surprise = -ops.log("),
    ("quantization", "usage counts half a code", "ops.convert_to_tensor(frequencies) > 0,", "ops.convert_to_tensor(frequencies) > 0.01,"),
    ("checks", "NaN passes", "finite = np.isfinite(values[start : start + rows])", "finite = ~np.isinf(values[start : start + rows])"),
    ("checks", "codes may be K", "0 <= values.min() <= values.max() < num_codes", "0 <= values.min() <= values.max() <= num_codes"),
    ("checks", "codes may be negative", "0 <= values.min() <= values.max() < num_codes", "values.max() < num_codes"),
    ("checks", "the range is not checked above", "if lo - slack <= least and most <= hi + slack:", "if lo - slack <= least:"),
    ("checks", "batches overlap", "part = _each(lambda array: array[start : start + batch_size], arrays)",
     "part = _each(lambda array: array[max(start - 1, 0) : start + batch_size], arrays)"),
    ("checks", "sizes may be 0", "if whole is None or whole != value or whole < least:", "if whole is None or whole != value:"),
    ("quantizers", "straight-through is lost", "return ops.stop_gradient(quantized) + (vectors - ops.stop_gradient(vectors))",
     "return ops.stop_gradient(quantized) + 0 * vectors"),
    ("quantizers", "straight-through leaks into the codebook",
     "return ops.stop_gradient(quantized) + (vectors - ops.stop_gradient(vectors))",
     "return quantized + (vectors - ops.stop_gradient(vectors))"),
    ("quantizers", "commitment has no gradient", "gap = ops.square(vectors - ops.stop_gradient(quantized))",
     "gap = ops.square(ops.stop_gradient(vectors) - ops.stop_gradient(quantized))"),
    ("quantizers", "commitment moves the codebook",
     "gap = ops.square(vectors - ops.stop_gradient(quantized))", "gap = ops.square(vectors - quantized)"),
    ("quantizers", "commitment is not weighted", "self.add_loss(self.commitment_cost * weighted_mean(gap, weights))",
     "self.add_loss(weighted_mean(gap, weights))"),
    ("quantizers", "the codebook loss moves the encoder", "ops.stop_gradient(vectors) - quantized", "vectors - quantized"),
    ("quantizers", "masked means divide by all", "total = ops.sum(weights) * values.shape[-1]",
     "total = ops.sum(ops.ones_like(weights)) * values.shape[-1]"),
    ("quantizers", "frequencies count what is masked",
     "code_frequencies(codes, self.num_codes, weights)", "code_frequencies(codes, self.num_codes)"),
    ("quantizers", "frozen it learns", "training and self.trainable", "training"),
    ("quantizers", "it learns in evaluation", "training and self.trainable", "self.trainable"),
    ("quantizers", "the output ignores the policy", "ops.cast(GRADIENTS[self.gradient](vectors, quantized), self.compute_dtype)",
     "GRADIENTS[self.gradient](vectors, quantized)"),
    ("quantizers", "every gradient is straight-through", "GRADIENTS[self.gradient](vectors, quantized)",
     "straight_through(vectors, quantized)"),
    ("quantizers", "what is learned from is not projected", "vectors = self.project(vectors)", "pass"),
    ("quantizers", "state follows the policy", "dtype=\"float32\",\n                               trainable=trainable, autocast=False",
     "dtype=None,\n                               trainable=trainable, autocast=False"),
    ("quantizers", "the start does not count as history", "self.steps.assign(1 / (1 - self.decay))", "self.steps.assign(0.0)"),
    ("quantizers", "no debiasing", "(1 - self.decay) / unbiased, 0.0)", "1 - self.decay, 0.0)"),
    ("quantizers", "the running mean forgets faster", "(1 - self.decay) / unbiased, 0.0)", "2 * (1 - self.decay) / unbiased, 0.0)"),
    ("quantizers", "a batch where nothing counts is a step", "weight = ops.where(ops.any(frequency > 0), ", "weight = ops.where(True, "),
    ("quantizers", "nothing is drawn and revives", "(used < self.revival) & ops.any(self.frequencies.value > 0)", "used < self.revival"),
    ("quantizers", "small weights shrink the codebook", "ops.cast(total, \"float32\"), 1e-7)", "ops.cast(total, \"float32\"), 1.0)"),
    ("quantizers", "sums are not shares", "share * ops.segment_sum(", "ops.segment_sum("),
    ("quantizers", "masked vectors enter the sums", "vectors * weights[:, None]", "vectors"),
    ("quantizers", "revived codes keep their count", "ops.where(dead, 1.0, used)", "used"),
    ("quantizers", "revived codes keep their sum", "ops.where(dead[:, None], fresh, total)", "total"),
    ("quantizers", "revival at twice the threshold", "used < self.revival", "used < 2 * self.revival"),
    ("quantizers", "revival draws evenly", "reached = ops.cumsum(error)", "reached = ops.cumsum(ops.ones_like(error))"),
    ("quantizers", "revival draws one further", "ops.searchsorted(reached, drawn)", "ops.searchsorted(reached, drawn) + 1"),
    ("quantizers", "revival draws what is masked", "error if weights is None else error * weights", "error"),
    ("quantizers", "NaN enters the sums", "finite = ops.all(ops.isfinite(total))", "finite = ops.all(ops.isfinite(frequency))"),
    ("quantizers", "adapt thaws", "if not quantizer.trainable:", "if False:"),
    ("quantizers", "a seed is not kept", "seed=self.seed))", "seed=0))"),
    ("quantizers", "random numbers are not saved", "if hasattr(self, \"seed_generator\"):", "if False:"),
    ("quantizers", "a codes model is a constant", "if isinstance(given, keras.KerasTensor):", "if False:"),
    ("quantizers", "metrics ignore the batch's size", "frequencies * ops.cast(sample_weight, self.dtype)", "frequencies"),
    ("quantizers", "metrics are those of the last batch", "self.frequencies.assign_add(", "self.frequencies.assign("),
    ("quantizers", "a given codebook of another shape", "if given not in ((), shape):", "if False:"),
    ("rate", "bits cost nothing", "price = self.rate_weight * self.mean_distance.value", "price = 0.0 * self.mean_distance.value"),
    ("rate", "the mean distance stays", "new = self.decay * old + (1 - self.decay) * new", "new = old"),
    ("rate", "the mean distance is of a number, not of a vector", "vectors.shape[-1] * weighted_mean(gap, weights)",
     "weighted_mean(gap, weights)"),
    ("rate", "where nothing counts a bit gets cheaper", "ops.any(self.frequencies.value > 0) & ops.isfinite(new)", "ops.isfinite(new)"),
    ("zoo", "the turn is not scaled", "scaled = turned * sizes[1] / ops.maximum(sizes[0], 1e-6)", "scaled = turned"),
    ("zoo", "the turn goes the other way", "turned + 2 * ops.sum(start * vectors, axis=-1, keepdims=True) * end",
     "turned + 2 * ops.sum(end * vectors, axis=-1, keepdims=True) * start"),
    ("zoo", "the turn is not kept off zero", "ops.where(clear, scaled, vectors)", "scaled"),
    ("zoo", "even levels have no offset", "0.5 * (levels % 2 == 0)", "0.0 * (levels % 2 == 0)"),
    ("zoo", "the bound is not kept inside", "half, offset = 0.999 * (levels - 1) / 2", "half, offset = 1.0 * (levels - 1) / 2"),
    ("zoo", "digits are read in another order", "steps = np.cumprod([1, *levels[:-1]]).astype(\"int32\")\n    return",
     "steps = np.cumprod([1, *levels[::-1][:-1]])[::-1].astype(\"int32\")\n    return"),
    ("zoo", "a code that does not exist gives a vector", "ops.where(exists[..., None], self.place(digits), np.float32(np.nan))",
     "self.place(digits)"),
    ("zoo", "soft bits are softer", "ops.sigmoid(4 * vectors / (", "ops.sigmoid(2 * vectors / ("),
    ("zoo", "the entropy gap ignores a mask", "mean = ops.sum(chances * weights[..., None], axis=axes) / total",
     "mean = ops.mean(chances, axis=axes)"),
    ("zoo", "the entropy of the mean is not asked for", "return unsure - ops.mean(binary_entropy(mean))", "return unsure"),
    ("zoo", "embeddings keep their length", "return unit(self.codebook.value)", "return self.codebook.value"),
    ("zoo", "the frozen codebook learns", "trainable and name != \"codebook\"", "trainable"),
    ("zoo", "a new codebook keeps the old map", "self.map.assign(ops.eye(self.embedding_dim))", "pass"),
    ("model", "sub-pixels in another order", "for axis in (i, i + rank)]", "for axis in (i + rank, i)]"),
    ("model", "a residual block without its sum", "return layers.Add()([x, correction])", "return correction"),
    ("model", "the loss ignores the variance",
     "for x in (y, ops.cast(y_pred, \"float32\")))", "for x in (y, y_pred)) if False else (y, y_pred)"),
    ("model", "the loss ignores sample weights", "keras.losses.MeanSquaredError()(y, y_pred, sample_weight=weights)",
     "keras.losses.MeanSquaredError()(y, y_pred)"),
    ("model", "mse ignores sample weights", "model.mse.update_state(error, weights)", "model.mse.update_state(error)"),
    ("model", "a mask does not divide", "ops.maximum(ops.mean(_spread(mask, len(weights.shape))), 1e-7)", "1.0"),
    ("model", "a mask does not reach the quantizer", "quantized = ops.copy(self.quantizer(vectors, mask=mask, training=training))",
     "quantized = self.quantizer(vectors, training=training)"),
    ("model", "metrics count batches", "metric.update_state(model.quantizer.frequencies, count)",
     "metric.update_state(model.quantizer.frequencies, 1.0)"),
    ("model", "what it draws leaves its range", "return signal if training else _clip(signal, self.value_range)", "return signal"),
    ("model", "training draws are clipped", "return signal if training else _clip(signal, self.value_range)",
     "return _clip(signal, self.value_range)"),
    ("model", "labels may be targets", "if len(y.shape) != len(wanted) or _differ(y.shape[1:], wanted[1:]):", "if False:"),
    ("model", "adapt looks at the first pictures only", "found = np.asarray(known(data))[:: max(-(-len(data) // limit), 1)]",
     "found = np.asarray(known(data))[:limit]"),
    ("model", "adapt does not measure", "self.variance.assign(max(float(np.var(_real(signal, mask))), 1e-6))", "pass"),
    ("model", "adapt starts what was given",
     "if self.quantizer.starts_from_data and self.quantizer.trainable:", "if self.quantizer.trainable:"),
    ("model", "a generator is eaten", "if hasattr(data, \"__next__\"):", "if False:"),
    ("model", "its config forgets the range", "_write_parts(self) | {\"value_range\": self.value_range}", "_write_parts(self)"),
    ("model", "out of range passes in fit", "for part in (own, rest, flaw)", "for part in (own, rest)"),
    ("model", "the networks' losses are called the quantizer's",
     "self.added = sum(self.quantizer.losses)", "self.added = sum(self.losses)"),
    ("priors", "Gumbel noise by the root of T", "noise *= np.float32(temperature)", "noise *= np.float32(temperature**0.5)"),
    ("priors", "temperature does nothing", "noise *= np.float32(temperature)", "noise *= np.float32(1.0)"),
    ("priors", "bits in nats", "- chosen) / np.log(2)", "- chosen)"),
    ("priors", "the loss ignores sample weights", "loss = self.crossentropy(codes, y_pred, sample_weight=weights)",
     "loss = self.crossentropy(codes, y_pred)"),
    ("priors", "bits ignore sample weights", "/ np.log(2), of_map)", "/ np.log(2))"),
    ("priors", "bits count what is masked", "ops.sum((nats + flaw[..., 0]) * real, axis=each)", "ops.sum(nats + flaw[..., 0], axis=each)"),
    ("priors", "no class is the mean of logarithms", "likely = np.logaddexp2.reduce(-np.stack(each, dtype=\"float64\"))",
     "likely = -np.mean(each, axis=0) + np.log2(prior.num_classes)"),
    ("priors", "what is kept does not stay",
     "noise[(*np.nonzero(given), kept[given])] = 1e9", "noise[(*np.nonzero(given), kept[given])] = 1"),
    ("priors", "classes are drawn evenly, whatever the start", "if given.any():", "if False:"),
    ("priors", "codes after a hole decide the class, too", "y, mask=given)", "y, mask=kept >= 0)"),
    ("priors", "a map out of range moves weights", "ops.where(ops.isnan(flaw), 0.0, ops.cast(logits, \"float32\"))",
     "ops.cast(logits, \"float32\") + flaw"),
    ("priors", "out of range passes", "return ops.where(ops.any(ops.isnan(flaw)), np.nan, loss)", "return loss"),
    ("priors", "a seed does nothing", "np.random.randint(2**31) if seed is None else seed", "0"),
    ("priors", "the table counts without its start", "counts = np.full(self.table.shape, 0.5)", "counts = np.full(self.table.shape, 1.5)"),
    ("priors", "a pair need not fit", "if ours != theirs:", "if False:"),
    ("pixelcnn", "mask A is mask B", "self.reach + (self.mask == \"B\"):] = 0", "self.reach + 1:] = 0"),
    ("pixelcnn", "the masked convolution has no activation", "return self.activation(x + self.bias)", "return x + self.bias"),
    ("pixelcnn", "label biases are swapped", "list(zip(said[::2], said[1::2]))", "list(zip(said[1::2], said[::2]))"),
    ("pixelcnn", "the vertical stack is not shifted", "v = _strip(prior, codes, row - 1, columns) + position",
     "v = _strip(prior, codes, row, columns) + position"),
    ("pixelcnn", "a new row keeps the old one's places",
     "\"left\": [ops.zeros_like(x) for x in cache[\"left\"]]}", "\"left\": cache[\"left\"]}"),
    ("pixelcnn", "dropout is always off",
     "training=training)\n        return h + _everywhere", "training=False)\n        return h + _everywhere"),
    ("pixelcnn", "the gate is a tanh", "ops.tanh(signal) * ops.sigmoid(gate)", "ops.tanh(signal) * ops.tanh(gate)"),
    ("pixelcnn", "its config forgets dropout", "\"kernel_size\", \"dropout\", \"code_dropout\", \"seed\")",
     "\"kernel_size\", \"code_dropout\", \"seed\")"),
    ("pixelcnn", "logits follow the policy", "layers.Dense(self.num_codes, dtype=\"float32\", name=\"logits\")",
     "layers.Dense(self.num_codes, name=\"logits\")"),
    ("callbacks", "the first backup is written in place",
     "part = self.folder / \"part.npz\"", "part = self.folder / f\"{epoch + 1:06}.npz\""),
    ("callbacks", "the optimizer is not kept",
     "return [*self.model.variables, *self.model.optimizer.variables]", "return [*self.model.variables]"),
    ("callbacks", "a torn backup is an error", "            continue\n", "            raise\n"),
    ("callbacks", "revival stops an epoch late", "self._revive(epoch < self.after", "self._revive(epoch - 1 < self.after"),
    ("callbacks", "NaN goes on", "if not np.isfinite(float(loss)):", "if False:"),
    ("callbacks", "the history begins anew", "append=True)", "append=False)"),
    ("callbacks", "one backup is kept", "[:-2]:", "[:-1]:"),
    ("scoring", "class accuracy averages over classes", "return float(np.mean(_outputs(judge, images).argmax(axis=-1) == labels))",
     "hit = _outputs(judge, images).argmax(axis=-1) == labels; return float(np.mean([hit[labels == y].mean() for y in set(labels)]))"),
    ("scoring", "no covariance in the distance", "- 2 * overlap", "- 0 * overlap"),
    ("codebook", "shares by class are counts", "np.maximum(counts.sum(axis=1, keepdims=True), 1)", "1"),
    ("coding", "nothing is carried over", "while self.low >= WINDOW:", "while False:"),
    ("coding", "a code may have no width", "sizes = 1 + np.floor(", "sizes = np.floor("),
    ("coding", "tables do not add up", "sizes[likeliest] += total - sizes.sum(axis=-1)", "pass"),
    ("coding", "the last bytes are one too few", "for _ in range(2):", "for _ in range(1):"),
    ("coding", "a damaged file is read", "if struct.pack(\"<I\", zlib.crc32(header + stream)) != of_file:", "if False:"),
    ("coding", "wrong codes are given out", "if _checksum(codes, label) != checksum:", "if False:"),
    ("coding", "another prior's file is read", "if fingerprint != _fingerprint(prior):", "if False:"),
    ("coding", "groups of another number are read", 'what += [prior.group.tolist()] if hasattr(prior, "group") else []', "pass"),
    ("coding", "a group sees itself", "np.where(prior.group < step, codes, -1)", "np.where(prior.group <= step, codes, -1)"),
    ("export", "a charge is forgotten", "axis=-1) + charge", "axis=-1)"),
    ("export", "the row is never computed", "ops.where(condition, new, old)", "old"),
    ("export", "a charge is not found",
     "nearest_charged(vectors, embeddings, charge)", "nearest_charged(vectors, embeddings, 0 * charge)"),
    ("playground", "all is rounded", "packed = Packed(\"float32\")", "packed = Packed(\"float16\")"),
    ("export", "any quantizer will do", "< 0.99:", "< 0:"),
    ("model", "padding is seen by its neighbours", "self.encoder(_without_padding(signal, mask), training=training)",
     "self.encoder(signal, training=training)"),
    ("model", "the start is made of padding too", "self.quantizer.adapt(_real(vectors, _code_mask(mask, vectors)))",
     "self.quantizer.adapt(vectors)"),
    ("transformer", "each place sees itself", "ops.pad(codes[:, :-1], [(0, 0), (1, 0)]", "ops.pad(codes[:, 1:], [(0, 0), (1, 0)]"),
    ("transformer", "nothing hides the future", "network(before, label, seen, training=training)",
     "network(before, label, training=training)"),
    ("transformer", "the cache hides the place itself", "dtype=\"int32\") <= index", "dtype=\"int32\") < index"),
    ("transformer", "the first place reads a code", "ops.where(index > 0, before, prior.num_codes)", "before"),
    ("transformer", "far is near", "network.near.assign(-slopes[:, None] * far)", "network.near.assign(slopes[:, None] * far)"),
    ("transformer", "offsets are taken of columns alone", "number = ops.convert_to_tensor(grid @ strides)",
     "number = ops.convert_to_tensor(grid[:, -1])"),
    ("transformer", "offsets are not told to the cache", "x, new = block.call_with_cache(x, old, index, near)",
     "x, new = block.call_with_cache(x, old, index)"),
    ("transformer", "the label is forgotten", "return x if label is None else x + network.label(label)[:, None]", "return x"),
    ("transformer", "what was heard is not added", "x = x + block.dropout(heard", "x = block.dropout(heard"),
    ("transformer", "hidden in sampling, too", "if training and self.code_dropout:", "if self.code_dropout:"),
    ("transformer", "places in reading order", "order.append(int(np.argmax(apart + ties)))", "order.append(len(order))"),
    ("transformer", "groups of equal size", "np.cos(np.pi / 2 * np.arange(steps + 1) / steps)", "(1 - np.arange(steps + 1) / steps)"),
    ("transformer", "a group sees itself", "ops.where(group < step, codes, -1)", "ops.where(group <= step, codes, -1)"),
    ("transformer", "masked places are in view", "given = ops.where(ops.reshape(real, ops.shape(given)), given, -1)", "pass"),
    ("transformer", "codes in view are charged", "return ops.where(hidden[..., None], logits, 100.0",
     "return ops.where(hidden[..., None] | True, logits, 100.0"),
    ("transformer", "half of the codes are hidden, always", "share = ops.cos(np.pi / 2 * keras.random.uniform((n, 1), seed=prior.random))",
     "share = 0.5"),
    ("transformer", "given codes are out of sight", "ops.fori_loop(0, prior.steps, fill, (given, kept))",
     "ops.fori_loop(0, prior.steps, fill, (ops.where(given < 0, given, -1), kept))"),
    ("transformer", "other steps, other weights", "other.set_weights(self.get_weights())", "pass"),
    ("transformer", "a class is drawn by the first codes alone", "return kept >= 0", "return super().known_ahead(kept)"),
    ("priors", "the most probable are one too many", "keep = rank < (size if", "keep = rank <= (size if"),
    ("priors", "top-p leaves the last one out", "before = ops.cumsum(chances, axis=-1) - chances", "before = ops.cumsum(chances, axis=-1)"),
    ("priors", "limits are lost on the way", "prior.sample_with_noise(noise, part.get(\"label\"), **limits)",
     "prior.sample_with_noise(noise, part.get(\"label\"))"),
    ("composite", "a level sees the vector, not the rest", "vectors = vectors - level.embed(level.nearest(vectors))", "pass"),
    ("composite", "all levels are always used", "depth > number", "depth > -1"),
    ("composite", "depths are too small by one", "1 + ops.floor(count * chance", "ops.floor(count * chance"),
    ("composite", "levels that are not used learn", "level(vectors, mask=used * weights,", "level(vectors, mask=weights,"),
    ("composite", "the gradient comes through each level", "part = ops.stop_gradient(level(", "part = (level("),
    ("composite", "depths are random outside of training", "self.dropout * training", "self.dropout"),
    ("audio", "the mel scale is even in hertz", "np.log10(1 + RATE / 2 / 700)", "np.log10(1 + RATE / 2 / 7)"),
    ("audio", "phones begin one hop late", "middles = HOP * np.arange(len(sound) // HOP) + HOP // 2",
     "middles = HOP * np.arange(len(sound) // HOP) - HOP // 2"),
    ("audio", "no cepstrum is longer than another", "COSINES[:, 0] /= np.sqrt(2)", "pass"),
    ("audio", "a voice is put back with its mean lost", "np.linalg.inv(self.matrix) + self.mean", "np.linalg.inv(self.matrix)"),
    ("audio", "all of the padding is real", "np.arange(max(lengths)) < np.array(lengths)[:, None]",
     "np.arange(max(lengths)) < max(lengths) + 0 * np.array(lengths)[:, None]"),
    ("audio", "a path may not go straight", "min(above[j], above[j + 1], here[j])", "min(above[j + 1], here[j])"),
    ("audio", "loudness counts in the distortion", "COSINES[:, 1:14]", "COSINES[:, 0:14]"),
    ("audio", "labels are learned from what is guessed", "table[np.arange(len(table)), learned.argmax(axis=1)]",
     "table[np.arange(len(table)), table.argmax(axis=1)]"),
    ("audio", "what codes explain is in terms of codes", "/ labels if labels else 1.0", "/ codes if labels else 1.0"),
    ("audio", "titles are not escaped", "html.escape(str(title), quote=True)", "str(title)"),
    ("audio", "sound begins by itself", "<audio controls", "<audio autoplay controls"),
    ("pictures", "every example in every epoch", "chosen = np.array([self.random.choice(each) for each in self.members])",
     "chosen = np.concatenate(self.members)"),
    ("pictures", "the first of a group, always", "chosen = np.array([self.random.choice(each) for each in self.members])",
     "chosen = np.array([each[0] for each in self.members])"),
    ("pictures", "epochs in the order of groups", "self.chosen = self.random.permutation(chosen)", "self.chosen = chosen"),
    ("pictures", "the last batch is lost", "return -(-len(self.chosen) // self.batch_size)", "return len(self.chosen) // self.batch_size"),
    ("pictures", "groups of any length", "or {groups.shape} != {(size,) for size in sizes}:", "and False:"),
    ("pictures", "a file of other bytes is taken", "if hashlib.sha256(content).hexdigest() == _FASHION[key][1]:", "if content:"),
    ("pictures", "pictures with the header's bytes", "content = file.read(2**26)[head:]", "content = file.read(2**26)[:-head]"),
    ("pictures", "emoji without groups", "names, groups = arrays[\"classes\"].tolist(), arrays[\"base_train\"].astype(\"int32\")",
     "names, groups = arrays[\"classes\"].tolist(), np.arange(len(arrays[\"base_train\"]), dtype=\"int32\")"),
    ("video", "clips depend on their number", "randoms = [np.random.default_rng((seed, clip)) for clip in range(count)]",
     "randoms = [np.random.default_rng((seed, clip, count)) for clip in range(count)]"),
    ("video", "left is right", "turns, last = turns + np.array([0, -1, 1])[action], action",
     "turns, last = turns + np.array([0, 1, -1])[action], action"),
    ("video", "through walls", "free = free & ~walls[(clips, *at)]", "pass"),
    ("video", "distances along the ray", "far = np.where(on, np.minimum(next_x, next_y), far)",
     "far = np.where(on, np.maximum(next_x, next_y), far)"),
    ("video", "one colour of wall", "colors = np.stack([random.permutation(_WALLS)[region] for random in randoms])",
     "colors = np.stack([_WALLS[region] * 0 for random in randoms])"),
    ("video", "digits leave the frame", "return room - np.abs(place % (2 * room) - room)", "return place % (2 * room)"),
    ("video", "the later digit covers the other", "film[place] = np.maximum(film[place], digit)", "film[place] = digit"),
    ("video", "frames lie wrong on the sheet", "sheet = clear.reshape(rows, columns, tall, wide, 4).transpose(0, 2, 1, 3, 4)",
     "sheet = clear.reshape(rows, columns, tall, wide, 4).transpose(1, 2, 0, 3, 4)"),
    ("video", "titles are not escaped", "name = html.escape(title, quote=True)", "name = title"),
    ("spoken", "half of the recordings are for testing", "np.array(takes, int) < 5", "np.array(takes, int) < 25"),
    ("spoken", "speakers in another order", "speaker_names = sorted(set(names))", "speaker_names = sorted(set(names))[::-1]"),
    ("spoken", "a cut recording is a shorter one", "or len(data) != 2 * count", ""),
    ("spoken", "any rate is taken", "if form != (1, 2, RATE) or", "if form[:2] != (1, 2) or"),
    ("spoken", "equally high, not equally loud", "np.sqrt(np.square(sound, dtype=\"float64\").mean())", "np.abs(sound).max()"),
    ("spoken", "the end is at one level", ".reshape(*codes.shape[:2], -1).any(axis=-1)", ".reshape(*codes.shape[:2], -1).all(axis=-1)"),
    ("spoken", "the end is said, too", "line[:stop.argmax() if stop.any()", "line[:stop.argmax() + 1 if stop.any()"),
    ("spoken", "lines are filled up with code 0", "[1:]), end, \"int32\")", "[1:]), 0, \"int32\")"),
    ("spoken", "all depths are shown at once", "{'' if number == start else ' hidden'}", "{''}"),
    ("spoken", "a judge hears one moment", "layers.GlobalMaxPooling1D()(x) if whole else x", "x[:, 0] if whole else x"),
]


def applied(text, old, new):
    """The text with a fault; a line of a match may be folded otherwise than here, so blanks count as one."""
    pattern = re.compile(r"\s+".join(re.escape(part) for part in old.split())) if "\n" not in old else re.compile(re.escape(old))
    found = pattern.findall(text)
    return (pattern.sub(lambda match: new, text) if len(found) == 1 else None), len(found)


def copy(folder):
    """A copy of what the tests need."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns("__pycache__", "runs", ".*", "_build", "build", "dist"))


def source(module, folder=ROOT):
    return folder / (module if "/" in module else f"vqvae_tutorial/{module}.py")


def noticed(folder, tests, limit):
    """The first test that fails in a copy, "" if none does."""
    environment = os.environ | {"PYTHONPATH": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    try:
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"more than {limit} s"
    if ran.returncode == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, flags=re.M)
    return found[1].removeprefix("tests/") if found else f"exit code {ran.returncode}: {ran.stdout[-200:]!r}"


def read_table():
    if not TABLE.exists():
        return {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {(row["module"], row["mutant"]): row["found by"] for row in csv.DictReader(file)}


def write_table(results):
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["module", "mutant", "found by"])
        writer.writerows([*key, by] for key, by in results.items())


def main():
    parser = argparse.ArgumentParser(description="Put one-line faults into a copy of the package, and see which tests notice.")
    parser.add_argument("words", nargs="*", help="try only those whose module or name holds one of these")
    parser.add_argument("--check", action="store_true", help="only see whether each fault still finds its line")
    parser.add_argument("--again", action="store_true", help="also those that the table has")
    parser.add_argument("--green", action="store_true", help="the tests have just passed: do not first run them without a fault")
    parser.add_argument("--seeded", action="store_true", help="only the ten of the kinds that hurt readers and users most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many faults are tried at once (default: one a core)")
    parser.add_argument("--limit", type=int, default=900, help="seconds for the tests of one fault")
    options = parser.parse_args()
    lost, chosen = [], []
    for module, name, old, new in MUTANTS:
        text = source(module).read_text(encoding="utf-8")
        count = applied(text, old, new)[1]
        if count != 1:
            lost.append(f"{module}: {name}: its line is there {count} times")
        if name in SEEDED if options.seeded else not options.words or any(word in f"{module} {name}" for word in options.words):
            chosen.append((module, name, old, new))
    print("\n".join([*lost, f"{len(MUTANTS)} faults, {len(MUTANTS) - len(lost)} find their line."]), flush=True)
    if options.check:
        return 1 if lost else 0
    known = read_table()
    results = {(module, name): known.get((module, name), "not tried") for module, name, _, _ in MUTANTS}
    chosen = [each for each in chosen if options.again or options.words or options.seeded or results[each[:2]] in ("not tried", "nothing")]
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(options.jobs) as workers:
        folders = queue.SimpleQueue()
        for number in range(options.jobs):
            copy(Path(place, str(number)))
            folders.put(Path(place, str(number)))

        def attempt(module, old=None, new=None):
            """Which test notices a fault, or fails without any; None if the fault no longer finds its line."""
            folder, start = folders.get(), time.monotonic()
            path = source(module, folder)
            text = path.read_text(encoding="utf-8")
            try:
                changed = text if old is None else applied(text, old, new)[0]
                if changed is None:
                    return None
                path.write_text(changed, encoding="utf-8")
                tests = [test for test in TESTS[module] if not test.startswith("tests/") or (folder / test).exists()]
                by = noticed(folder, tests, options.limit)
                return by, time.monotonic() - start
            finally:
                path.write_text(text, encoding="utf-8")
                folders.put(folder)

        whole = {module: workers.submit(attempt, module) for module in dict.fromkeys(each[0] for each in chosen) if not options.green}
        broken = {module: ran.result()[0] for module, ran in whole.items() if ran.result()[0]}
        for module, by in broken.items():  # tests that fail without any fault would find everything
            print(f"{module}: {by} fails without any fault", flush=True)
        runs = {workers.submit(attempt, module, old, new): (module, name) for module, name, old, new in chosen if module not in broken}
        for run in as_completed(runs):
            if run.result():
                results[runs[run]] = run.result()[0] or "nothing"
                print(f"{run.result()[1]:5.0f} s  {': '.join(runs[run])}: {results[runs[run]]}", flush=True)
                write_table(results)
    tried = [by for by in results.values() if by != "not tried"]
    found = sum(by != "nothing" for by in tried)
    print(f"{found} of {len(tried)} found{f' ({found / len(tried):.0%})' if tried else ''}; {len(results) - len(tried)} not tried.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
