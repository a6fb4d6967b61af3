// A profile's fields as inputs, made from what the server says of them. What is emptied is left out; what is not
// touched, and what is not here, stays as the file has it.
import { el } from "./dom.js";
import { field, number, options } from "./parts.js";

const GROUPS = {
    Model: ["model", "n_ctx", "max_tokens", "k", "description"],
    Prompt: ["chat_format", "system", "template", "stop"],
    Sampling: ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
        "frequency_penalty", "seed"],
    Runner: ["parallel", "n_threads", "n_gpu_layers", "keep_loaded"],
    Embedding: ["embedding", "document_prefix", "query_prefix"],
};
const LONG = ["system", "template", "stop"];

/** `about`: as /models/profiles tells it; `files`: those of MODELS_DIR. `load(fields, more)` shows a profile, with
 *  `more` typed into it; `typed()` is what was typed since; `read()` is the profile as it is typed now. */
export function profileFields(about, files) {
    const inputs = {}, rules = {};
    let stored = {}, were = {};
    const one = (name) => {
        rules[name] = rule(about.fields[name]);
        inputs[name] = control(name, rules[name], about.defaults[name], files);
        const made = field(name, inputs[name], hint(rules[name]));
        if (LONG.includes(name) || name === "description") made.classList.add("wide");
        return made;
    };
    const nodes = Object.entries(GROUPS).map(([title, names]) => el("fieldset", { className: "fields" },
        el("legend", {}, title), ...names.map(one)));
    const touched = () => Object.entries(inputs).filter(([name, input]) => input.value !== were[name]);
    const typed = () => touched().map(([name, input]) => [name, input.value]);
    const load = (fields, more = []) => {
        stored = fields;
        for (const [name, input] of Object.entries(inputs)) {
            const value = shown(fields[name]);
            input.value = value;
            if (input.value !== value && input.options) input.append(el("option", { value, selected: true }, value));
            were[name] = input.value;
        }
        for (const [name, value] of more) inputs[name].value = value;
    };
    const read = () => {
        const fields = { ...stored };
        for (const [name, input] of touched()) {
            if (input.value) fields[name] = given(rules[name], input.value);
            else delete fields[name];
        }
        return fields;
    };
    return { nodes, load, read, typed };
}

/** A field's JSON Schema, with its kinds and bounds in one. */
function rule(schema) {
    const kinds = schema.anyOf ?? [schema];
    return Object.assign({}, schema, ...kinds, { kinds: kinds.map((one) => one.type) });
}

function control(name, { kinds, ...rules }, usual, files) {
    const placeholder = String(usual ?? "");
    if (name === "model") return el("select", { name }, ...options(...files.map((one) => [one])));
    if (LONG.includes(name)) return el("textarea", { name, rows: name === "template" ? 5 : 3, placeholder, spellcheck: false });
    const choices = rules.enum ?? (kinds.join() === "boolean" && ["true", "false"]);
    return choices ? el("select", { name }, ...options(["", `default ${placeholder}`], ...choices.map((one) => [one])))
        : el("input", { name, placeholder, autocomplete: "off" });
}

function hint({ kinds, description, minimum, exclusiveMinimum, maximum }) {
    const least = minimum === undefined ? `above ${exclusiveMinimum}` : number(minimum);
    return [description, kinds.includes("array") && "one a line; \\n stands for a line break",
        maximum !== undefined && `${least} to ${number(maximum)}`].filter(Boolean).join("; ");
}

/** A field's value as text, and back. What is no number stays text, for the server to say so. */
const shown = (value) => Array.isArray(value) ? value.map((one) => JSON.stringify(one).slice(1, -1)).join("\n")
    : String(value ?? "");

function given({ kinds }, text) {
    if (kinds.includes("array")) return text.split("\n").filter(Boolean).map(unescaped);
    if (kinds.includes("boolean") && /^(true|false)$/.test(text)) return text === "true";
    return /integer|number/.test(kinds) && text.trim() && isFinite(text) ? Number(text) : text;
}

function unescaped(line) {
    try {
        return JSON.parse(`"${line.replace(/\\?"/g, "\\\"")}"`);
    } catch {
        return line;        // a backslash that is nothing but that
    }
}
