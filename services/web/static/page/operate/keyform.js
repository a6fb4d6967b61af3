// The form that makes a key.
import { post } from "./api.js";
import { el } from "./dom.js";
import { field, form, options } from "./parts.js";

const MEANING = { answer: "ask, and keep conversations, bases and jobs", "models:read": "see the models",
    "models:switch": "serve another model", keys: "make and revoke keys", admin: "see the load, get models" };
const NUMBERS = ["requests_per_minute", "max_parallel", "tokens_per_minute", "weight"];

/** `made(key)` gets the new key with its secret. Scopes that `who` lacks cannot be given. */
export function keyForm(who, made) {
    const count = (name, props) => el("input", { type: "number", name, min: 1, step: 1, ...props });
    const scopes = who.scopes.map((scope) => el("label", {}, el("input", { type: "checkbox", name: "scopes", value: scope,
        checked: scope === "answer" }), `${scope} `, el("small", {}, MEANING[scope] ?? "")));
    const fields = [
        field("Name", el("input", { name: "name", maxLength: 80, autocomplete: "off" })),
        el("fieldset", {}, el("legend", {}, "May"), ...scopes),
        field("Profiles", el("input", { name: "profiles", autocomplete: "off" }), "separated by commas; empty: all"),
        field("Expires after days", count("expires_in", { max: 36500, step: "any", min: 0.001 }), "empty: never"),
        field("Requests a minute", count("requests_per_minute")),
        field("Answers at the same time", count("max_parallel")),
        field("Tokens a minute", count("tokens_per_minute")),
        field("Token budget", count("token_budget")),
        field("Budget is for", el("select", { name: "per" },
            ...options(["day", "a day"], ["month", "a month"], ["total", "ever"]))),
        field("Weight", count("weight", { min: 0.1, max: 100, step: 0.1 }), "its share of a busy model beside other keys' 1"),
    ];
    const node = form("Make a key", fields, "Make the key", async () => {
        const key = await post("/auth/key", wish(node));
        node.reset();
        await made(key);
    });
    return el("details", {}, el("summary", {}, "Make a key"), node);
}

function wish(node) {
    const value = (name) => node.elements[name].value.trim();
    const listed = value("profiles").split(",").map((one) => one.trim()).filter(Boolean);
    const given = { name: value("name") || undefined, profiles: listed.length ? listed : undefined,
        scopes: [...node.querySelectorAll("[name=scopes]:checked")].map((one) => one.value) };
    if (value("expires_in")) given.expires_in = Math.round(Number(value("expires_in")) * 86400);
    if (value("token_budget")) given.token_budget = { tokens: Number(value("token_budget")), per: value("per") };
    for (const name of NUMBERS) if (value(name)) given[name] = Number(value(name));
    return given;
}
