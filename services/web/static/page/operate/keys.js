// The keys: what each may do and has used; made, edited, given a new secret, revoked.
import { call, get, keepKey, post } from "./api.js";
import { button, confirmed, copier, el, say } from "./dom.js";
import { edited, keyForm } from "./keyform.js";
import { chosen, field, many, moment, number, options, table, tried } from "./parts.js";

const PAGE = 100;

export async function show(place, who) {
    const secret = el("section", { "aria-live": "polite" });
    const keys = table("All keys", ["Name", "May", "Profiles", "Limits", "Used", "Expires", "Actions"], (one) => one.id, row,
        "There are no such keys.");
    const find = el("input", { type: "search", autocomplete: "off", oninput: () => { shown = PAGE; draw(); } });
    const more = button("Show more", () => {
        shown += PAGE;
        draw();
        if (more.hidden) keys.node.focus({ preventScroll: true });
    });
    let all = [];
    let shown = PAGE;
    const draw = () => {
        const wanted = find.value.trim().toLowerCase();
        const fit = all.filter((one) => `${one.name} ${one.id}`.toLowerCase().includes(wanted));
        keys.fill(fit.slice(0, shown));
        more.hidden = fit.length <= shown;
    };
    const load = async () => {
        const found = await get("/auth/keys");
        all = found.keys.reverse().map((one) => ({ ...one, called: !one.name ? one.id :
            one.name + (found.keys.some((other) => other.name === one.name && other.id !== one.id) ? ` ${one.id}` : "") }));
        draw();
    };

    function row(one) {
        const over = one.revoked_at || (one.expires_at && new Date(one.expires_at) < new Date());
        const named = (text, act) => button(text, () => act(one), { "aria-label": `${text} ${one.called}` });
        const acts = over ? [el("span", { className: "hint" }, one.revoked_at ? "revoked" : "expired")] :
            one.master ? [] : [...(beyond(one, who) ? [] : [named("Edit", edit), named("Rotate", rotate)]),
                ...(one.scopes.includes("admin") && !who.scopes.includes("admin") ? [] : [named("Revoke", revoke)])];
        return [[one.name || "(no name)", el("small", {}, `${one.id}${one.id === who.id ? " · signed in with it" : ""}`)],
            one.scopes.join(", "), one.profiles?.join(", ") ?? "all", limits(one), used(one.usage),
            one.expires_at ? moment(one.expires_at) : "never", el("div", { className: "acts" }, ...acts)];
    }

    async function edit(one) {
        const key = await edited(who, one);
        if (!key) return;
        if (one.id === who.id && `${key.scopes}` !== `${who.scopes}`) return location.reload();
        if (one.id === who.id) Object.assign(who, key);
        await tried(load);
    }

    async function rotate(one) {
        const asked = await chosen(`A new secret for “${one.called}”`, [field("The old one goes on to work for",
            el("select", { name: "grace" }, ...options(["0", "no time"], ["3600", "an hour"], ["86400", "a day"],
                ["604800", "a week"])))], "Rotate");
        if (!asked) return;
        await tried(async () => {
            const made = await post(`/auth/keys/${encodeURIComponent(one.id)}/rotate`,
                { grace_seconds: Number(asked.grace.value) });
            if (one.id === who.id) keepKey(made.key);
            reveal(secret, made, keys.node);
            await load();
        });
    }

    async function revoke(one) {
        if (!await confirmed(`Revoke “${one.called}”? It stops working at once, for good.${
            one.id === who.id ? " You are signed in with it." : ""}`, "Revoke")) return;
        if (await tried(() => call("DELETE", `/auth/keys/${encodeURIComponent(one.id)}`))) {
            say("Revoked");
            await tried(load);
        }
    }

    await load();
    place.append(secret, field("Find", find, "by name or id; the newest are first"), keys.node, more, keyForm(who, async (made) => {
        reveal(secret, made, keys.node);
        await tried(load);
    }));
}

/** Whether a key may do what `who` may not, who then can neither edit it nor have its secret. */
const beyond = (one, who) => one.scopes.some((scope) => !who.scopes.includes(scope)) ||
    who.profiles && !one.profiles?.every((name) => who.profiles.includes(name));

/** The secret, until it is put away, which leads to `next`: no later answer of the server has it. */
function reveal(place, made, next) {
    const text = el("code", { tabIndex: 0, "aria-label": "Secret" }, made.key);
    const copy = copier(() => made.key, { className: "primary" });
    const shown = el("div", { className: "secret" }, el("p", {}, `The secret of “${made.name || made.id}”. It is shown this once: copy it now.`),
        text, copy, button("Done", () => {
            shown.remove();
            next.focus();
        }));
    place.prepend(shown);
    shown.scrollIntoView({ block: "nearest" });
    copy.focus();
}

function limits(one) {
    const told = [[one.requests_per_minute, "requests/min"], [one.max_parallel, "at once"],
        [one.tokens_per_minute, "tokens/min"], [one.token_budget?.tokens, budget(one.token_budget?.per)]]
        .filter(([value]) => value).map(([value, unit]) => `${number(value)} ${unit}`);
    return [...told, ...(one.weight === 1 ? [] : [`weight ${one.weight}`])].join(", ") || "none";
}

const budget = (per) => per === "total" ? "tokens in all" : `tokens a ${per}`;

const used = (usage) => !usage ? "not known now" :
    `${many(usage.requests, "request")}, ${many(usage.prompt_tokens + usage.completion_tokens, "token")}`;
