// Who answers, and what is looked up for it: what the key may choose from, as the server has it now.
import { get } from "./api.js";
import { el, say } from "./dom.js";
import { baseOf, isOwn } from "./files.js";

const CHOICE = "parley-who";            // kept for this tab
const GROUPS = { profile: "Profiles", personality: "Personalities" };

export class Choices {
    /** `who`: the key, as /auth tells it. */
    constructor(who) {
        this.may = (scope) => who.scopes.includes(scope);
        this.own = who.profiles;        // names of the profiles that it is held to, or null
        this.changed = () => {};        // what to do when another one is chosen
        this.those = [];                // {kind, name, model, greets}; `model` is null where the key may not see it
        this.bases = new Set();
        this.embeds = true;             // whether files can be indexed: where that is not known it is tried
        this.ticks = [];
        this.who = el("select", { id: "who", "aria-label": "Who answers", onchange: () => this.keep() });
        this.model = el("span", { className: "model", "aria-live": "polite" });
        this.node = el("div", { className: "chooser" }, this.who, this.model);
        this.files = el("input", { type: "checkbox" });
        this.search = el("input", { type: "checkbox" });
        this.list = el("span", {});
        this.sources = el("fieldset", { className: "sources" }, el("legend", {}, "Answer from"),
            el("label", { hidden: true }, this.files, "the files of this conversation"), this.list,
            el("label", { title: "The model decides whether to look something up, and where; feeds and wikis are asked with words of the question" }, this.search, "search"));
    }

    /** Asks the server. What was chosen and ticked stays so, as long as it is there. */
    async learn() {
        const [models, personalities, bases] = await Promise.all([this.may("models:read") ? get("/v1/models") : null,
            ...["/personalities", "/knowledge"].map((path) => this.may("answer") ? get(path) : null)]);
        this.embeds = models?.data.some((one) => one.embedding) ?? true;
        this.offer([...models ? models.data.filter((one) => !one.embedding && one.id !== one.file)      // a file is no profile
            .map((one) => ({ kind: "profile", name: one.id, model: one.file })) : this.unseen(),
        ...(personalities?.personalities ?? []).filter((one) => one.model).map((one) => (
            { kind: "personality", name: one.name, model: one.model, greets: one.intro_dialogue }))]);
        this.bases = new Set((bases?.bases ?? []).map((base) => base.name));
        this.tick([...this.bases].filter((name) => !isOwn(name)));
    }

    /** Of a key that may not see the models: those that it is held to, or the server's choice, which has no name. */
    unseen() {
        return (this.may("answer") ? this.own ?? [""] : []).map((name) => ({ kind: "profile", name, model: null }));
    }

    offer(those) {
        const before = this.chosen(), wanted = before ? value(before) : sessionStorage.getItem(CHOICE);
        if (same(those, this.those)) return;
        this.those = those;
        this.who.replaceChildren(...Object.entries(GROUPS).map(([kind, label]) => [label, those.filter((one) => one.kind === kind)])
            .filter(([, some]) => some.length).map(([label, some]) => el("optgroup", { label },
                ...some.map((one) => el("option", { value: value(one) }, one.name || "the server's profile")))));
        const found = those.find((one) => value(one) === wanted) ?? those[0];         // the selected profile comes first
        if (found) this.who.value = value(found);
        if (before && found && value(found) !== wanted) say(`${before.name} is here no longer: ${found.name} answers now`);
        this.tell();
        this.changed();
    }

    tick(names) {
        if (same(names, this.ticks.map((one) => one.value))) return;
        const ticked = this.ticked();
        this.ticks = names.map((name) => el("input", { type: "checkbox", value: name, checked: ticked.includes(name) }));
        this.list.replaceChildren(...this.ticks.map((one) => el("label", {}, one, one.value)));
    }

    ticked() {
        return this.ticks.filter((one) => one.checked).map((one) => one.value);
    }

    chosen() {
        return this.those.find((one) => value(one) === this.who.value);
    }

    choose(one) {
        this.who.value = value(one);
        this.keep();
    }

    keep() {
        sessionStorage.setItem(CHOICE, this.who.value);
        this.tell();
        this.changed();
    }

    tell() {
        const one = this.chosen();
        this.model.textContent = !one ? "no model answers: see main.py doctor"
            : one.model === null ? "its answer tells the model" : `answered by ${one.model}`;
    }

    greeting() {
        return [this.chosen()?.greets ?? "What would you like to know?"].flat().join(" ");
    }

    /** `one` has answered with `model`: where that is news, more may be. */
    async answered(one, model) {
        if (one === this.chosen()) this.model.textContent = `answered by ${model}`;
        if (one?.model && one.model !== model) await this.learn();
    }

    /** Whether conversation `id` has files of its own, which are answered from unless that is taken away. */
    enter(id) {
        this.files.checked = id !== null && this.bases.has(baseOf(id));
        this.files.parentNode.hidden = !this.files.checked;
    }

    /** What to ask conversation `id` with. */
    fields(id) {
        const one = this.chosen(), knowledge = [...this.ticked(), ...this.files.checked ? [baseOf(id)] : []];
        return { ...(one?.name ? { [one.kind]: one.name } : {}), ...(knowledge.length ? { knowledge } : {}),
            ...(this.search.checked ? { search: true } : {}) };
    }
}

const value = (one) => `${one.kind}:${one.name}`;
const same = (some, others) => JSON.stringify(some) === JSON.stringify(others);
