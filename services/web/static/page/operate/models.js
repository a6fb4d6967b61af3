// The models: files, what is loaded and how it does, the switch from one to another, the profiles, and getting more.
import { call, get, post } from "./api.js";
import { button, confirmed, el, say } from "./dom.js";
import { gallery } from "./gallery.js";
import { field, form, number, options, size, table, tried, watch } from "./parts.js";
import { addressOf, drafts, pathOf, showProfile } from "./profiles.js";

/** At #models all of them; at #models/edit/<profile>, #models/new and #models/new/<profile> that profile's editor. */
export async function show(place, who, [what, name]) {
    const admin = who.scopes.includes("admin");
    if (admin && (what === "new" || (what === "edit" && name))) return showProfile(place, who, what === "new", name);
    const loaded = table("Loaded", ["Model", "State", "Profiles", "Memory", "Slots", "Users", "Tokens/s", "Unloads"],
        (one) => JSON.stringify([one.model, one.n_ctx, one.parallel, one.profiles]), loadedRow,
        "Nothing is loaded: the first question loads the selected model.");
    const files = table("Files", ["File", "Profiles", "Loaded"], (one) => one.file, (one) => [one.file,
        one.profiles.join(", ") || "none", one.loaded ? "yes" : "no"], "There are no model files: get one below.");
    const profiles = table("Profiles of config.json", ["Profile", "Model", "Window", "Answer at most", "Temperature", "All",
        ...(admin ? ["Actions"] : [])], (one) => one.name,
        (one) => [...profileRow(one), ...(admin ? [profileActs(one, () => look())] : [])], "config.json has no profiles.");
    const now = el("p", { role: "status" });
    const problem = el("p", { className: "error", "aria-live": "polite" });
    const change = who.scopes.includes("models:switch") ? switching(() => look())
        : el("p", { className: "hint" }, "Serving another model needs the scope models:switch.");
    const look = async () => {
        const found = await get("/models");
        const named = Object.entries(found.profiles);
        loaded.fill(found.loaded);
        files.fill(found.models.map((file) => ({ file, loaded: found.loaded.some((one) => one.model === file),
            profiles: named.filter(([, one]) => one.model === file).map(([name]) => name) })));
        profiles.fill(named.map(([name, one]) => ({ ...one, name, selected: name === found.selected })));
        const file = found.profiles[found.selected]?.model;
        const selected = `Selected: ${[found.selected ?? "none", file].filter(Boolean).join(", ")}`;
        if (now.textContent !== selected) now.textContent = selected;
        const wrong = found.problem ? `The last good profiles stay in use: ${found.problem}` : "";
        if (problem.textContent !== wrong) problem.textContent = wrong;
        change.offer?.(found);
    };
    place.append(problem, now, loaded.node, change, files.node, profiles.node,
        admin ? el("p", {}, el("a", { href: "#models/new" }, "New profile")) : "",
        el("p", { className: "hint" }, "Profiles stand in DATA_DIR/config.json, which may be edited by hand, too: the ",
            "server reads it again by itself; ", el("code", {}, "main.py doctor"), " checks it."),
        gallery(who, () => look()));
    await watch(place, 2, look);
}

function loadedRow(one) {
    const stats = one.stats ?? {};
    const state = one.reason ? `${one.state}: ${one.reason}` : one.state;
    const notes = [one.selected && "selected", one.replicas > 1 && `${one.replicas} processes`].filter(Boolean).join(", ");
    return [[one.model, el("small", {}, notes)],
        one.restarts ? `${state} (restarted ${one.restarts}×)` : state, one.profiles.join(", "),
        one.memory_bytes ? size(one.memory_bytes) : `about ${size(one.estimated_bytes)}`,
        stats.slots ? `${stats.running} of ${stats.slots} busy, ${stats.waiting} wait` : "–", number(one.users),
        one.tokens_per_second.toFixed(1), one.unload_seconds === null ? "no" : `in ${Math.round(one.unload_seconds)} s`];
}

function profileRow(one) {
    const { name, selected, warnings, ...values } = one;
    return [[name, el("small", {}, selected ? "selected" : "", ...(warnings ?? []).map((said) => ` ${said}`))], one.model,
        `${number(one.n_ctx)} tokens`, `${number(one.max_tokens)} tokens`,
        one.embedding ? "embedding" : String(one.temperature ?? "–"),
        el("details", {}, el("summary", { "aria-label": `All of ${name}` }, "All"),
            el("pre", { tabIndex: 0 }, JSON.stringify(values, null, 2)))];
}

function profileActs({ name, selected }, changed) {
    const to = (text, what) => el("a", { href: addressOf(name, what), "aria-label": `${text} ${name}` }, text);
    const drop = async () => {
        if (!await confirmed(`Delete the profile “${name}”?`, "Delete")) return;
        await tried(async () => {
            await call("DELETE", pathOf(name));
            drafts.delete(addressOf(name));
            say("Deleted");
            await changed();
        });
    };
    return el("div", { className: "acts" }, to("Edit", "edit"), to("Duplicate", "new"),
        selected ? null : button("Delete", drop, { "aria-label": `Delete ${name}` }));
}

/** The form that serves another model; `served()` is called when it has. The model before goes on
 *  until the new one has answered; a failure leaves it. */
function switching(served) {
    const model = el("select", { name: "model" });
    const profile = el("select", { name: "model_config" });
    const bar = el("progress", { hidden: true, "aria-label": "Switching" });
    const told = el("p", { className: "hint", role: "status" });
    let offered = "";
    let modelOf = {};       // profile -> its model
    const warn = () => {
        told.textContent = modelOf[profile.value] === model.value ? "" :
            `This makes ${model.value} the model of the profile ${profile.value} in config.json.`;
    };
    model.addEventListener("change", () => {
        const own = Object.keys(modelOf).find((name) => modelOf[name] === model.value);
        if (own && modelOf[profile.value] !== model.value) profile.value = own;
        warn();
    });
    profile.addEventListener("change", () => {
        if ([...model.options].some((one) => one.value === modelOf[profile.value])) model.value = modelOf[profile.value];
        warn();
    });
    const node = form("Serve another model", [field("Model", model), field("Profile", profile)], "Switch", async () => {
        const began = Date.now();
        const tell = () => { told.textContent = `Loading ${model.value}; until it has answered, the model before goes on. ` +
            `${Math.round((Date.now() - began) / 1000)} s`; };
        const ticking = setInterval(tell, 5000);
        tell();
        bar.hidden = false;
        try {
            const done = await post("/models/model", { model: model.value, model_config: profile.value });
            told.textContent = `${done.model} answers now, with the profile ${done.profile}.`;
            await served();
        } catch (error) {
            told.textContent = "";
            throw error;
        } finally {
            clearInterval(ticking);
            bar.hidden = true;
        }
    });
    node.append(bar, told);
    node.offer = (found) => {
        const names = Object.keys(found.profiles).filter((name) => !found.profiles[name].embedding);
        modelOf = Object.fromEntries(names.map((name) => [name, found.profiles[name].model]));
        const offer = JSON.stringify([found.models, names]);
        if (offer === offered) return;
        const kept = [model.value || found.profiles[found.selected]?.model, profile.value || found.selected];
        offered = offer;
        model.replaceChildren(...options(...found.models.map((one) => [one])));
        profile.replaceChildren(...options(...names.map((one) => [one])));
        [model, profile].forEach((list, at) => {
            if ([...list.options].some((one) => one.value === kept[at])) list.value = kept[at];
        });
    };
    return node;
}
