// A small reader of Prometheus' text format.
import { getText } from "./api.js";

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** Samples by metric: name -> [{labels, value}]. */
export function parsed(text) {
    const found = new Map();
    for (const line of text.split("\n")) {
        const [, name, labels, value] = LINE.exec(line) ?? [];
        if (!name) continue;
        if (!found.has(name)) found.set(name, []);
        found.get(name).push({ value: Number(value), labels: Object.fromEntries([...(labels ?? "").matchAll(LABEL)]
            .map(([, label, said]) => [label, said.replace(/\\[n"\\]/g, (two) => ESCAPES[two])])) });
    }
    return found;
}

export const figures = async () => parsed(await getText("/metrics"));

/** The sum of a metric's samples that have these labels; 0 where there are none. */
export function counted(found, name, labels = {}) {
    const wanted = Object.entries(labels);
    return (found.get(name) ?? []).filter((one) => wanted.every(([label, value]) => one.labels[label] === value))
        .reduce((sum, one) => sum + one.value, 0);
}
