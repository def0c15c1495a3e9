// Opens a directory that launchers/export_model.py wrote with transformers.js, in 8 bits and from local files alone:
//
//     npm install --ignore-scripts @huggingface/transformers
//     node tests/benchmarks/open_in_node.mjs EXPORTED DEV.tsv     (GLUE's SST-2: a header, then sentence<tab>label)
//     node tests/benchmarks/open_in_node.mjs EXPORTED "a text" "another text"
//
// prints the accuracy on the rows, or for a sentence encoder the cosine of the two texts.
import { existsSync, readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { AutoModel, AutoModelForSequenceClassification, AutoTokenizer, env } from "@huggingface/transformers";

const [directory, first, second] = process.argv.slice(2);
const path = resolve(directory);
env.allowRemoteModels = false;
env.localModelPath = dirname(path);
const name = basename(path);
const tokenizer = await AutoTokenizer.from_pretrained(name);

if (second === undefined) {
  const model = await AutoModelForSequenceClassification.from_pretrained(name, { dtype: "q8" });
  const rows = readFileSync(first, "utf8").trim().split("\n").slice(1).map((line) => line.split("\t"));
  let right = 0;
  for (const [text, label] of rows) {
    const { logits } = await model(await tokenizer(text));
    const best = logits.data.indexOf(Math.max(...logits.data));
    right += model.config.id2label[best] === ["negative", "positive"][Number(label)];
  }
  console.log(`accuracy ${(right / rows.length).toFixed(4)} on ${rows.length} rows`);
} else {
  const model = await AutoModel.from_pretrained(name, { dtype: existsSync(`${path}/onnx/model_quantized.onnx`) ? "q8" : "fp32" });
  const { sentence_embedding } = await model(await tokenizer([first, second], { padding: true }));
  const [one, other] = sentence_embedding.tolist();
  const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
  console.log(`cosine ${(dot(one, other) / Math.sqrt(dot(one, one) * dot(other, other))).toFixed(4)}`);
}
