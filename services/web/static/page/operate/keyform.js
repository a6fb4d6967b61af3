// What a key may do, as fields: of the form that makes a key, and of the dialog that edits one.
import { call, get, post } from "./api.js";
import { el } from "./dom.js";
import { chosen, field, form, number, options } from "./parts.js";

const MEANING = { answer: "ask, and keep conversations, bases and jobs", "models:read": "see the models",
    "models:switch": "serve another model", keys: "make, edit and revoke keys", admin: "see the load, get models, edit profiles" };
const NUMBERS = ["requests_per_minute", "max_parallel", "tokens_per_minute", "weight"];

/** `made(key)` gets the new key with its secret. Scopes that `who` lacks cannot be given. */
export function keyForm(who, made) {
    const fields = fieldsOf(who, null, field("Expires after days", el("input", { type: "number", name: "expires_in",
        min: 0.001, max: 36500, step: "any" }), "empty: never"));
    const node = form("Make a key", fields, "Make the key", async (elements) => {
        const days = elements.expires_in.value;
        await check(who, terms(elements).profiles);
        const key = await post("/auth/key", { ...terms(elements),
            expires_in: days ? Math.round(Number(days) * 86400) : null });
        node.reset();
        await made(key);
    });
    return el("details", {}, el("summary", {}, "Make a key"), node);
}

/** Asks what a key may do from now on, and has the server change that much of it. The key as it is then, or null. */
export async function edited(who, one) {
    const last = who.expires_at && local(who.expires_at);
    const ends = el("input", { type: "datetime-local", name: "expires_in", required: last, max: last,
        defaultValue: one.expires_at ? local(one.expires_at) : "" });
    const fields = fieldsOf(who, one, field("Expires", ends, last ? "at most when this key does" : "empty: never"));
    let before = null;
    let key = null;
    const asked = chosen(`Edit “${one.name || one.id}”`, fields, "Save", async (elements) => {
        const changes = Object.entries(terms(elements)).filter(([name, value]) => !same(value, before[name]));
        if (ends.value !== ends.defaultValue) {
            changes.push(["expires_in", ends.value ? Math.round((new Date(ends.value) - Date.now()) / 1000) : null]);
        }
        await check(who, Object.fromEntries(changes).profiles);
        if (changes.length) key = await call("PATCH", `/auth/keys/${encodeURIComponent(one.id)}`, Object.fromEntries(changes));
    });
    before = terms(ends.form.elements);
    await asked;
    return key;
}

/** A key for profiles that are not there could ask nothing. */
async function check(who, profiles) {
    if (!profiles || !who.scopes.includes("models:read")) return;
    const there = Object.keys((await get("/models")).profiles), other = profiles.find((name) => !there.includes(name));
    if (other) throw Object.assign(new Error(`there is no profile “${other}”; there are: ${there.join(", ")}`), { param: "profiles" });
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** A moment as a field for local time has it, to the minute. */
function local(iso) {
    const at = new Date(iso);
    at.setMinutes(at.getMinutes() - at.getTimezoneOffset());
    return at.toISOString().slice(0, 16);
}

/** The fields, filled in as the key `one` is; what `who` may not give is barred, and why is said. */
function fieldsOf(who, one, expires) {
    const limit = (label, name, props = {}, own = who[name], is = one?.[name]) => {
        const most = who.master ? null : own ?? null;
        return field(label, el("input", { type: "number", name, min: 1, step: 1, ...props, defaultValue: is ?? "",
            max: most ?? props.max, required: one && most !== null }), most === null ? props.hint :
            `at most ${number(most)}, as this key`);
    };
    const per = el("select", { name: "per", disabled: !who.master && who.token_budget },
        ...options(["day", "a day"], ["month", "a month"], ["total", "ever"]));
    const period = (per.disabled ? who : one)?.token_budget?.per ?? "day";
    [...per.options].find((option) => option.value === period).defaultSelected = true;     // also after a reset
    return [
        field("Name", el("input", { name: "name", maxLength: 80, autocomplete: "off", defaultValue: one?.name ?? "",
            required: one?.name })),
        el("fieldset", {}, el("legend", {}, "May"), ...scopes(who, one)),
        field("Profiles", el("input", { name: "profiles", autocomplete: "off", required: one && who.profiles,
            defaultValue: one?.profiles?.join(", ") ?? "" }),
        `separated by commas; ${who.profiles ? `of ${who.profiles.join(", ")}` : "empty: all"}`),
        expires,
        limit("Requests a minute", "requests_per_minute"),
        limit("Answers at the same time", "max_parallel"),
        limit("Tokens a minute", "tokens_per_minute"),
        limit("Token budget", "token_budget", {}, who.token_budget?.tokens, one?.token_budget?.tokens),
        field("Budget is for", per, per.disabled ? "as this key’s own" : ""),
        limit("Weight", "weight", { min: 0.1, max: 100, step: "any", hint: "its share of a busy model beside other keys' 1" }),
    ];
}

/** To be ticked. Those that a key has and `who` lacks are shown, and stay. */
function scopes(who, one) {
    const closed = one?.id === "bypass-authorization";
    const all = Object.keys(MEANING).filter((scope) => who.scopes.includes(scope) || one);
    return all.map((scope) => {
        const lacks = !who.scopes.includes(scope);
        const told = closed ? "not without a key" : lacks ? "this key lacks it itself" : MEANING[scope];
        return el("label", {}, el("input", { type: "checkbox", name: "scopes", value: scope, disabled: closed || lacks,
            defaultChecked: (one?.scopes ?? ["answer"]).includes(scope) }), `${scope} `, el("small", {}, told));
    });
}

/** What the fields say but the end, as the server takes it. */
function terms(elements) {
    const value = (name) => elements[name].value.trim();
    const listed = value("profiles").split(",").map((one) => one.trim()).filter(Boolean);
    return { name: value("name") || null, profiles: listed.length ? listed : null,
        scopes: [...elements].filter((one) => one.name === "scopes" && one.checked).map((one) => one.value),
        token_budget: value("token_budget") ? { tokens: Number(value("token_budget")), per: value("per") } : null,
        ...Object.fromEntries(NUMBERS.map((name) => [name, value(name) ? Number(value(name)) : null])) };
}
